"""`cm3 vqgan train | eval | encode | decode | convert`: image tokenizers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from cm3.commands.output import AsJson, Overrides, emit, table
from cm3.core.errors import InputError

app = typer.Typer(no_args_is_help=True)


@app.command("train")
def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file: data, out, preset, train …")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train an image tokenizer on pictures."""
    import vqgan
    from cm3.core.errors import UsageError
    from cm3.core.runfile import load_run

    config = load_run(vqgan.VQTrainConfig, run_file, overrides or [])
    if config.data is None or config.out is None:
        raise UsageError(f"{run_file} needs both `data` and `out`; add them or pass data=FOLDER out=FOLDER")
    tokenizer = vqgan.train(config)
    value = {"out": config.out, "codebook_size": tokenizer.codebook_size, "grid_shape": list(tokenizer.grid_shape)}
    emit(value, f"{config.out}: {tokenizer.codebook_size} codes, {tokenizer.grid_shape} per picture", as_json)


@app.command("eval")
def evaluate(
    tokenizer: Annotated[Path, typer.Argument(help="An image tokenizer folder.")],
    data: Annotated[str, typer.Argument(help="Pictures: a folder, WebDataset, JSONL.")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many pictures.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Measure reconstructions: PSNR, SSIM, codebook usage and perplexity, pictures per second."""
    import vqgan
    from cm3.documents.readers import read_documents

    opened = vqgan.from_pretrained(tokenizer)
    documents = read_documents(data)
    images = list(islice((segment.load() for document in documents for segment in document.images), limit))
    if not images:
        raise InputError(f"{data} holds no picture to evaluate on")
    figures = vqgan.evaluate(opened, images)
    emit(figures, table([{name: value for name, value in figures.items() if isinstance(value, int | float)}]), as_json)


@app.command("encode")
def encode(
    tokenizer: Annotated[Path, typer.Argument(help="An image tokenizer folder.")],
    data: Annotated[str, typer.Argument(help="Pictures: a folder, WebDataset, JSONL.")],
    out: Annotated[Path, typer.Argument(help="Folder for the documents with codes instead of pictures.")],
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode pictures; the result does not depend on it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Turn pictures into codes; an interrupted run goes on, every record is accounted for."""
    import vqgan

    config = vqgan.EncodeConfig(tokenizer=str(tokenizer), data=data, out=str(out), workers=workers)
    report = vqgan.encode_documents(config)
    text = f"{out}: {report.ok} documents encoded, {report.num_rejected} rejected"
    emit({"out": str(out), **report.to_json()}, text, as_json)


@app.command("decode")
def decode(
    tokenizer: Annotated[Path, typer.Argument(help="The image tokenizer folder the codes were made with.")],
    data: Annotated[Path, typer.Argument(help="Documents with codes (`cm3 vqgan encode`).")],
    out: Annotated[Path, typer.Argument(help="Folder for the documents with pictures.")],
    as_json: AsJson = False,
) -> None:
    """Turn codes back into pictures (PNG)."""
    import vqgan

    count = vqgan.decode_documents(vqgan.from_pretrained(tokenizer), data, out)
    emit({"out": str(out), "documents": count}, f"{out}: {count} documents decoded", as_json)


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint (file or folder), or one of our tokenizer folders.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tokenizer; for one of ours, the file to export to.")],
    format: Annotated[str | None, typer.Option("--from", help="The checkpoint's format; found out by default.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Export one of our folders in this format.")] = None,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the pictures it will be used with; checkpoints don't say.")
    ] = 256,
    as_json: AsJson = False,
) -> None:
    """Convert taming, LDM, LlamaGen, Chameleon, Janus and DALL-E checkpoints to ours, or ours to theirs with --to."""
    import vqgan

    if to is not None:
        path = vqgan.export(source, out, to)
        emit({"out": str(path)}, str(path), as_json)
        return
    made = vqgan.convert(source, out, format, image_size)
    value = {"out": str(out), "codebook_size": made.codebook_size, "grid_shape": list(made.grid_shape)}
    emit(value, f"{out}: {made.codebook_size} codes, {made.grid_shape} per picture", as_json)
