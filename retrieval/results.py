"""Search results for people and programs: JSON records, a plain table, and a grid of pictures with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from cm3.core.artefact import storage_errors
from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment, Neighbor

_CELL, _CAPTION, _LINES = 160, 44, 3


def search_records(neighbors: Sequence[Neighbor], picture_dir: Path | None = None) -> list[dict[str, Any]]:
    """[{"id", "score", "rank", "text", "image"}]; "image" is the path of the first picture, which is written to `picture_dir`.

    Without `picture_dir`, and for documents without a picture, "image" is None.
    """
    return [
        {
            "id": neighbor.document.id,
            "score": round(neighbor.score, 6),
            "rank": neighbor.rank,
            "text": neighbor.document.text,
            "image": _write_picture(neighbor, picture_dir),
        }
        for neighbor in neighbors
    ]


def search_table(neighbors: Sequence[Neighbor], width: int = 100) -> str:
    """A table for the terminal: rank, score, id, and the text cut to what fits `width` columns."""
    rows = [("rank", "score", "id", "text")]
    rows += [(str(item.rank), f"{item.score:.3f}", item.document.id, _one_line(item.document)) for item in neighbors]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    left = max(width - sum(widths) - 6, 10)
    return "\n".join(
        f"{rank:>{widths[0]}}  {score:>{widths[1]}}  {id:<{widths[2]}}  {textwrap.shorten(text, left, placeholder=' …')}".rstrip()
        for rank, score, id, text in rows
    )


def picture_grid(neighbors: Sequence[Neighbor], columns: int = 4) -> Image.Image:
    """One picture of all found pictures, nearest first, each with its score and the beginning of its text.

    Documents without a picture show their text alone. Raises `InputError` when nothing was found.
    """
    if not neighbors:
        raise InputError("there is nothing to draw: the search found no documents")
    columns = min(columns, len(neighbors))
    rows = -(-len(neighbors) // columns)
    canvas = Image.new("RGB", (columns * _CELL, rows * (_CELL + _CAPTION)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, neighbor in enumerate(neighbors):
        left, top = place % columns * _CELL, place // columns * (_CELL + _CAPTION)
        picture = _picture(neighbor.document)
        if picture is not None:
            shown = _fitted(picture.load())
            canvas.paste(shown, (left + (_CELL - shown.width) // 2, top + (_CELL - shown.height) // 2))
        lines = textwrap.wrap(f"{neighbor.score:.3f} {_one_line(neighbor.document)}", 25)[:_LINES]
        draw.multiline_text((left + 4, top + _CELL + 2), _drawable("\n".join(lines)), "black")
    return canvas


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture in the cell's size, small ones enlarged by whole pixels."""
    scale = (_CELL - 8) / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)


def _write_picture(neighbor: Neighbor, folder: Path | None) -> str | None:
    picture = _picture(neighbor.document)
    if folder is None or picture is None:
        return None
    target = folder / f"{neighbor.rank:03d}.png"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        picture.load().save(target, "PNG")
    return str(target)


def _picture(document: Document) -> ImageSegment | None:
    """The first picture that can be shown; codes alone cannot."""
    return next((segment for segment in document.images if segment.has_picture), None)


def _drawable(text: str) -> str:
    """The text with "?" for what Pillow's own font lacks."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _one_line(document: Document) -> str:
    return " ".join(document.text.split())
