"""`cm3 generate | caption | ask | edit | infill`: what a model folder does with words and pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
Strategy = Annotated[str | None, typer.Option(help="Decoding strategy (`cm3 list strategies`).")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")]
Temperature = Annotated[float | None, typer.Option(help="Above 0; 0 takes the most likely code, always.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest codes that make up this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest codes; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option(help="Keep codes at least this share as likely as the likeliest; 0 keeps all.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1, codes that were drawn before become less likely.")]
Window = Annotated[
    int | None, typer.Option(min=1, help="Try so many tokens of a picture per step: fewer steps, the same picture.")
]
Infill = Annotated[
    bool,
    typer.Option(
        help="Let the model fill in a missing text, as in pretraining, instead of answering; for a model that has seen infilling "
        "of texts lately: tuned on answers alone, it goes on and on."
    ),
]
Int8 = Annotated[bool, typer.Option("--int8", help="Round the weights to 8 bits: lossy, a seed may draw another picture.")]
Option = Annotated[list[str] | None, typer.Option("--option", help="A field of the strategy, as name=value; repeatable.")]


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to draw, in words.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many pictures.")] = 4,
    best_of: Annotated[
        int, typer.Option(min=1, help="Draw so many candidates for each and keep what the encoder likes best.")
    ] = 1,
    rerank: Annotated[
        str, typer.Option(help="Who judges candidates: encoder (CLIP), or likelihood (the model itself).")
    ] = "encoder",
    retrieve: Annotated[int, typer.Option(min=0, help="Put so many documents of the memory before the prompt.")] = 0,
    strategy: Strategy = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    window: Window = None,
    option: Option = None,
    int8: Int8 = False,
    seed: Seed = 0,
    out: Out = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Draw pictures of what PROMPT says.

    With --best-of, every candidate's seed and score are printed by --json. The same seed draws the same picture, alone or among
    others, whatever --window is.
    """
    named = {"strategy": strategy, "guidance": guidance, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options = _given({**named, "min_p": min_p, "repetition_penalty": repetition_penalty, "window": window})
    if option:
        options["strategy_options"] = dict(_field(text) for text in option)
    require_writable(out)  # before the work, not after it
    pipe = _open(model, int8)
    started = time.perf_counter()
    with warnings_said():
        drawn = pipe.draw(prompt, n, best_of, seed, retrieve, rerank, **options)
    seconds = time.perf_counter() - started
    images = [_written(picture, out / f"{seed}-{index}.png") for index, picture in enumerate(drawn)]
    tokens = n * best_of * pipe.vocab.num_image_tokens
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
    options = _given({"temperature": temperature})
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


def edit(
    model: Model,
    image: Picture,
    instruction: Annotated[str, typer.Argument(help="What to change, in words.")],
    guidance: Guidance = None,
    image_guidance: Annotated[float | None, typer.Option(help="Guidance scale towards the given picture.")] = None,
    seed: Seed = 0,
    out: Out = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Change a picture as INSTRUCTION says."""
    options = _given({"guidance": guidance, "image_guidance": image_guidance})
    require_writable(out)
    picture = _picture(image)
    with warnings_said():
        drawn = _open(model).draw_edit(picture, instruction, seed, **options)
    entry = _written(drawn, out / f"{image.stem}-edit-{seed}.png")
    emit({"path": entry["path"], "codes": entry["codes"]}, entry["path"], as_json)


def infill(
    model: Model,
    image: Picture,
    box: Annotated[
        list[str] | None, typer.Option(help="A region as x0,y0,x1,y1 in pixels of the picture; repeat it for several.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="The region as a picture of the same size: light is filled in.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the whole picture shows, in words.")] = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    out: Out = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Fill a region of a picture in anew; everything outside of it keeps its codes."""
    region = [_box(text) for text in box] if box else None
    options = _given({"temperature": temperature})
    require_writable(out)
    picture, marked = _picture(image), None if mask is None else _picture(mask)
    drawn = _open(model).draw_infill(picture, marked, prompt, region, seed, **options)
    entry = _written(drawn, out / f"{image.stem}-infill-{seed}.png")
    emit({"path": entry["path"], "codes": entry["codes"]}, entry["path"], as_json)


def _open(model: Path, int8: bool = False) -> CM3Pipeline:
    from cm3.pipeline import CM3Pipeline

    return CM3Pipeline.from_pretrained(model, int8=int8)


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


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; those that were not keep the pipeline's defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option {text!r} has no '='; write it as name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _written(drawn: DrawnPicture, path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": write_picture(drawn.image, path), "seed": list(drawn.seed), "score": drawn.score}
    entry["codes"] = drawn.codes.tolist()
    if drawn.candidates:
        entry["candidates"] = [{"seed": list(other.seed), "score": other.score} for other in drawn.candidates]
    return entry
