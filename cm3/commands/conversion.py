"""`cm3 convert`: models of other projects to ours, and ours to theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cm3.commands.output import AsJson, emit
from cm3.core.errors import UsageError


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder, or with --to a model folder of ours.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write, or with --to the new checkpoint folder.")],
    format: Annotated[str | None, typer.Option("--from", help="The source's format; found out by default.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Write a model folder of ours in this format.")] = None,
    image_tokenizer: Annotated[
        Path | None,
        typer.Option("--image-tokenizer", help="A vqgan.ckpt or a tokenizer folder, for a source that cannot make pictures."),
    ] = None,
    shards: Annotated[int, typer.Option("--shards", min=1, help="With --to: model-parallel files.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Convert Chameleon and Anole checkpoints (original shards or transformers layout) to a model folder, or back with --to.

    The result generates and trains pictures as well as text. Weights keep their dtype; memory stays near two gigabytes
    whatever the model's size (writing original shards holds one shard).

    \b
      cm3 convert chameleon/models/7b my-chameleon            # tokenizer/ stands beside models/
      cm3 convert Anole-7b-hf my-anole
      cm3 convert chameleon-7b-hf my-chameleon --image-tokenizer vqgan.ckpt
      cm3 convert my-anole anole-hf --to chameleon

    `cm3 list model-formats` names the formats.
    """
    from cm3 import model_conversion

    if to is not None and format is not None:
        raise UsageError("--from and --to exclude each other: --to reads a model folder of ours; leave --from out")
    if to is None and shards != 1:
        raise UsageError("--shards says how many files to write with --to; for reading they are counted; leave it out")
    if to is not None:
        done = model_conversion.export(source, out, to, shards, image_tokenizer)
    else:
        done = model_conversion.convert(source, out, format, image_tokenizer)
    value = {"out": str(done.path), "format": done.format, "parameters": done.parameters}
    way = "written as" if to is not None else "converted from"
    emit(value, f"{done.path}: {done.parameters:,} parameters, {way} {done.format}", as_json)
