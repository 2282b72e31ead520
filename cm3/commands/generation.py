"""`cm3 generate | caption | ask | edit | infill`: what a model folder does with words and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3.commands.drawing import Count, Drawing, Temperature, given, takes_drawing
from cm3.commands.output import AsJson, emit, warnings_said, write_picture
from cm3.core.errors import InputError, UsageError
from cm3.core.storage import require_writable

if TYPE_CHECKING:
    from PIL.Image import Image

    from cm3.pipeline import CM3Pipeline, DrawnPicture

Model = Annotated[Path, typer.Argument(help="A model folder (`cm3 quickstart` writes one).")]
Picture = Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP, GIF or BMP.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed; the same seed draws the same.")]
Out = Annotated[Path, typer.Option(help="Folder for the pictures.")]
Infill = Annotated[
    bool,
    typer.Option(
        help="Let the model fill in a missing text, as in pretraining, instead of answering; for a model that has seen infilling "
        "of texts lately: tuned on answers alone, it goes on and on."
    ),
]
Int8 = Annotated[bool, typer.Option("--int8", help="Round the weights to 8 bits: lossy, a seed may draw another picture.")]


@takes_drawing
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to draw, in words.")],
    drawing: Drawing,
    n: Count = 4,
    retrieve: Annotated[int, typer.Option(min=0, help="Put so many documents of the memory before the prompt.")] = 0,
    int8: Int8 = False,
    seed: Seed = 0,
    out: Out = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Draw pictures of what PROMPT says.

    With --best-of, every candidate's seed and score are printed by --json. The same seed draws the same picture, alone or among
    others, whatever --window is.
    """
    options = drawing.options()
    require_writable(out)  # before the work, not after it
    pipe = _open(model, int8, drawing.compiled)
    started = time.perf_counter()
    with warnings_said():
        drawn = pipe.draw(prompt, n, seed=seed, retrieve=retrieve, **options)
    seconds = time.perf_counter() - started
    images = [_written(picture, out / f"{seed}-{index}.png") for index, picture in enumerate(drawn)]
    tokens = n * drawing.best_of * pipe.vocab.num_image_tokens
    value = {"images": images, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds, 1)}
    emit(value, "\n".join(entry["path"] for entry in images), as_json)


def caption(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Pictures to describe.")],
    seed: Seed = 0,
    temperature: Temperature = None,
    infill: Infill = False,
    as_json: AsJson = False,
) -> None:
    """Describe pictures in words."""
    pictures = [_picture(image) for image in images]
    pipe = _open(model)
    options = given({"temperature": temperature})
    texts = [pipe.caption(picture, seed=seed, infill=infill, **options) for picture in pictures]
    if as_json and len(images) > 1:
        emit([{"image": str(image), "text": text} for image, text in zip(images, texts)], "", as_json)
        return
    lines = texts if len(images) == 1 else [f"{image}: {text}" for image, text in zip(images, texts)]
    emit({"text": texts[0]}, "\n".join(lines), as_json)


def ask(
    model: Model,
    image: Picture,
    question: Annotated[str, typer.Argument(help="A question about the picture.")],
    seed: Seed = 0,
    infill: Infill = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print what leads to the answer before it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a picture."""
    picture = _picture(image)
    if explain and infill:
        raise UsageError("--explain and --infill do not go together: what fills a gap is the answer alone; give one of them")
    pipe = _open(model)
    text = pipe.explain(picture, question, seed=seed) if explain else pipe.ask(picture, question, seed=seed, infill=infill)
    emit({"text": text}, text, as_json)


@takes_drawing
def edit(
    model: Model,
    image: Picture,
    instruction: Annotated[str, typer.Argument(help="What to change, in words.")],
    drawing: Drawing,
    n: Count = 1,
    image_guidance: Annotated[float | None, typer.Option(help="Guidance scale towards the given picture.")] = None,
    seed: Seed = 0,
    out: Out = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Change a picture as INSTRUCTION says.

    A single picture is the likeliest one; several, and the candidates of --best-of, are drawn at random, by --temperature.
    """
    options = {**drawing.options(), **given({"image_guidance": image_guidance})}
    require_writable(out)
    picture = _picture(image)
    with warnings_said():
        drawn = _open(model, compiled=drawing.compiled).draw_edits(picture, instruction, seed, n=n, **options)
    _emit_changed(drawn, out / f"{image.stem}-edit-{seed}.png", as_json)


@takes_drawing
def infill(
    model: Model,
    image: Picture,
    drawing: Drawing,
    box: Annotated[
        list[str] | None, typer.Option(help="A region as x0,y0,x1,y1 in pixels of the picture; repeat it for several.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="The region as a picture of the same size: light is filled in.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the whole picture shows, in words.")] = None,
    n: Count = 1,
    seed: Seed = 0,
    out: Out = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Fill a region of a picture in anew; everything outside of it keeps its codes.

    A single picture is the likeliest one; several, and the candidates of --best-of, are drawn at random, by --temperature.
    """
    region, options = [_box(text) for text in box] if box else None, drawing.options()
    require_writable(out)
    picture, marked = _picture(image), None if mask is None else _picture(mask)
    with warnings_said():
        drawn = _open(model, compiled=drawing.compiled).draw_infills(picture, marked, prompt, region, seed, n=n, **options)
    _emit_changed(drawn, out / f"{image.stem}-infill-{seed}.png", as_json)


def _emit_changed(drawn: Sequence[DrawnPicture], path: Path, as_json: bool) -> None:
    """Write one picture to `path`, several beside it with their numbers; a choice among candidates is told as by `generate`."""
    paths = [path, *(path.with_stem(f"{path.stem}-{number}") for number in range(1, len(drawn)))]
    entries = [_written(picture, place) for picture, place in zip(drawn, paths)]
    single = len(entries) == 1 and not drawn[0].candidates
    value = {name: entries[0][name] for name in ("path", "codes")} if single else {"images": entries}
    emit(value, "\n".join(entry["path"] for entry in entries), as_json)


def _open(model: Path, int8: bool = False, compiled: bool = False) -> CM3Pipeline:
    from cm3.decode import DecodingEngine
    from cm3.pipeline import CM3Pipeline

    pipe = CM3Pipeline.from_pretrained(model, int8=int8)
    if compiled:
        pipe.engine = DecodingEngine(pipe.model, pipe.vocab, compile_steps=True)
    return pipe


def _picture(path: Path) -> Image:
    """The picture at `path`; errors say which one it was."""
    from cm3.documents.images import decode_image

    try:
        return decode_image(path)
    except InputError as error:
        said = str(error)
        raise InputError(said if str(path) in said else f"{path}: {said}") from None


def _box(text: str) -> tuple[int, ...]:
    try:
        corners = tuple(int(part) for part in text.split(","))
    except ValueError:
        corners = ()
    if len(corners) != 4:
        raise UsageError(f"--box is {text!r}, expected four whole numbers x0,y0,x1,y1")
    return corners


def _written(drawn: DrawnPicture, path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": write_picture(drawn.image, path), "seed": list(drawn.seed), "score": drawn.score}
    entry["codes"] = drawn.codes.tolist()
    if drawn.candidates:
        entry["candidates"] = [{"seed": list(other.seed), "score": other.score} for other in drawn.candidates]
    return entry
