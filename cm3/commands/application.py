"""The tree of commands: what `cm3 --help` shows."""

from __future__ import annotations

import typer

from cm3.commands import chat, conversion, generation, inspection, retrieval, sft, training, vqgan

app = typer.Typer(
    name="cm3",
    help="Autoregressive token-based multimodal models: from pictures with captions to a model that draws, describes, "
    "answers and edits.\n\nStart with `cm3 quickstart`: it trains every stage on the embedded world (or on your pictures, "
    "--data DIR), evaluates, and writes a report and a model.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("quickstart")(training.quickstart)
app.command("generate")(generation.generate)
app.command("caption")(generation.caption)
app.command("ask")(generation.ask)
app.command("edit")(generation.edit)
app.command("infill")(generation.infill)
app.command("chat")(chat.chat)
app.command("tokenize")(training.tokenize)
app.command("train")(training.train)
app.command("eval")(training.evaluate)
app.command("convert")(conversion.convert)
app.command("list")(inspection.list_kind)
app.command("info")(inspection.info)
app.command("verify")(inspection.verify)
app.add_typer(vqgan.app, name="vqgan", help="Image tokenizers: train, evaluate, encode, decode, convert.")
app.add_typer(retrieval.app, name="retrieval", help="Memory banks: train an encoder, build, search, evaluate.")
app.add_typer(sft.app, name="sft", help="Instruction tuning: train, look at examples, check data.")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from cm3 import __version__

        print(f"cm3 {__version__}")
        raise typer.Exit
