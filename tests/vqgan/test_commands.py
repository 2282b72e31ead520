"""`cm3 vqgan eval | encode | decode | convert` as typed: what is printed, what is written, and mistakes in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from cm3.documents.readers import read_documents
from vqgan.config import VQConfig
from vqgan.losses.lpips import LPIPS
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

CONFIG = VQConfig(image_size=24, codebook_size=64, codebook_dim=8, network_options={"width": 16})


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return VQTokenizer(VQModel(CONFIG)).save(tmp_path / "tokenizer")


def test_eval_prints_what_its_judges_say_and_draws_the_extremes(
    command: Any, tokenizer: Path, picture_folder: Path, tmp_path: Path
) -> None:
    save_file(LPIPS().state_dict(), tmp_path / "lpips.safetensors")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTModel(ViTConfig(**small, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    judges = ["--lpips", "lpips.safetensors", "--features", "vit", "--picture", "sheet.png"]
    figures = json.loads(command.works("vqgan", "eval", tokenizer, picture_folder, "-n", "20", *judges, "--json"))
    assert {"psnr_db", "ssim", "l1", "usage", "perplexity", "images_per_s", "lpips", "frechet_distance"} <= figures.keys()
    assert "rfid" not in figures  # only Inception's distance is called so
    assert (figures["images"], figures["picture"]) == (20, "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 26 + 2, 2 * 54 + 2)
    assert "psnr_db" in command.works("vqgan", "eval", tokenizer, picture_folder, "-n", "3")
    command.fails(2, ["no LPIPS weights at nothing"], "vqgan", "eval", tokenizer, picture_folder, "--lpips", "nothing")


def test_eval_knows_before_measuring_whether_its_picture_can_be_written(
    command: Any, tokenizer: Path, picture_folder: Path, tmp_path: Path
) -> None:
    command.works("vqgan", "eval", tokenizer, picture_folder, "-n", "3", "--picture", "new/folder/sheet.png")
    with Image.open(tmp_path / "new" / "folder" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    unopened = ("vqgan", "eval", "no-tokenizer", picture_folder, "--picture")  # nothing is opened before the place is checked
    command.fails(5, [str(picture_folder / "000.png"), "cannot be written"], *unopened, picture_folder / "000.png" / "sheet.png")
    command.fails(2, ["is a folder", "PNG"], *unopened, "new")


def test_eval_accounts_for_every_record(command: Any, tokenizer: Path, picture_folder: Path) -> None:
    for number in (3, 5):
        (picture_folder / f"{number:03}.png").write_bytes(b"GIF89a cut off")
    figures = json.loads(command.works("vqgan", "eval", tokenizer, picture_folder, "--json"))
    assert (figures["images"], figures["seen"], sum(figures["rejected"].values()), figures["limited"]) == (38, 40, 2, False)
    assert "40 records seen, 2 rejected (" in command.works("vqgan", "eval", tokenizer, picture_folder)
    assert "stopped after 38 pictures" not in command.works("vqgan", "eval", tokenizer, picture_folder, "-n", "38")
    said = command.works("vqgan", "eval", tokenizer, picture_folder, "-n", "3")
    assert "3 records seen, 0 rejected; stopped after 3 pictures, there are more" in said


def test_weight_maps_are_neither_measured_nor_encoded(command: Any, tokenizer: Path, tmp_path: Path) -> None:
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (24, 24), color).save(tmp_path / f"{number}.png")
        Image.new("L", (24, 24), 90).save(tmp_path / f"map{number}.png")
    lines = [
        {
            "id": str(number),
            "segments": [{"type": "image", "path": f"{kind}{number}.png"} for kind in ("", "map")],
            "meta": {"images": ["image", "regions"]},
        }
        for number in range(2)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert json.loads(command.works("vqgan", "eval", tokenizer, "data.jsonl", "--json"))["images"] == 2
    command.works("vqgan", "encode", tokenizer, "data.jsonl", "codes")
    for document, line in zip(read_documents(tmp_path / "codes"), lines, strict=True):
        picture, weights = document.images
        assert picture.codes is not None
        assert weights.codes is None
        assert weights.load().convert("L").getpixel((0, 0)) == 90
        assert document.meta["images"] == line["meta"]["images"]


def test_encode_has_a_budget(command: Any, tokenizer: Path, picture_folder: Path) -> None:
    (picture_folder / "003.png").write_bytes(b"GIF89a cut off")
    command.fails(3, ["1 of 40", "budget", "report.json"], "vqgan", "encode", tokenizer, picture_folder, "codes")
    made = json.loads(command.works("vqgan", "encode", tokenizer, picture_folder, "codes", "--budget", "0.1", "--json"))
    assert (made["ok"], sum(made["rejected"].values())) == (39, 1)
    assert "39 documents decoded" in command.works("vqgan", "decode", tokenizer, "codes", "pictures-again")


def test_codes_go_through_shards_and_back(command: Any, tokenizer: Path, picture_folder: Path, tmp_path: Path) -> None:
    shards = ["--format", "webdataset", "--piece-size", "16", "--workers", "2"]
    assert "codes: 40 documents encoded, 0 rejected" in command.works(
        "vqgan", "encode", tokenizer, picture_folder, "codes", *shards
    )
    assert sorted(path.name for path in (tmp_path / "codes").glob("*.tar")) == [f"{number:06}.tar" for number in range(3)]
    command.works("verify", "codes")
    made = json.loads(command.works("vqgan", "decode", tokenizer, "codes/{000000..000001}.tar", "pictures-again", "--json"))
    assert (made["seen"], made["ok"], made["rejected"]) == (32, 32, {})
    with Image.open(tmp_path / "pictures-again" / "images" / "031.0.png") as image:
        assert image.size == (24, 24)
    command.fails(2, ["not the result of this job"], "vqgan", "decode", tokenizer, "codes", "pictures-again")
    other = VQTokenizer(VQModel(CONFIG.model_copy(update={"codebook_size": 8}))).save(tmp_path / "other")
    command.fails(3, ["wrong_codes", "the budget is 1.00%", "in [0, 8)"], "vqgan", "decode", other, "codes", "others")
    command.fails(2, ["unknown writer 'tar'", "webdataset"], "vqgan", "encode", tokenizer, picture_folder, "x", "--format", "tar")


def test_a_tokenizer_without_decoder_encodes_and_says_that_it_cannot_draw(
    command: Any, picture_folder: Path, tmp_path: Path
) -> None:
    half = VQTokenizer(VQModel(CONFIG.model_copy(update={"decoder": False}))).save(tmp_path / "half")
    command.works("vqgan", "encode", half, picture_folder, "codes")
    said = command.fails(2, ["has no decoder", "convert a checkpoint that holds one"], "vqgan", "decode", half, "codes", "drawn")
    assert said == command.fails(2, [], "vqgan", "eval", half, picture_folder)
    assert not (tmp_path / "drawn").exists()


def test_convert_joins_the_lpips_files(command: Any, tmp_path: Path) -> None:
    state = LPIPS().state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name.startswith("features.")}, tmp_path / "vgg16.pth")
    lins = {f"lin{k}.model.1.weight": state[f"lins.{k}"].view(1, -1, 1, 1) for k in range(5)}
    torch.save(lins, tmp_path / "vgg.pth")
    command.works("vqgan", "convert", "vgg16.pth", "lpips.safetensors", "--from", "lpips", "--lins", "vgg.pth")
    assert load_file(tmp_path / "lpips.safetensors").keys() == state.keys()
    command.fails(2, ["--from lpips goes with --lins"], "vqgan", "convert", "vgg16.pth", "x", "--from", "lpips")
