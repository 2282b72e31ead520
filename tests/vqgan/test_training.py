"""Training from a folder of pictures to a tokenizer folder: it learns, resumes with equal bits, plays the adversarial game."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vqgan
from cm3.core.errors import UsageError
from cm3.core.seeding import derive_seed
from cm3.train import trial
from cm3.train.config import TrainConfig
from cm3.train.task import Shard
from vqgan.codebook_monitor import HORIZON
from vqgan.config import LossConfig, VQConfig, VQTrainConfig
from vqgan.losses.lpips import LPIPS
from vqgan.model import VQModel
from vqgan.pictures import Pictures, read_pictures
from vqgan.quantizers import QUANTIZERS
from vqgan.task import VQTask
from vqgan.training import train

Draw = Callable[[int], Image.Image]
TOKENIZER = {"image_size": 24, "codebook_size": 16, "codebook_dim": 8, "network_options": {"width": 16}}


def _config(folder: Path, steps: int = 20, loss: dict[str, object] | None = None, **changes: object) -> VQTrainConfig:
    settings = {
        "data": str(folder),
        "tokenizer": TOKENIZER,
        "batch_size": 8,
        "validation_fraction": 0.1,
        "loss": loss or {},
        "train": TrainConfig.model_validate({"steps": steps, "learning_rate": 3e-3, "weight_decay": 0.0, "log_every": 5}),
    }
    return VQTrainConfig.model_validate({**settings, **changes})


def _evaluations(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "eval"]


def _task(folder: Path, tmp_path: Path, **changes: object) -> VQTask:
    config = _config(folder, **changes)
    torch.manual_seed(0)
    model = VQModel(config.resolve())
    return VQTask(model, config, read_pictures(config, config.resolve(), tmp_path))


@pytest.mark.parametrize("quantizer", ["ema", "cosine"])
def test_two_processes_share_the_statistics_of_the_codebook(
    quantizer: str, picture_folder: Path, tmp_path: Path, on_two: Callable[[Callable[[], object]], list[int]]
) -> None:
    settings = TrainConfig.model_validate({"steps": 1, "device": "cpu"})
    config = _config(picture_folder, tokenizer={**TOKENIZER, "quantizer": quantizer}, train=settings)
    train(config, tmp_path / "alone")
    assert on_two(lambda: train(config, tmp_path / "shared")) == [0, 0]
    alone, shared = (vqgan.from_pretrained(tmp_path / name).model.state_dict() for name in ("alone", "shared"))
    for name in ("cluster_size", "embed_avg"):
        key = f"quantizer.library._codebook.{name}"
        torch.testing.assert_close(shared[key], alone[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantizer", QUANTIZERS.names())
def test_an_estimate_leaves_no_trace(quantizer: str, picture_folder: Path, tmp_path: Path) -> None:
    sizes = {"fsq": {"codebook_size": 240}}.get(quantizer, {})
    loss = {"adversarial": 0.1, "adversarial_start": 0, "discriminator_layers": 1}
    task = _task(picture_folder, tmp_path, tokenizer={**TOKENIZER, "quantizer": quantizer, **sizes}, loss=loss)
    before = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in task.modules.items()}
    draws = torch.get_rng_state()
    trial.try_example(task, 8, step=HORIZON)
    assert torch.equal(torch.get_rng_state(), draws)
    for name, part in task.modules.items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())


@pytest.mark.parametrize("loss", [{}, {"adversarial": 0.1, "adversarial_start": 0, "discriminator_layers": 1}])
def test_a_run_that_cannot_fit_is_refused_with_what_makes_it_fit(
    loss: dict[str, object], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(picture_folder, tmp_path, loss=loss)
    one = trial.try_example(task, 8, step=HORIZON)
    found = trial.estimate_by_trial(task, task.config.train, trial.Examples(8, "pictures", step=HORIZON), str)
    assert found.step_bytes >= 8 * one.kept_bytes // 2 > 8 * 24 * 24 * 3
    room = (found.state_bytes + found.step_bytes // 3) / trial.USABLE_SHARE  # for two pictures and a half
    monkeypatch.setattr(trial, "available_memory", lambda device: int(room))
    with pytest.raises(UsageError, match=r"are free; set train\.accumulation_steps=4$"):
        train(_config(picture_folder, loss=loss), tmp_path / "out")
    assert not (tmp_path / "out-run" / "checkpoints").exists()
    settings = {"steps": 1, "accumulation_steps": 4}
    train(_config(picture_folder, loss=loss, train=TrainConfig.model_validate(settings)), tmp_path / "out")
    monkeypatch.setattr(trial, "available_memory", lambda device: found.state_bytes)
    with pytest.raises(UsageError, match="choose a smaller preset"):
        train(_config(picture_folder, loss=loss), tmp_path / "other")


@pytest.mark.parametrize(("side", "at_once"), [(24, 64), (96, 64), (256, 9), (512, 2), (1024, 1)])
def test_large_pictures_are_evaluated_a_few_at_a_time(side: int, at_once: int) -> None:
    assert Pictures(["a"], np.zeros((1, 3, side, side), np.uint8)).at_once == at_once


def test_from_pictures_to_a_tokenizer(picture_folder: Path, tmp_path: Path, block_picture: Draw) -> None:
    started = train(_config(picture_folder, steps=1), tmp_path / "start")
    trained = train(_config(picture_folder, steps=40), tmp_path / "trained")
    images = [block_picture(number) for number in range(500, 532)]
    before, after = vqgan.evaluate(started, images), vqgan.evaluate(trained, images)
    assert after["psnr_db"] > before["psnr_db"] + 0.3
    loaded = vqgan.from_pretrained(tmp_path / "trained")
    pixels = loaded.preprocess(images)
    assert torch.equal(loaded.encode(pixels), trained.encode(pixels))
    run = tmp_path / "trained-run"
    assert _evaluations(run)[-1]["psnr_db"] > 10
    assert json.loads((run / "run.json").read_text())["tokenizer"]["image_size"] == 24
    assert json.loads((run / "reading.json").read_text())["ok"] == 40
    assert list((run / "pictures").iterdir())


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(picture_folder: Path, tmp_path: Path) -> None:
    loss = {"adversarial": 0.5, "adversarial_start": 2, "discriminator_channels": 4, "discriminator_layers": 1, "lecam": 0.1}
    whole = _config(picture_folder, steps=8, loss=loss)
    train(whole, tmp_path / "whole")
    halves = whole.model_copy(update={"train": whole.train.model_copy(update={"checkpoint_every": 4})})
    train(halves, tmp_path / "halves")
    checkpoints = tmp_path / "halves-run" / "checkpoints"
    for file in (checkpoints / "step-00000008").iterdir():
        file.unlink()
    (checkpoints / "step-00000008").rmdir()
    train(halves, tmp_path / "halves")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert weights[0] == weights[1]


def test_another_task_does_not_go_on_in_a_run_folder(picture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(_config(picture_folder, steps=1), out)
    watched = [out / "manifest.json", *((tmp_path / "out-run") / name for name in ("run.json", "reading.json"))]
    before = [path.read_bytes() for path in watched]
    changes: dict[str, dict[str, Any]] = {
        "data.fingerprint=": {"max_images": 39},
        "tokenizer.network_options.width=16, this run has 24": {"tokenizer": {**TOKENIZER, "network_options": {"width": 24}}},
        "loss.l1=0.5, this run has 0.25": {"loss": {"l1": 0.25}},
        "batch_size=8, this run has 4": {"batch_size": 4},
        "flip=false, this run has true": {"flip": True},
    }
    for named, changed in changes.items():
        with pytest.raises(UsageError, match=f"step-00000001 was made with {named}"):
            train(_config(picture_folder, steps=1, **changed), out)
    assert [path.read_bytes() for path in watched] == before
    moved = picture_folder.rename(tmp_path / "moved")
    assert train(_config(moved, steps=1, workers=2, memory_limit_gib=0.0), out).codebook_size == 16


def test_weights_of_lpips_count_by_their_content(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqgan.task.load_lpips", lambda path: None)
    settings = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        loss = {"perceptual": "lpips", "lpips_weights": str(tmp_path / name)}
        settings.append(_task(picture_folder, tmp_path, loss=loss).settings())
    assert settings[0] == settings[1] != settings[2]


def test_the_adversary_starts_when_it_should(picture_folder: Path, tmp_path: Path) -> None:
    loss = {"adversarial": 1.0, "adversarial_start": 3, "discriminator_channels": 4, "discriminator_layers": 1}
    task = _task(picture_folder, tmp_path, loss=loss)
    assert list(task.parameter_groups()) == ["model", "discriminator"]
    before = task.batch(2, Shard(0, 1))
    assert "adversarial" not in task.loss("model", before, 2)[1]
    assert task.loss("discriminator", before, 2)[0] is None
    after = task.batch(3, Shard(0, 1))
    assert "adversarial" in task.loss("model", after, 3)[1]
    discriminator_loss, metrics = task.loss("discriminator", after, 3)
    assert discriminator_loss is not None
    discriminator_loss.backward()
    assert {"real", "fake"} <= set(metrics)
    assert all(parameter.grad is None for parameter in task.modules["model"].parameters())


def test_shards_are_the_parts_of_a_step(picture_folder: Path, tmp_path: Path) -> None:
    task = _task(picture_folder, tmp_path)
    whole = task.batch(4, Shard(0, 1)).arrays
    parts = [task.batch(4, Shard(index, 2)).arrays for index in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    with pytest.raises(UsageError, match="3 equal parts"):
        task.batch(0, Shard(0, 3))


def test_flipping_mirrors_about_half(picture_folder: Path, tmp_path: Path) -> None:
    plain = _task(picture_folder, tmp_path)
    flipped = _task(picture_folder, tmp_path, flip=True)
    mirrored = 0
    for step in range(8):
        before, after = plain.batch(step, Shard(0, 1)).arrays, flipped.batch(step, Shard(0, 1)).arrays
        for original, picture in zip(before, after):
            assert torch.equal(picture, original) or torch.equal(picture, original.flip(-1))
            mirrored += not torch.equal(picture, original)
    assert 16 < mirrored < 48  # of 64; fixed seed


def test_nothing_held_out_gives_no_figures(picture_folder: Path, tmp_path: Path) -> None:
    tokenizer = train(_config(picture_folder, steps=1, validation_fraction=0), tmp_path / "out")
    [record] = _evaluations(tmp_path / "out-run")
    assert record.keys() == {"kind", "step", "seconds"}
    [picture] = (tmp_path / "out-run" / "pictures").iterdir()
    assert picture.stem == "step-00000001-reconstructions_of_training_pictures"
    assert tokenizer.codebook_size == 16


def test_a_frozen_encoder_keeps_its_codes(picture_folder: Path, tmp_path: Path, block_picture: Draw) -> None:
    images = [block_picture(number) for number in range(16)]
    codes = []
    for steps in (1, 10):
        tokenizer = train(_config(picture_folder, steps=steps, freeze_encoder=True), tmp_path / f"steps{steps}")
        codes.append(tokenizer.encode(tokenizer.preprocess(images)))
    assert torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("quantizer", ["ema", "cosine", "rotation"])
def test_a_frozen_encoder_keeps_its_codebook(quantizer: str, picture_folder: Path, tmp_path: Path) -> None:
    """Moving averages and restarts write without gradients."""
    tokenizer = {**TOKENIZER, "quantizer": quantizer, "quantizer_options": {"restart_below": 0.5}}
    settings = TrainConfig.model_validate({"steps": 24, "eval_every": 8, "tensorboard": False})
    config = _config(picture_folder, tokenizer=tokenizer, freeze_encoder=True, train=settings, initialize_from_data=False)
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    started = VQModel(config.resolve()).state_dict()
    trained = train(config, tmp_path / "out").model.state_dict()
    changed = {name.split(".")[0] for name in started if not torch.equal(started[name], trained[name])}
    assert changed == {"post_quant_conv", "decoder"}


QUANTIZERS: dict[str, dict[str, object]] = {
    "vq": {},
    "ema": {},
    "cosine": {},
    "rotation": {},
    "ibq": {},
    "lfq": {"codebook_dim": 4},
    "gumbel": {},
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_trains_in_bf16(name: str, picture_folder: Path, tmp_path: Path, block_picture: Draw) -> None:
    """The networks are in bf16, the quantizer is not: its codes are those of the latents in fp32."""
    tokenizer = {**TOKENIZER, "quantizer": name, **QUANTIZERS[name]}
    settings = {"steps": 2, "precision": "bf16", "tensorboard": False}
    loaded = train(_config(picture_folder, tokenizer=tokenizer, train=TrainConfig.model_validate(settings)), tmp_path / "out")
    pixels = loaded.preprocess([block_picture(number) for number in range(4)])
    model = loaded.model
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        latents = model.latents(pixels)
        codes = model.encode(pixels)
    assert latents.dtype is torch.bfloat16
    assert torch.equal(codes, model.quantizer.encode(latents.float()))
    assert model.quantizer.codebook().dtype is torch.float32


def test_every_loss_term_trains(picture_folder: Path, tmp_path: Path) -> None:
    task = _task(picture_folder, tmp_path, loss={"l2": 4.0, "perceptual": "edges"})
    batch = task.batch(0, Shard(0, 1))
    both = float(task.loss("model", batch, 0)[1]["reconstruction"])
    single = float(_task(picture_folder, tmp_path).loss("model", batch, 0)[1]["reconstruction"])
    assert both > single > 0


def test_regions_that_documents_name_count_more(tmp_path: Path, block_picture: Draw) -> None:
    lines = []
    for number in range(4):
        block_picture(number).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "regions": [{"box": [0, 0, 8, 24]}]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    task = _task(tmp_path / "data.jsonl", tmp_path, loss={"l1": 1.0, "l2": 0.0, "region_emphasis": 9.0}, flip=True)
    task.modules["model"].eval()
    mirrored = 0
    for step in range(4):
        batch = task.batch(step, Shard(0, 1))
        assert batch.regions is not None
        mirrored += int((batch.regions[:, 0, 0] == 0).sum())
        assert torch.equal(batch.regions[:, :, 0] == 0, batch.regions[:, :, -1] == 255)
    assert 4 < mirrored < 28  # of 32; fixed seed
    pixels = batch.arrays.float() / 127.5 - 1
    with torch.no_grad():
        error = (task.modules["model"](pixels).reconstruction - pixels).abs()
        weights = torch.where(batch.regions == 255, 9.0, 1.0)[:, None]
        expected = (error * weights).mean() / weights.mean()
        assert float(task.loss("model", batch, 0)[1]["reconstruction"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_collapse_is_said_while_training(picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = _task(picture_folder, tmp_path)
    task.modules["codebook"].counts[3] = 1e4  # type: ignore[index,operator]
    batch = task.batch(0, Shard(0, 1))
    task.loss("model", batch, HORIZON - 2)
    assert "collapsed" not in caplog.text
    for _ in range(2):
        task.loss("model", batch, HORIZON - 1)
        assert caplog.text.count("the codebook has collapsed") == 1


def test_lpips_trains_with_the_weights_given(picture_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(LPIPS().state_dict(), tmp_path / "lpips.safetensors")
    loss = {"perceptual": "lpips", "lpips_weights": str(tmp_path / "lpips.safetensors"), "perceptual_weight": 2.0}
    task, plain = _task(picture_folder, tmp_path, loss=loss), _task(picture_folder, tmp_path)
    batch = task.batch(0, Shard(0, 1))
    with torch.no_grad():
        for made in (task, plain):
            made.modules["model"].eval()
        pixels = batch.arrays.float() / 127.5 - 1
        distance = task._lpips(task.modules["model"](pixels).reconstruction, pixels).mean()  # type: ignore[misc]
        both, without = (float(made.loss("model", batch, 0)[1]["reconstruction"]) for made in (task, plain))
    assert both == pytest.approx(without + 2 * float(distance), rel=1e-4)


def test_the_tokenizer_has_the_averaged_weights(picture_folder: Path, tmp_path: Path) -> None:
    config = _config(picture_folder, steps=6)
    averaged = config.model_copy(update={"train": config.train.model_copy(update={"ema_decay": 0.9})})
    live, tokenizer = train(config, tmp_path / "live"), train(averaged, tmp_path / "averaged")
    assert not torch.equal(live.model.decoder.project.weight, tokenizer.model.decoder.project.weight)  # type: ignore[arg-type]
    task = _task(picture_folder, tmp_path)
    task.modules["model"] = tokenizer.model
    measured = _evaluations(tmp_path / "averaged-run")[-1]["psnr_db"]  # taken with the averages
    assert task.evaluate()["psnr_db"] == pytest.approx(measured, abs=1e-4)
    assert abs(_evaluations(tmp_path / "live-run")[-1]["psnr_db"] - measured) > 1e-3


def test_the_dvae_trains_by_its_likelihood(picture_folder: Path, tmp_path: Path) -> None:
    dvae = VQConfig(
        image_size=24,
        downsample_factor=4,
        codebook_size=32,
        codebook_dim=8,
        network="dvae",
        network_options={"hidden": 8, "groups": 3},
        quantizer="gumbel",
        quantizer_options={"latent_dim": 32, "temperature_steps": 30, "kl_steps": 30},
    )
    config = _config(picture_folder, steps=30, loss={"l1": 0.0, "logit_laplace": 1.0}, tokenizer=dvae.model_dump())
    train(config, tmp_path / "dvae")
    records = [json.loads(line) for line in (tmp_path / "dvae-run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["reconstruction"] for record in records if record["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.03


def test_a_collapsed_codebook_is_said_with_its_remedy(
    picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = _task(picture_folder, tmp_path)  # 16 codes, none of them near any latent but one
    task.modules["model"].eval()
    with torch.no_grad():
        codebook = task.modules["model"].quantizer.library._codebook.embed  # type: ignore[union-attr]
        codebook.fill_(1e3)
        codebook[:, 3] = 0.0
        task.evaluate()
    assert "restart_below" in caplog.text
    assert "6.2% of 16 codes" in caplog.text


def test_one_picture_is_enough_to_train_on(tmp_path: Path, block_picture: Draw) -> None:
    (tmp_path / "one").mkdir()
    block_picture(0).save(tmp_path / "one" / "a.png")
    tokenizer = train(_config(tmp_path / "one", steps=2), tmp_path / "out")
    assert isinstance(tokenizer.codebook_size, int)


def test_no_place_to_write_is_said(picture_folder: Path) -> None:
    with pytest.raises(UsageError, match="set `out`"):
        train(_config(picture_folder))


def test_loss_settings_are_typed() -> None:
    assert LossConfig.model_validate({}).perceptual == "none"
    assert Pictures([], torch.empty(0, 3, 2, 2).numpy()).ids == []
