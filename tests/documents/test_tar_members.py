"""Strict tar reading: every cut is noticed, hostile headers neither hang nor escape."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cm3.core.artefact import write_json
from cm3.documents import RecordError, RejectReason
from cm3.documents.tar_members import read_member, sidecar_json, sidecar_path, tar_index


def reason_of(path: Path) -> RejectReason:
    with pytest.raises(RecordError) as caught:
        tar_index(path)
    return caught.value.reason


@pytest.fixture
def shard(tar: Callable[..., Path]) -> Path:
    return tar({f"{number:04d}.txt": bytes([number]) * (37 * number % 1500) for number in range(60)})


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_tar_dialect(tmp_path: Path, format: int) -> None:
    files = {"a.txt": b"one", f"{'d' * 90}/{'n' * 95}.txt": b"two", "empty.txt": b"", "b.txt": b"x" * 1025}
    if format != tarfile.USTAR_FORMAT:
        files["ü/" + "l" * 300 + ".txt"] = b"long"
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        archive.addfile(link)
    index = tar_index(tmp_path / "a.tar")
    with open(tmp_path / "a.tar", "rb") as stream:
        assert {member.name: read_member(stream, member, 10**6) for member in index.members} == files
        assert len(read_member(stream, index.members[-1], 3)) == 4  # one more than the limit, so that it can be noticed


def test_cut_at_every_block_is_noticed(shard: Path, tmp_path: Path) -> None:
    data = shard.read_bytes()
    content_end = len(data.rstrip(b"\0"))
    content_end += -content_end % 512
    cut = tmp_path / "cut.tar"
    for size in range(0, content_end + 1024, 512):
        cut.write_bytes(data[:size])
        assert reason_of(cut) is RejectReason.TRUNCATED_SHARD
        assert size == 0 or tar_index(cut, keep_truncated=True).truncated is not None
    cut.write_bytes(data[: content_end + 1024])  # only padding is gone
    assert len(tar_index(cut).members) == 60


def test_cut_anywhere_is_noticed(shard: Path, tmp_path: Path) -> None:
    data = shard.read_bytes()
    cut = tmp_path / "cut.tar"
    for size in np.random.default_rng(5).integers(1, len(data.rstrip(b"\0")), 100):
        cut.write_bytes(data[:size])
        assert reason_of(cut) in (RejectReason.TRUNCATED_SHARD, RejectReason.CORRUPT_SHARD)


def test_cut_shard_gives_the_whole_members_before_the_cut(shard: Path) -> None:
    whole = tar_index(shard)
    member = whole.members[40]
    shard.write_bytes(shard.read_bytes()[: member.offset + member.size - 1])
    kept = tar_index(shard, keep_truncated=True)
    assert kept.members == whole.members[:40]
    assert kept.truncated is not None
    assert "0040.txt" in kept.truncated


def test_damaged_header_is_corrupt(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[tar_index(shard).members[50].offset - 512 + 3] ^= 0x10  # in the name: the checksum no longer fits
    shard.write_bytes(data)
    assert reason_of(shard) is RejectReason.CORRUPT_SHARD


def test_not_a_tar(tmp_path: Path, shard: Path) -> None:
    other = tmp_path / "other.tar"
    for data in (b"hello", b"x" * 5000, b"PK\3\4" + b"\0" * 2000):
        other.write_bytes(data)
        assert reason_of(other) in (RejectReason.CORRUPT_SHARD, RejectReason.TRUNCATED_SHARD)
    other.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(RecordError, match="compressed \\(gzip\\)"):
        tar_index(other)


def test_sidecar_is_checked(shard: Path) -> None:
    write_json(sidecar_path(shard), sidecar_json(shard, num_samples=60, num_members=60))
    assert len(tar_index(shard).members) == 60
    data = shard.read_bytes()
    member = tar_index(shard).members[33]
    shard.write_bytes(data[: member.offset] + b"?" + data[member.offset + 1 :])  # content that no header notices
    with pytest.raises(RecordError, match="SHA-256 differs"):
        tar_index(shard)
    shard.write_bytes(data[:-512])
    with pytest.raises(RecordError, match="bytes, shard.tar.json says"):
        tar_index(shard)
    sidecar_path(shard).write_text("[]")  # somebody else's file
    assert len(tar_index(shard).members) == 60


def pax_header(record: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    return info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")


@pytest.mark.parametrize(
    "record", [b"16 size=-1000000\n", b"12 size=9e9\n", b"30 size=99999999999999999999\n", b"99999 path=a\n", b"0 a=b\n", b"=\n"]
)
def test_hostile_pax_headers_end(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "hostile.tar"
    path.write_bytes(pax_header(record) + tarfile.TarInfo("a").tobuf() + b"\0" * 1024)
    try:
        tar_index(path)
    except RecordError as error:
        assert error.reason in (RejectReason.CORRUPT_SHARD, RejectReason.TRUNCATED_SHARD)  # noqa: PT017 - either end is right


def test_header_of_negative_size(tmp_path: Path) -> None:
    """It sends tarfile back to the same header for ever."""
    info = tarfile.TarInfo("a")
    info.size = -512
    path = tmp_path / "negative.tar"
    path.write_bytes(tarfile.TarInfo("good").tobuf() + info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    assert reason_of(path) is RejectReason.CORRUPT_SHARD


def test_mutated_tars_never_escape(tar: Callable[..., Path], tmp_path: Path) -> None:
    """Random damage in the headers: an index or a `RecordError`, in bounded time."""
    data = tar({f"{number}.txt": b"x" * number * 50 for number in range(6)} | {"l" * 150: b"y"}).read_bytes()
    rng = np.random.default_rng(2)
    path, indexed = tmp_path / "mutant.tar", 0
    for _ in range(300):
        mutant = bytearray(data)
        block = 512 * int(rng.integers(0, len(data.rstrip(b"\0")) // 512))
        for _ in range(rng.integers(1, 5)):
            mutant[block + int(rng.integers(0, 512))] = int(rng.integers(0, 256))
        header = mutant[block : block + 512]
        header[148:156] = b" " * 8
        mutant[block + 148 : block + 156] = b"%06o\0 " % sum(header)  # as an attacker would: with a fitting checksum
        path.write_bytes(mutant)
        try:
            index = tar_index(path)
        except RecordError:
            continue
        indexed += 1
        assert all(member.offset >= 0 and member.offset + member.size <= len(data) for member in index.members)
    assert indexed < 300
