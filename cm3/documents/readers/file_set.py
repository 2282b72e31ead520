"""Named files of a folder or of one tar behind one face, for formats that do not care where the files lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from cm3.core.errors import InputError
from cm3.documents.document import ImageSegment
from cm3.documents.readers.folder import walk
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions, image_segment
from cm3.documents.tar_members import TarIndex, read_member, tar_index


class FileSet(Protocol):
    """names: relative paths with "/"; label: what to call the whole in messages; truncated: why files may be missing."""

    names: list[str]
    label: str
    truncated: str | None

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of a file, at most `max_bytes` of them."""

    def image(self, name: str, options: ReadOptions) -> ImageSegment:
        """The picture in a file. Raises `ImageError`."""


class FolderFiles:
    """The files below a folder (hidden ones left out), sorted."""

    truncated: str | None = None

    def __init__(self, root: Path) -> None:
        self.root, self.label, self.names = root, str(root), walk(root)

    def read(self, name: str, max_bytes: int) -> bytes:
        """See `FileSet`."""
        try:
            with open(self.root / name, "rb") as stream:
                return stream.read(max_bytes)
        except OSError as error:
            raise InputError(f"{self.root / name} cannot be read: {error.strerror}") from None

    def image(self, name: str, options: ReadOptions) -> ImageSegment:
        """See `FileSet`; a name that is not below the folder ("../a.png", absolute) is taken as the user wrote it."""
        return image_segment(self.root / name, options)


class TarFiles:
    """The regular files of one tar, in archive order, read in place."""

    def __init__(self, index: TarIndex, stream: BinaryIO) -> None:
        self._members = {member.name.removeprefix("./"): member for member in index.members}
        self._stream, self.label, self.truncated = stream, str(index.path), index.truncated
        self.names = [name for name in self._members if not any(part.startswith(".") for part in name.split("/"))]

    def read(self, name: str, max_bytes: int) -> bytes:
        """See `FileSet`."""
        return read_member(self._stream, self._members[name], max_bytes)[:max_bytes]

    def image(self, name: str, options: ReadOptions) -> ImageSegment:
        """See `FileSet`."""
        if name not in self._members:
            raise RecordError(RejectReason.MISSING_IMAGE, f"the tar has no file {name!a:.80}")
        return image_segment(read_member(self._stream, self._members[name], options.limits.max_bytes), options)


@contextmanager
def open_file_set(path: Path, keep_truncated: bool = False) -> Iterator[FileSet]:
    """The files of the folder or tar at `path`. Raises `RecordError` when the tar is not whole."""
    if path.is_dir():
        yield FolderFiles(path)
        return
    index = tar_index(path, keep_truncated)
    with open(path, "rb") as stream:
        yield TarFiles(index, stream)
