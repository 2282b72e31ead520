"""Tuning end to end at toy size: the loss goes down, the folder opens, the tasks travel with it, mistakes are sentences."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from cm3.cli import run as main
from cm3.core import artefact
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.model.presets import create_model, preset
from cm3.pipeline import CM3Pipeline
from cm3.pretrain.run import load_language_model, run_folder, save_language_model
from cm3.sequences.loader import LoaderConfig
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for
from cm3.train.config import TrainConfig
from cm3.train.loop import TrainResult
from cm3.train.processes import is_main_process
from sft.lora import LoRAConfig
from sft.mixture import MixtureEntry
from sft.train import SFTConfig, train
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQModel(VQConfig(image_size=16, downsample_factor=8, codebook_size=16, codebook_dim=8))
    return VQTokenizer(model).save(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An untrained language model folder."""
    text = BPETextTokenizer.train(["describe one two three", "how many?"], 270)
    vocab = vocab_for(text, 16, (2, 2))
    config = preset(
        "tiny", vocab_size=vocab.size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        grid_embedding=True, grid_shape=vocab.grid_shape, image_start=vocab.image_start, image_stop=vocab.image_stop,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("start") / "model"
    save_language_model(out, create_model(config, 0), DocumentTokenizer(vocab, text), TrainResult(0, [], 0.0, None), {})
    return out


@pytest.fixture
def data(tmp_path, make_picture):
    lines = []
    for index, word in enumerate(("one", "two", "three") * 2):
        make_picture(index).resize((16, 16)).save(tmp_path / f"{index}.png")
        record = {"id": str(index), "image": f"{index}.png", "text": word, "question": "how many?", "answer": word}
        lines.append(json.dumps(record))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path / "data.jsonl"


@pytest.fixture
def config(start, images, data, tmp_path):
    mixture = [
        MixtureEntry(task="captioning", data=data, held_out=data, options={"instructions": ["describe"]}),
        MixtureEntry(task="infilling", data=data),
    ]
    training = TrainConfig(steps=30, learning_rate=1e-2, schedule="constant", log_every=5, device="cpu", tensorboard=False)
    loader = LoaderConfig(row_length=64, batch_size=2, window=16)
    return SFTConfig(model=start, image_tokenizer=images, out=tmp_path / "tuned", mixture=mixture, loader=loader, train=training)


def test_tuning(config, images):
    out = train(config)
    model, _ = load_language_model(out)
    records = [json.loads(line) for line in (run_folder(out) / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert losses[-1] < losses[0] - 1
    assert any(record["kind"] == "eval" and record["bits_per_text_token"] > 0 for record in records)
    assert json.loads((out / "tasks.json").read_text())["captioning"] == {"instructions": ["describe"]}
    assert json.loads((run_folder(out) / "run.json").read_text())["train"]["steps"] == 30
    started = load_language_model(config.model)[0]
    assert not torch.equal(model.lm_head.weight, started.lm_head.weight)
    assert CM3Pipeline.from_pretrained(out).tasks["captioning"].instructions == ("describe",)


def test_a_finished_run_is_not_run_again(config):
    first = load_language_model(train(config))[0]
    again = load_language_model(train(config))[0]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


def test_held_out_examples_follow_the_rule_of_training_ones(config, tmp_path, data, capsys):
    record = json.loads(data.read_text().splitlines()[0])
    longer = tmp_path / "longer.jsonl"
    longer.write_text(data.read_text() + "\n" + json.dumps({**record, "id": "long", "text": "one two " * 40}))
    changed = {"mixture": (config.mixture[0].model_copy(update={"held_out": longer}),)}
    changed["train"] = config.train.model_copy(update={"steps": 1})
    with pytest.raises(InputError, match=r"1 held-out documents are longer than row_length=64"):
        train(config.model_copy(update=changed))
    changed["loader"] = config.loader.model_copy(update={"overlong": "skip"})
    train(config.model_copy(update=changed))
    assert "1 held-out documents are longer than loader.row_length=64 and left out" in capsys.readouterr().err


def test_another_mixture_does_not_go_on_in_a_run_folder(config, data):
    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    manifest = train(config) / "manifest.json"
    before = manifest.read_bytes()
    heavier = config.mixture[0].model_copy(update={"weight": 2.0})
    with pytest.raises(UsageError, match=r"step-00000002 was made with mixture\.0\.weight=1\.0, this run has 2\.0"):
        train(config.model_copy(update={"mixture": (heavier, config.mixture[1])}))
    data.write_text(data.read_text().replace("three", "two"))
    with pytest.raises(UsageError, match=r"was made with mixture\.0\.data\.fingerprint="):
        train(config)
    assert manifest.read_bytes() == before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_adapters_alone_are_trained_and_added(config, tmp_path):
    peft = pytest.importorskip("peft")
    lora = LoRAConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    out = train(config.model_copy(update={"lora": lora}))
    tuned, started = load_language_model(out)[0].state_dict(), load_language_model(config.model)[0].state_dict()
    changed = {name for name in started if not torch.equal(tuned[name], started[name])}
    assert changed == {name for name in started if "q_proj" in name or "down_proj" in name}
    again = peft.PeftModel.from_pretrained(load_language_model(config.model)[0], run_folder(out) / "adapters")
    for name, tensor in again.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, tuned[name], atol=1e-5, rtol=1e-5)
    records = [json.loads(line) for line in (run_folder(out) / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_make_the_adapters_of_one(config, tmp_path, on_two, monkeypatch, sharding):
    """Gathered from both where they are sharded, and written by one of them."""
    pytest.importorskip("peft")

    def tune(name, **changes):
        training = config.train.model_copy(update={"steps": 4, **changes})
        lora = LoRAConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
        return train(config.model_copy(update={"lora": lora, "train": training, "out": tmp_path / name}))

    def writing(path, *arguments, **options):
        assert is_main_process(), f"{path} has a second writer"
        return original(path, *arguments, **options)

    tune("alone", accumulation_steps=2)
    original = artefact.writing
    monkeypatch.setattr(artefact, "writing", writing)
    assert on_two(lambda: tune("shared", sharding=sharding)) == [0, 0]
    for file in ("/model.safetensors", "-run/adapters/adapter_model.safetensors"):
        alone, shared = (load_file(f"{tmp_path / name}{file}") for name in ("alone", "shared"))
        torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)


def test_adapters_that_cannot_be(config, monkeypatch):
    with pytest.raises(UsageError, match=r"lora\.targets names 'query'; the matrices of this model are .*q_proj"):
        train(config.model_copy(update={"lora": LoRAConfig(targets=("query",))}))
    for targets in (("lm_head",), ("q_proj", "lm_head")):
        with pytest.raises(UsageError, match=r"lora\.targets names 'lm_head'; .* leave it out"):
            train(config.model_copy(update={"lora": LoRAConfig(targets=targets)}))
    averaged = {"lora": {}, "train": {**config.train.model_dump(), "ema_decay": 0.9}}
    with pytest.raises(ValueError, match="leave it out when lora"):
        SFTConfig.model_validate({**config.model_dump(), **averaged})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="pip install"):
        train(config.model_copy(update={"lora": LoRAConfig()}))


def test_an_objective_would_change_nothing(config):
    assert SFTConfig.model_validate(config.model_dump()) == config
    masked = {"loader": {"objective": {"whole_segment_prob": 0.2}}}
    with pytest.raises(ValueError, match="loader.objective would change nothing: .* leave it out"):
        SFTConfig.model_validate({**config.model_dump(), **masked})


def test_mistakes_are_met_before_any_work(config, tmp_path, images):
    with pytest.raises(ValueError, match="finite number"):
        MixtureEntry(task="captioning", data=tmp_path, weight=float("inf"))
    wrong = config.model_copy(update={"mixture": (config.mixture[0].model_copy(update={"task": "captions"}),)})
    with pytest.raises(UsageError, match="captioning"):
        train(wrong)
    with pytest.raises(InputError, match="image_tokenizer"):
        train(config.model_copy(update={"image_tokenizer": None}))
    with torch.random.fork_rng(devices=[]):
        larger = VQTokenizer(VQModel(VQConfig(image_size=16, downsample_factor=8, codebook_size=32, codebook_dim=8)))
    with pytest.raises(ArtefactError, match="do not belong together"):
        train(config.model_copy(update={"image_tokenizer": larger.save(tmp_path / "larger")}))
    assert not config.out.exists()


def test_the_command(config, tmp_path, capsys):
    run_file = tmp_path / "run.toml"
    run_file.write_text(f"""
        model = "{config.model}"
        image_tokenizer = "{config.image_tokenizer}"
        out = "{tmp_path / "by_command"}"
        mixture = [{{task = "vqa", data = "{config.mixture[0].data}"}}]
        loader = {{row_length = 64, batch_size = 2, window = 16}}
        train = {{steps = 2, device = "cpu", tensorboard = false}}
    """)
    assert main(["sft", "train", str(run_file), "train.steps=1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "by_command")
    assert main(["sft", "train", str(run_file), "train.stepz=1"]) == 2
    assert "steps" in capsys.readouterr().err
    assert main(["sft", "train"]) == 2
