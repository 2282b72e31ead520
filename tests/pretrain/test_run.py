"""Pretraining from token shards: the model learns, the folder reads back, parts that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import cm3.model  # noqa: F401  (registers the model with transformers)
from cm3.core import artefact
from cm3.core.errors import ArtefactError, InputError, NonFiniteError, UsageError
from cm3.core.runfile import load_run
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.order import order_digest
from cm3.model import CM3ForCausalLM
from cm3.model.presets import PRESETS
from cm3.pretrain import estimate
from cm3.pretrain.run import (
    NEIGHBORS_FILE,
    NEIGHBORS_KIND,
    ModelSection,
    PretrainConfig,
    build_model,
    load_language_model,
    loss_curve,
    model_config,
    pretrain,
    replay_step,
    run_folder,
    training_documents,
)
from cm3.pretrain.task import TokenTask
from cm3.sequences.batch import Batch
from cm3.sequences.loader import SequenceLoader
from cm3.sequences.shards import TokenShards, write_shards
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for
from cm3.tokens.document_tokenizer import CODEBOOK_FILE
from cm3.train.incidents import read_incident
from cm3.train.task import Metrics

GRID, CODES = (2, 2), 6
COLORS = ("red", "green", "blue")


def documents(count: int, seed: int) -> list[Document]:
    """Pictures of one code each, named by their text: something a model can learn in a few steps."""
    rng = numpy_generator(seed, "documents")
    chosen = rng.integers(len(COLORS), size=count)
    return [
        Document(f"{index}", (TextSegment(f"all {COLORS[color]}"), ImageSegment(codes=np.full(GRID, color, np.int64))))
        for index, color in enumerate(chosen)
    ]


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    text = BPETextTokenizer.train([f"all {color}" for color in COLORS], 300)
    tokenizer = DocumentTokenizer(vocab_for(text, CODES, GRID), text)
    with artefact.writing(tmp_path / "tokenizer", "document_tokenizer") as folder:
        tokenizer.save(folder)
        save_file({"codebook": torch.randn(CODES, 5, generator=torch.Generator().manual_seed(0))}, folder / CODEBOOK_FILE)
    write_shards(tokenizer.encode_many(documents(64, 0)), tmp_path / "tokens", tokenizer)
    write_shards(tokenizer.encode_many(documents(16, 1)), tmp_path / "held_out", tokenizer)
    return {name: str(tmp_path / name) for name in ("tokens", "tokenizer", "held_out", "out")}


SMALL = "model.overrides={hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2}"


def config(parts: dict[str, str], *overrides: str, model: str = SMALL) -> PretrainConfig:
    settings = [f"{name}={path}" for name, path in parts.items()]
    train = ["train.steps=30", "train.learning_rate=2e-2", "train.log_every=10", "train.device=cpu", "train.checkpoint_every=0"]
    train += ["train.precision=fp32"]  # in the processes of two, too
    loader = ["loader.row_length=64", "loader.batch_size=4"]
    return load_run(PretrainConfig, None, [*settings, model, *train, *loader, *overrides])


def test_it_learns_and_reads_back(parts: dict[str, str]) -> None:
    run = config(parts)
    result = pretrain(run)
    figures = [record for record in result.history if record["kind"] == "eval"][-1]
    assert figures["bits_per_image_token"] < 1.0 < np.log2(CODES)
    model, tokenizer = load_language_model(run.out)
    assert tokenizer.decode(tokenizer.encode(documents(1, 2)[0]).token_ids).text == documents(1, 2)[0].text
    ids = torch.tensor(tokenizer.encode(documents(1, 2)[0]).token_ids)[None]
    again = AutoModelForCausalLM.from_pretrained(run.out)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert (run.out.with_name("out-run") / "run.json").exists()
    curve = loss_curve(result.history)
    assert curve["step"] == [10.0, 20.0, 30.0]
    assert curve["loss"][-1] < curve["loss"][0]


def test_a_model_is_trained_on(parts: dict[str, str], tmp_path: Path) -> None:
    first = pretrain(config(parts))
    again = config(
        {**parts, "out": str(tmp_path / "more")}, "train.steps=2", "train.learning_rate=1e-3", model=f"model.start={parts['out']}"
    )
    second = pretrain(again)
    figures = [[record for record in result.history if record["kind"] == "eval"][-1] for result in (first, second)]
    assert figures[1]["bits_per_image_token"] < 1.2 * figures[0]["bits_per_image_token"] + 0.05
    before, after = (load_language_model(run)[0] for run in (Path(parts["out"]), again.out))
    assert after.config.texts_were_masked == before.config.texts_were_masked
    assert not torch.equal(after.lm_head.weight, before.lm_head.weight)
    assert after.config.hidden_size == 32


@pytest.mark.parametrize("setting", ["preset=cm3leon-350m", "overrides={hidden_size=64}", "codebook_init=true"])
def test_what_describes_a_fresh_model_is_refused_beside_a_start(setting: str) -> None:
    settings = ["tokens=t", "tokenizer=d", "out=o", "model.start=folder"]
    assert load_run(PretrainConfig, None, [*settings, "model.attention=eager"]).model.attention == "eager"
    named = setting.partition("=")[0]
    with pytest.raises(
        UsageError, match=f"'model': start=folder goes on with the model of that folder, and {named} would change"
    ):
        load_run(PretrainConfig, None, [*settings, f"model.{setting}"])


def test_a_model_with_another_tokenizer_is_not_trained_on(parts: dict[str, str], tmp_path: Path) -> None:
    pretrain(config(parts, "train.steps=1"))
    text = BPETextTokenizer.train(["all green red blue apples"], 300)
    tokenizer = DocumentTokenizer(vocab_for(text, CODES, GRID), text)
    with artefact.writing(tmp_path / "other", "document_tokenizer") as folder:
        tokenizer.save(folder)
    write_shards(tokenizer.encode_many(documents(8, 0)), tmp_path / "others", tokenizer)
    changed = {"tokenizer": str(tmp_path / "other"), "tokens": str(tmp_path / "others"), "out": str(tmp_path / "more")}
    settings = [f"{name}={path}" for name, path in changed.items()]
    run = load_run(
        PretrainConfig, None, [*settings, f"model.start={parts['out']}", "loader.row_length=64", "loader.batch_size=4"]
    )
    with pytest.raises(ArtefactError, match="another document tokenizer"):
        pretrain(run)


def test_another_task_does_not_go_on_in_a_run_folder(parts: dict[str, str], tmp_path: Path) -> None:
    out, steps = Path(parts["out"]), ("train.steps=2",)
    pretrain(config(parts, *steps))
    watched = [out / "manifest.json", run_folder(out) / "run.json"]
    before = [path.read_bytes() for path in watched]
    for setting, named in {
        f"tokens={parts['held_out']}": "tokens.fingerprint=",
        "loader.objective.name=causal": r'loader.objective.name="cm3", this run has "causal"',
        "loader.batch_size=2": "loader.batch_size x accumulation_steps x processes=4, this run has 2",
        "train.accumulation_steps=2": "loader.batch_size x accumulation_steps x processes=4, this run has 8",
        "train.seed=1": "train.seed=0, this run has 1",
        "loss.image_weight=3": r"loss.image_weight=1.0, this run has 3.0",
        "model.overrides={hidden_size = 64}": "model.hidden_size=32, this run has 64",
        "model.codebook_init=false": "model.codebook_init=true",
    }.items():
        with pytest.raises(UsageError, match=f"step-00000002 was made with {named}"):
            pretrain(config(parts, *steps, setting))
    assert [path.read_bytes() for path in watched] == before
    moved = {name: str(Path(path).rename(tmp_path / f"moved-{name}")) for name, path in parts.items() if name != "out"}
    assert pretrain(config(parts | moved, *steps, "train.log_every=1", "loader.overlong=skip")).step == 2


def test_the_rows_of_a_step_may_be_cut_otherwise_when_going_on(parts: dict[str, str], tmp_path: Path) -> None:
    """Half the batch size and twice the accumulation steps are the same rows; the weights are those of an unbroken run."""
    settings = ("train.schedule=constant", "train.checkpoint_every=2")
    for name, steps in (("whole", 4), ("cut", 2)):
        pretrain(config({**parts, "out": str(tmp_path / name)}, *settings, f"train.steps={steps}"))
    again = ("train.steps=4", "loader.batch_size=2", "train.accumulation_steps=2")
    with pytest.warns(UserWarning, match="config.accumulation_steps 1 -> 2, config.steps 2 -> 4"):
        pretrain(config({**parts, "out": str(tmp_path / "cut")}, *settings, *again))
    one, two = (load_language_model(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def test_averaged_weights_are_what_is_written(parts: dict[str, str]) -> None:
    result = pretrain(config(parts, "train.steps=4", "train.ema_decay=0.9"))
    model, _ = load_language_model(Path(parts["out"]))
    assert result.ema is not None
    averaged = result.ema["objective"]["model.model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, averaged)


def test_image_embeddings_start_from_the_codebook(parts: dict[str, str]) -> None:
    run, tokenizer = config(parts), DocumentTokenizer.load(Path(parts["tokenizer"]))
    codebook = torch.randn(CODES, 5, generator=torch.Generator().manual_seed(1))
    plain, started = (build_model(run.model, tokenizer.vocab, 0, given) for given in (None, codebook))
    start, stop = tokenizer.vocab.image_start, tokenizer.vocab.image_stop
    weight = started.model.embed_tokens.weight
    torch.testing.assert_close(weight[:start], plain.model.embed_tokens.weight[:start])
    distances = torch.pdist(weight[start:stop].detach())
    torch.testing.assert_close(distances / distances[0], torch.pdist(codebook) / torch.pdist(codebook)[0])


def test_neighbors_are_used_and_must_fit(parts: dict[str, str], tmp_path: Path) -> None:
    table = np.array([[(index + 1) % 64, -1] for index in range(64)], np.int64)
    ids = [document.id for document in documents(64, 0)]
    same, turned = order_digest(ids), order_digest(ids[::-1])
    for name, rows, made_of in (
        ("fitting", table, {"documents": same, "neighbors": same}),
        ("short", table[:10], {"documents": same, "neighbors": same}),
        ("turned", table, {"documents": turned, "neighbors": same}),
        ("foreign", table, {"documents": same, "neighbors": order_digest(map(str, range(1, 65)))}),
    ):
        with artefact.writing(tmp_path / name, NEIGHBORS_KIND, made_of) as folder:
            np.save(folder / NEIGHBORS_FILE, rows)
    settings = ["neighbors.augmentation.law=all", "neighbors.augmentation.max_length=50", "train.steps=2"]
    pretrain(config(parts, f"neighbors.table={tmp_path / 'fitting'}", *settings))
    every = config(parts, f"neighbors.table={tmp_path / 'fitting'}", *settings, "neighbors.share=1")
    [part] = training_documents(every, DocumentTokenizer.load(every.tokenizer)).parts
    lengths = TokenShards(every.tokens).lengths(0)
    assert part.source.lengths(0).tolist() == (lengths + np.roll(lengths, -1) - 1).tolist()
    with pytest.raises(ArtefactError, match="neighbors of 10 documents.*holds 64"):
        pretrain(config(parts, f"neighbors.table={tmp_path / 'short'}", *settings))
    for name, what in (("turned", "documents"), ("foreign", "neighbors")):
        with pytest.raises(ArtefactError, match=rf"the {what} of .*{name} are other documents than those of .*tokens, or in"):
            pretrain(config(parts, f"neighbors.table={tmp_path / name}", *settings))


def test_published_presets_stay_as_published(parts: dict[str, str]) -> None:
    vocab = DocumentTokenizer.load(Path(parts["tokenizer"])).vocab
    grids = {name: model_config(ModelSection(preset=name), vocab).grid_embedding for name in PRESETS}
    assert grids == {name: name == "tiny" for name in PRESETS}
    for name, wanted in (("tiny", False), ("cm3leon-350m", True)):
        assert model_config(ModelSection(preset=name, overrides={"grid_embedding": wanted}), vocab).grid_embedding is wanted


def test_documents_that_are_left_out_are_counted(parts: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = DocumentTokenizer.load(Path(parts["tokenizer"]))
    long = Document("long", (TextSegment("all red " * 40),))
    for name, count in (("tokens", 3), ("held_out", 1)):
        write_shards(tokenizer.encode_many([*documents(16, 0), *[long] * count]), Path(parts[name]), tokenizer)
    with pytest.raises(InputError, match=r"3 documents are longer than row_length=64"):
        pretrain(config(parts))
    pretrain(config(parts, "train.steps=1", "loader.overlong=skip"))
    shown = capsys.readouterr().err
    assert "3 documents are longer than loader.row_length=64 and left out" in shown
    assert "1 held-out documents are longer than loader.row_length=64 and left out" in shown
    write_shards(tokenizer.encode_many(documents(16, 0)), Path(parts["tokens"]), tokenizer)
    with pytest.raises(InputError, match=r"1 held-out documents are longer than row_length=64 \(the longest has"):
        pretrain(config(parts))


def test_shards_of_another_vocabulary_are_refused(parts: dict[str, str], tmp_path: Path) -> None:
    text = BPETextTokenizer.train(["another corpus"], 280)
    other = DocumentTokenizer(vocab_for(text, CODES, GRID), text)
    write_shards(other.encode_many(documents(8, 0)), tmp_path / "other", other)
    with pytest.raises(ArtefactError, match="another vocabulary"):
        pretrain(config({**parts, "tokens": str(tmp_path / "other")}))


@pytest.mark.parametrize("shards", ["tokens", "held_out"])
def test_shards_of_another_tokenizer_of_the_same_sizes_are_refused(parts: dict[str, str], tmp_path: Path, shards: str) -> None:
    """Equal id ranges and other merges: the ids are those of other texts."""
    own = DocumentTokenizer.load(Path(parts["tokenizer"]))
    text = BPETextTokenizer.train(["some other texts than those"], own.vocab.text_size)
    other = DocumentTokenizer(own.vocab, text)
    assert text.vocab_size == own.text.vocab_size
    write_shards(other.encode_many(documents(16, 0)), tmp_path / "other", other)
    with pytest.raises(ArtefactError, match=r"other was tokenized with the document tokenizer \w{12}, this one is \w{12} and"):
        pretrain(config({**parts, shards: str(tmp_path / "other")}, "train.steps=1"))
    write_shards(own.encode_many(documents(16, 0)), tmp_path / "own", own.vocab)  # says nothing of a tokenizer
    pretrain(config({**parts, shards: str(tmp_path / "own")}, "train.steps=1"))


def test_a_tokenizer_of_another_model_is_refused(parts: dict[str, str], tmp_path: Path) -> None:
    pretrain(config(parts, "train.steps=1"))
    text = BPETextTokenizer.train(["another corpus"], 280)
    other = DocumentTokenizer(vocab_for(text, CODES, GRID), text)
    model, _ = load_language_model(Path(parts["out"]))
    with artefact.writing(tmp_path / "mixed", "language_model") as folder:
        model.save_pretrained(folder)
        other.save(folder)
    with pytest.raises(ArtefactError, match="do not belong together"):
        load_language_model(tmp_path / "mixed")


def test_records_say_how_fast_and_where_in_the_data(parts: dict[str, str]) -> None:
    result = pretrain(config(parts, "train.steps=10", "train.log_every=5", "train.peak_tflops=0.001"))
    record = [record for record in result.history if record["kind"] == "train"][-1]
    assert record["model_tflops_per_s"] > 0
    assert record["mfu"] == pytest.approx(record["model_tflops_per_s"] / 0.001)
    assert record["documents"] > record["step"]
    assert record["epoch"] == pytest.approx(record["documents"] / 64)
    assert record["bits_per_text_token"] > 0
    assert record["bits_per_image_token"] > 0


def test_a_step_that_met_a_nan_is_replayed(parts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(self: TokenTask, name: str, batch: Batch, step: int) -> tuple[torch.Tensor, Metrics]:
        loss, metrics = plain(self, name, batch, step)
        return (loss * float("nan") if step == 3 else loss), metrics

    plain, run = TokenTask.loss, config(parts, "train.checkpoint_every=2", "train.accumulation_steps=2")
    monkeypatch.setattr(TokenTask, "loss", poisoned)
    with pytest.raises(NonFiniteError):
        pretrain(run)
    (file,) = run_folder(run.out).glob("nonfinite-step-00000003.json")
    named = [row for batch in read_incident(file).batches for row in batch.documents or ()]
    tokenizer = DocumentTokenizer.load(run.tokenizer)
    loader = SequenceLoader(TokenShards(run.tokens, tokenizer.vocab), tokenizer.vocab, run.loader, run.train.seed)
    rows = range(3 * 2 * run.loader.batch_size, 4 * 2 * run.loader.batch_size)  # of step 3
    assert named == [[document.id for document in loader.documents(row)] for row in rows]
    replayed = replay_step(run, file)
    assert replayed.reproduced
    assert replayed.checkpoint is not None
    assert replayed.checkpoint.name == "step-00000002"
    assert "loss nan, gradient norm nan (then nan, nan), the same batches: the same again" in replayed.says()
    monkeypatch.setattr(TokenTask, "loss", plain)
    healed = replay_step(run, file)
    assert (healed.reproduced, healed.same_batches, healed.figures()["checkpoint"]) == (False, True, str(replayed.checkpoint))
    assert not run.out.exists()


def test_a_flipped_bit_of_the_shards_is_found_unless_they_are_taken_on_trust(parts: dict[str, str]) -> None:
    file = Path(parts["tokens"]) / "tokens.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"tokens\.npy"):
        pretrain(config(parts))
    tokenizer = DocumentTokenizer.load(Path(parts["tokenizer"]))
    trusted = training_documents(config(parts, "verified=false"), tokenizer)
    assert len(trusted.parts[0].source) == 64


def test_a_run_that_cannot_fit_is_refused_before_it_starts(parts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda device: 2**20)
    with pytest.raises(UsageError, match="1 MiB are free; choose a smaller"):
        pretrain(config(parts))
    assert not run_folder(Path(parts["out"])).exists()


def test_activation_checkpointing_gives_the_same_weights(parts: dict[str, str], tmp_path: Path) -> None:
    for name, setting in (("plain", "false"), ("recomputed", "true")):
        pretrain(config({**parts, "out": str(tmp_path / name)}, "train.steps=3", f"train.activation_checkpointing={setting}"))
    one, two = (load_language_model(tmp_path / name)[0].state_dict() for name in ("plain", "recomputed"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:.*should not be instantiated")  # of dynamo itself
def test_compiled_training_goes_on_and_gives_the_same_weights(
    parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward graphs as the compiler traces them, without the machine code that inductor would take minutes for."""
    compiled, compile_module = [], torch.nn.Module.compile

    def traced(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    for name, setting in (("plain", "false"), ("compiled", "true")):
        settings = ("train.schedule=constant", "model.attention=sdpa", f"train.compile={setting}")
        pretrain(config({**parts, "out": str(tmp_path / name)}, "train.steps=2", *settings))
        with pytest.warns(UserWarning, match="config.steps 2 -> 4"):
            pretrain(config({**parts, "out": str(tmp_path / name)}, "train.steps=4", *settings))
    torch.compiler.reset()
    assert compiled == ["TokenObjective"] * 2
    one, two = (load_language_model(tmp_path / name)[0].state_dict() for name in ("plain", "compiled"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def test_pictures_are_drawn_after_every_evaluation(parts: dict[str, str]) -> None:
    asked = []

    def sampler(model: CM3ForCausalLM) -> dict[str, Image.Image]:
        asked.append(model.training)
        return {"samples": Image.new("RGB", (4, 4))}

    run = config(parts, "train.steps=4", "train.eval_every=2")
    pretrain(run, lambda vocab: sampler)
    assert asked == [False, False]
    names = [path.name for path in sorted((run_folder(run.out) / "pictures").iterdir())]
    assert names == ["step-00000002-samples.png", "step-00000004-samples.png"]


def test_a_sharded_run_says_that_it_draws_nothing(parts: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="there is one; start several"):  # after it was said
        pretrain(config(parts, "train.sharding=full"), lambda vocab: lambda model: {})
    assert capsys.readouterr().err.count("no pictures are drawn while it trains") == 1


def test_more_spans_than_sentinels_are_told_of(parts: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(config(parts, "train.steps=1", "loader.objective.max_spans=17"))
    said = "at most 16 spans of a document are masked, not loader.objective.max_spans=17"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize("how", [(), ("train.sharding=full",), ("train.sharding=full", "train.activation_checkpointing=true")])
def test_two_processes_make_one_model(parts: dict[str, str], tmp_path: Path, on_two: Any, how: tuple[str, ...]) -> None:
    """Each sees its share of the rows; one of them writes. Equal to one process that accumulates."""
    settings = ("train.steps=4", "train.ema_decay=0.5", "loader.batch_size=2")
    pretrain(config({**parts, "out": str(tmp_path / "alone")}, *settings, "train.accumulation_steps=2"))
    shared = config({**parts, "out": str(tmp_path / "shared")}, *settings, *how)
    assert on_two(lambda: pretrain(shared)) == [0, 0]
    artefact.verify(tmp_path / "shared")
    alone, together = (load_language_model(tmp_path / name)[0].state_dict() for name in ("alone", "shared"))
    assert all(torch.allclose(alone[key], together[key], atol=1e-5) for key in alone)


def test_mistakes_in_a_run_file_are_sentences(parts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loader.row_length=2048 .* max_position_embeddings=1024"):
        pretrain(config(parts, "loader.row_length=2048"))
    with pytest.raises(UsageError, match="model.overrides give no model: .*num_key_value_heads"):
        pretrain(config(parts, "model.overrides={num_attention_heads = 3, num_key_value_heads = 2}"))
    with pytest.raises(UsageError, match="model.overrides give no model: num_hidden_layers must be at least 1, got -1"):
        pretrain(config(parts, "model.overrides={num_hidden_layers = -1}"))
    with pytest.raises(UsageError, match="unknown model field 'widht'"):
        pretrain(config(parts, "model.overrides={widht = 3}"))
    with pytest.raises(UsageError, match=r"'loss.image_weight'.*greater than or equal to 0"):
        config(parts, "loss.image_weight=-1")
    with pytest.raises(UsageError, match=r"'loader.objective.span_rate'.*finite number, got inf"):
        config(parts, "loader.objective.span_rate=inf")
    with pytest.raises(UsageError, match=r"neighbor_weight'.*finite number, got inf"):
        config(parts, "neighbors.table=table", "neighbors.augmentation.neighbor_weight=inf")
    with pytest.raises(UsageError, match=r"model.overrides give no model: .*unknown attention_pattern 'foo'"):
        pretrain(config(parts, "model.overrides={attention_pattern = 'foo'}"))
    with pytest.raises(UsageError, match=r"^neighbors.augmentation.max_length=65 is more than loader.row_length=64; lower it"):
        config(parts, "neighbors.table=table", "neighbors.augmentation.max_length=65")
    with pytest.raises(UsageError, match="async_save"):
        config(parts, "train.async_save=true", "train.sharding=full")
    for name, table in (("far", [[64]] * 64), ("flat", [1] * 64), ("real", [[0.5]] * 64)):
        with artefact.writing(tmp_path / name, NEIGHBORS_KIND) as folder:
            np.save(folder / NEIGHBORS_FILE, np.array(table))
        with pytest.raises(ArtefactError, match="does not name documents"):
            pretrain(config(parts, f"neighbors.table={tmp_path / name}", "neighbors.augmentation.max_length=60"))
