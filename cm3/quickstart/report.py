"""The report: one self-contained HTML page that shows what the trained model can and cannot do.

A `Story` goes in, a page comes out. Right answers have a solid frame and a ✓, wrong ones a dashed frame and a ✗: the page
shows the first examples of the held-out data as they come, not the best ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TypeVar

from cm3.quickstart.html import Markup, bar, chart, escape, mark, picture, table, verdict
from cm3.quickstart.story import (
    Answer,
    Caption,
    EditResult,
    Generation,
    Infill,
    NeighborRow,
    Reconstruction,
    Story,
    TaskScore,
)

Item = TypeVar("Item")


def render_report(story: Story) -> str:
    """The whole page as HTML."""
    css = resources.files("cm3.quickstart").joinpath("style.css").read_text("utf-8")
    sections = [
        _section("What it can do", _scores(story), _SCORES_TEXT) if story.tasks else "",
        _section("Measured on held-out pictures", _real(story), _REAL_TEXT) if story.real else "",
        _section("Text to picture", _cards(story.generations, _generation), _generation_text(story)),
        _section("Picture to text", _cards(story.captions, _caption), "Pictures from the held-out set and what the model wrote."),
        _section("Questions and answers", _cards(story.answers, _answer), "Asked about pictures from the held-out set."),
        _section("Edits", _cards(story.edits, _edit), "Before, instruction, what the model made, and what was expected."),
        _section("Infilling", _cards(story.infills, _infill), _INFILL_TEXT),
        _section("Retrieval", _cards(story.neighbors, _neighbors), "The nearest documents of the memory bank, best first."),
        _section("Tokenizer round trip", _reconstructions(story.reconstructions), _TOKENIZER_TEXT),
        _section("Training", _curves(story), "Losses over the steps of each stage."),
        _section("Stages", _stages(story), ""),
    ]
    return _PAGE.format(
        title=escape(story.title), source=escape(story.source), command=escape(story.command), css=css, body="".join(sections)
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style>
</head>
<body><main><h1>{title}</h1><p class="soft">{source}</p><p>Made by <code>{command}</code></p>{body}</main></body>
</html>
"""


_SCORES_TEXT = (
    "Share of exactly right answers on held-out data, with its 95 % interval (dark band). The red mark is what guessing gives, "
    "the green one what the tokenizer's round trip allows: no picture can be more right than its codes."
)
_REAL_TEXT = "Nobody can judge these pictures exactly, so these are likelihoods, distances and retrieval rates."
_GENERATION_TEXT = "Several drawings for each prompt, each from its own seed."
_NOTED_TEXT = " Prompts marked “held-out” describe a combination that no training picture shows."
_INFILL_TEXT = "A third of the codes is taken out and drawn again, given the caption and the rest of the picture."
_TOKENIZER_TEXT = "Held-out pictures above, their reconstructions from codes below."


def _generation_text(story: Story) -> str:
    """The marks are explained where a prompt has one."""
    return _GENERATION_TEXT + (_NOTED_TEXT if any(generation.note for generation in story.generations) else "")


def _section(title: str, body: str, text: str) -> str:
    if not body:
        return ""
    return f"<section><h2>{escape(title)}</h2>{f'<p class=soft>{escape(text)}</p>' if text else ''}{body}</section>"


def _cards(items: Sequence[Item], render: Callable[[Item], str]) -> str:
    cards = "".join(f'<article class="card">{render(item)}</article>' for item in items)
    return f'<div class="cards">{cards}</div>' if items else ""


def _row(*figures: tuple[str, str]) -> str:
    cells = "".join(f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>" for image, text in figures)
    return f'<div class="row">{cells}</div>'


def _scores(story: Story) -> str:
    def line(name: str, score: TaskScore) -> Sequence[object]:
        share = Markup(f"<b>{score.accuracy:.1%}</b>")
        limits = f"{score.low:.1%} – {score.high:.1%}"
        chance = "–" if score.chance is None else f"{score.chance:.1%}"
        ceiling = "–" if score.ceiling is None else f"{score.ceiling:.1%}"
        shown = bar(score.accuracy, score.low, score.high, score.chance, score.ceiling)
        return (name.replace("_", " "), share, shown, limits, chance, ceiling, score.n, score.split)

    header = ("task", "right", "", "95 % interval", "chance", "ceiling", "n", "measured on")
    return table(header, [line(name, score) for name, score in story.tasks.items()])


def _real(story: Story) -> str:
    def shown(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return table(("figure", "value"), [(name.replace("_", " "), shown(value)) for name, value in story.real.items()])


def _generation(item: Generation) -> str:
    images = [
        (picture(image, f"drawing {number} for: {item.prompt}", 72, verdict(correct)), "")
        for number, (image, correct) in enumerate(zip(item.images, item.correct), start=1)
    ]
    if item.nearest is not None:
        images.append((picture(item.nearest, "nearest training picture", 72), "nearest in training"))
    right = [correct for correct in item.correct if correct is not None]
    count = f" <small>{sum(right)} of {len(right)} right</small>" if right else ""
    note = f' <span class="held">{escape(item.note)}</span>' if item.note else ""
    return f"{_row(*images)}<p>{escape(item.prompt)}{count}{note}</p>"


def _caption(item: Caption) -> str:
    image = _row((picture(item.image, item.reference, frame=verdict(item.correct)), ""))
    return f"{image}<p>{escape(item.text)} {mark(item.correct)}</p><p class=soft>came with: {escape(item.reference)}</p>"


def _answer(item: Answer) -> str:
    expected = "" if item.correct else f" <small>expected: {escape(item.expected)}</small>"
    image = _row((picture(item.image, "picture asked about"), ""))
    return f"{image}<p>{escape(item.question)}</p><p><b>{escape(item.answer)}</b> {mark(item.correct)}{expected}</p>"


def _edit(item: EditResult) -> str:
    images = [(picture(item.before, "before"), "before"), (picture(item.after, "after", frame=verdict(item.correct)), "made")]
    if item.expected is not None:
        images.append((picture(item.expected, "expected"), "expected"))
    return f"{_row(*images)}<p>{escape(item.instruction)} {mark(item.correct)}</p>"


def _infill(item: Infill) -> str:
    images = [
        (picture(item.original, "original"), "original"),
        (picture(item.masked, "with a part taken out"), "taken out"),
        (picture(item.filled, "filled in", frame=verdict(item.correct)), "filled in"),
    ]
    return f"{_row(*images)}<p>{escape(item.prompt)} {mark(item.correct)}</p>"


def _neighbors(item: NeighborRow) -> str:
    query = [(picture(item.query_image, "query", 72), "query")] if item.query_image is not None else []
    found = [(picture(image, text, 72), f"{score:.2f}") for image, text, score in item.neighbors if image is not None]
    return f"{_row(*query, *found)}<p>{escape(item.query_text)}</p>"


def _reconstructions(items: Sequence[Reconstruction]) -> str:
    if not items:
        return ""
    cells = []
    for item in items:
        after = picture(item.reconstruction, "from codes", 72, verdict(item.correct))
        cells.append(f"<figure>{picture(item.original, 'original', 72)}{after}</figure>")
    return f'<div class="row">{"".join(cells)}</div>'


def _curves(story: Story) -> str:
    charts = []
    for stage, columns in story.curves.items():
        steps = columns.get("step", ())
        names = [name for name in columns if name == "loss" or name.startswith("bits_per_")]
        bits = {name.removeprefix("bits_per_").replace("_", " "): (steps, columns[name]) for name in names if name != "loss"}
        lines = bits or {"loss": (steps, columns.get("loss", ()))}
        charts.append(chart(stage.replace("_", " "), lines, "bits" if bits else "loss"))
    shown = "".join(charts)
    return f'<div class="charts">{shown}</div>' if shown else ""


def _stages(story: Story) -> str:
    rows = [
        (name, f"{stage['seconds']:.0f}", f"{stage['peak_memory_bytes'] / 2**20:,.0f}") for name, stage in story.stages.items()
    ]
    total = ("all", f"{sum(stage['seconds'] for stage in story.stages.values()):.0f}", "")
    versions = ", ".join(f"{name} {version}" for name, version in story.versions.items())
    return table(("stage", "seconds", "peak memory (MiB)"), [*rows, total]) + f'<p class="soft">{escape(versions)}</p>'
