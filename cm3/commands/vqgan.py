"""`cm3 vqgan train | eval`: image tokenizers."""

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
