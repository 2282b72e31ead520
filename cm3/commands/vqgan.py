"""`cm3 vqgan train | eval | encode | decode | convert`: image tokenizers."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3.commands.output import AsJson, Budget, Overrides, account_of, emit, rejections, table, write_picture
from cm3.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from cm3.documents.report import ReadReport

app = typer.Typer(no_args_is_help=True)

Format = Annotated[str, typer.Option(help="jsonl (one file, pictures beside it) or webdataset (a tar per piece).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that go through the network at once.")]
PieceSize = Annotated[int, typer.Option(min=1, help="Documents that are made and kept together: what an interruption can cost.")]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda.")]


@app.command("train")
def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file: data, out, preset, train …")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train an image tokenizer on pictures."""
    import vqgan
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
    lpips: Annotated[
        Path | None, typer.Option(help="LPIPS weights (made by `cm3 vqgan convert --from lpips`): adds the perceptual distance.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="inception-2015-12-05.pt (adds rFID) or the folder of any transformers vision model (adds a Fréchet distance)."
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the worst and the best reconstructions to this PNG.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure reconstructions: PSNR, SSIM, codebook usage and perplexity, pictures per second; LPIPS and rFID where weights are.

    Errors are means over pictures after rounding to 8 bits. A Fréchet distance falls with the number of pictures: compare figures
    of equally many only. Weight maps (pictures named `regions`) are not measured; records that can't be read are counted.
    """
    import vqgan
    from cm3.core.storage import require_writable
    from cm3.documents.readers import read_documents
    from cm3.documents.report import ReadReport
    from vqgan.regions import training_images

    if picture is not None:  # before the work, not after it
        require_writable(picture.parent)
        if picture.is_dir():
            raise UsageError(f"--picture {picture} is a folder; name the PNG file to write")
    opened = vqgan.from_pretrained(tokenizer, device)
    judges = vqgan.open_judges(lpips, features, device)
    report = ReadReport()
    documents = read_documents(data, report=report)
    images = (segment.load() for document in documents for segment in training_images(document))
    first = next(images, None)
    if first is None:
        raise InputError(f"{data} holds no picture to evaluate on: {report.seen} records seen, {rejections(report.rejected)}")
    extremes = vqgan.Extremes()
    taken = chain([first], islice(images, limit - 1))
    figures: dict[str, Any] = vqgan.evaluate(opened, taken, batch_size, judges, extremes)
    figures |= {"seen": report.seen, "rejected": dict(report.rejected)}  # before looking whether there are more
    figures["limited"] = next(images, None) is not None
    if picture is not None:
        figures["picture"] = write_picture(extremes.picture(), picture)
    account = f"{figures['seen']} records seen, {rejections(figures['rejected'])}"
    if figures["limited"]:
        account += f"; stopped after {limit} pictures, there are more (-n)"
    shown = [{"figure": name, "value": value} for name, value in figures.items() if name not in ("seen", "rejected", "limited")]
    emit(figures, f"{table(shown)}\n{account}", as_json)


@app.command("encode")
def encode(
    tokenizer: Annotated[Path, typer.Argument(help="An image tokenizer folder.")],
    data: Annotated[str, typer.Argument(help="Pictures: a folder, WebDataset, JSONL, a table.")],
    out: Annotated[Path, typer.Argument(help="Folder for the documents with codes instead of pictures.")],
    format: Format = "jsonl",
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode pictures; the result does not depend on it.")] = 1,
    batch_size: BatchSize = 32,
    piece_size: PieceSize = 1024,
    budget: Budget = 0.01,
    draft: Annotated[bool, typer.Option(help="Decode large JPEGs at a fraction of their size: faster, lossy.")] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Turn pictures into codes; an interrupted run goes on, every record is accounted for.

    OUT gets the documents in FORMAT (every command reads them) and report.json, which says what became of every record.
    """
    import vqgan

    where = {"tokenizer": str(tokenizer), "data": data, "out": str(out), "format": format}
    how = {"workers": workers, "batch_size": batch_size, "piece_size": piece_size, "budget": budget, "device": device}
    _emit_account(vqgan.encode_documents(vqgan.EncodeConfig(**where, **how, draft=draft)), out, "encoded", as_json)


@app.command("decode")
def decode(
    tokenizer: Annotated[Path, typer.Argument(help="The image tokenizer folder the codes were made with.")],
    data: Annotated[str, typer.Argument(help="Documents with codes (`cm3 vqgan encode`): a folder, WebDataset, JSONL.")],
    out: Annotated[Path, typer.Argument(help="Folder for the documents with pictures.")],
    format: Format = "jsonl",
    workers: Annotated[int, typer.Option(min=1, help="Threads that compress PNG; the result does not depend on it.")] = 1,
    batch_size: BatchSize = 32,
    piece_size: PieceSize = 1024,
    budget: Budget = 0.01,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Turn codes back into pictures (PNG); an interrupted run goes on, every record is accounted for.

    OUT gets the documents in FORMAT (jsonl: pictures in OUT/images) and report.json, which says what became of every record.
    """
    import vqgan

    where = {"tokenizer": str(tokenizer), "data": data, "out": str(out), "format": format}
    how = {"workers": workers, "batch_size": batch_size, "piece_size": piece_size, "budget": budget, "device": device}
    _emit_account(vqgan.decode_documents(vqgan.DecodeConfig(**where, **how)), out, "decoded", as_json)


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A published checkpoint (file or folder), or one of our tokenizer folders.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tokenizer; with --to, the file or folder to export to.")],
    format: Annotated[str | None, typer.Option("--from", help="The checkpoint's format; found out by default.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Export one of our folders in this format.")] = None,
    lins: Annotated[Path | None, typer.Option(help="With --from lpips: LPIPS's vgg.pth; SOURCE is VGG16's.")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the pictures it will be used with; checkpoints don't say.", show_default="256"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert taming, LDM, LlamaGen, Chameleon, Janus and DALL-E checkpoints to ours, or ours to theirs with --to.

    --to taming, llamagen, dalle write one .safetensors file; janus and chameleon also a folder for transformers.
    --from lpips joins torchvision's VGG16 (SOURCE) and LPIPS's vgg.pth (--lins) to the weight file of the perceptual loss.
    """
    import vqgan
    from vqgan.conversion.convert import DEFAULT_IMAGE_SIZE

    if (format == "lpips") != (lins is not None):
        raise UsageError("--from lpips goes with --lins: SOURCE is torchvision's VGG16, --lins is LPIPS's vgg.pth")
    if to is not None and format is not None:
        raise UsageError("--from and --to exclude each other: --to reads a tokenizer folder of ours; leave --from out")
    if image_size is not None and (to is not None or lins is not None):
        raise UsageError("--image-size is of a tokenizer that is converted to ours; leave it out with --to and --lins")
    if lins is not None or to is not None:
        path = vqgan.convert_lpips(source, lins, out) if lins is not None else vqgan.export(source, out, str(to))
        emit({"out": str(path)}, str(path), as_json)
        return
    made = vqgan.convert(source, out, format, image_size or DEFAULT_IMAGE_SIZE)
    value = {"out": str(out), "codebook_size": made.codebook_size, "grid_shape": list(made.grid_shape)}
    emit(value, f"{out}: {made.codebook_size} codes, {made.grid_shape} per picture", as_json)


def _emit_account(report: ReadReport, out: Path, done: str, as_json: bool) -> None:
    text = f"{out}: {report.ok} documents {done}, {rejections(report.rejected)}"
    emit({"out": str(out), **account_of(report)}, text, as_json)
