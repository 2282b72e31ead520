"""Pieces of a self-contained HTML page: escaped text, inline pictures, tables, line charts as SVG. No script, no outside file."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO

from PIL.Image import Image

_CHART = (360, 170)  # width and height of a chart in CSS pixels
_MARGIN = (46, 12, 10, 24)  # left, right, top, bottom


def escape(text: object) -> str:
    """Text as HTML, also inside attributes."""
    return html.escape(str(text), quote=True)


def picture(image: Image, alt: str, size: int = 96, frame: str = "") -> str:
    """An inline PNG, shown `size` CSS pixels high; `frame` is a CSS class ("right", "wrong", "")."""
    stream = BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img class="{frame}" height="{size}" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def verdict(correct: bool | None) -> str:
    """The CSS class of a judgement."""
    return "" if correct is None else "right" if correct else "wrong"


def mark(correct: bool | None) -> str:
    """A judgement in a line of text, readable without colour."""
    if correct is None:
        return ""
    return '<span class="right-mark">✓ right</span>' if correct else '<span class="wrong-mark">✗ wrong</span>'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells that are `Markup` stay as they are, everything else is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Markup(str):
    """A string that is HTML already."""


def _cell(value: object) -> str:
    return str(value) if isinstance(value, Markup) else escape(value)


def bar(value: float, low: float, high: float, chance: float | None, ceiling: float | None) -> Markup:
    """A share in [0, 1] as a bar with its interval, and marks for chance and ceiling."""

    def at(share: float) -> str:
        return f"{100 * min(max(share, 0.0), 1.0):.1f}%"

    marks = ""
    for share, name in ((chance, "chance"), (ceiling, "ceiling")):
        if share is not None:
            marks += f'<i class="{name}" style="left:{at(share)}" title="{name} {share:.1%}"></i>'
    interval = f'<i class="interval" style="left:{at(low)};width:{at(high - low)}"></i>'
    return Markup(f'<span class="bar"><b style="width:{at(value)}"></b>{interval}{marks}</span>')


def chart(title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str) -> str:
    """Lines {name: (x, y)} over a common x axis (steps), drawn as SVG with their last values named.

    The y axis starts at 0, or is logarithmic where the values span a factor of more than eight.
    """
    points = {name: [(a, b) for a, b in zip(x, y) if math.isfinite(a) and math.isfinite(b)] for name, (x, y) in lines.items()}
    points = {name: line for name, line in points.items() if len(line) > 1}
    if not points:
        return ""
    xs = [a for line in points.values() for a, _ in line]
    ys = [b for line in points.values() for _, b in line]
    left, right, top, bottom = _MARGIN
    width, height = _CHART
    logarithmic = min(ys) > 0 and max(ys) > 8 * min(ys)
    floor = min(ys) if logarithmic else min(min(ys), 0.0)

    def height_of(b: float) -> float:
        return math.log(b) if logarithmic else b

    spread = (height_of(max(ys)) - height_of(floor)) or 1.0

    def place(a: float, b: float) -> str:
        across = left + (width - left - right) * (a - min(xs)) / ((max(xs) - min(xs)) or 1.0)
        down = top + (height - top - bottom) * (1.0 - (height_of(b) - height_of(floor)) / spread)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<text x="4" y="{top + 8}">{max(ys):.3g}</text><text x="4" y="{height - bottom}">{floor:.3g}</text>']
    unit = f"{unit}, logarithmic" if logarithmic else unit
    parts.append(f'<text x="{left}" y="{height - 6}">{min(xs):.0f}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 6}" text-anchor="end">{max(xs):.0f} steps</text>')
    parts.append(f'<path class="axis" d="M{left},{top}V{height - bottom}H{width - right}"/>')
    legend = []
    for index, (name, line) in enumerate(points.items()):
        parts.append(f'<polyline class="line-{index % 4}" points="{" ".join(place(a, b) for a, b in line)}"/>')
        legend.append(f'<span class="key-{index % 4}">{escape(name)} {line[-1][1]:.3g}</span>')
    label = escape(f"{title}, {unit}")
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    svg = f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'
    caption = f"<figcaption>{escape(title)} <small>{escape(unit)}</small></figcaption>"
    return f'<figure class="chart">{caption}{svg}<p>{" ".join(legend)}</p></figure>'
