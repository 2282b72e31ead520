"""Tables on disk: bounded memory, transformers' own layout, clear refusals."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3.convert.streamed_model import StreamedModel
from cm3.convert.tensor_tables import INDEX, RenamedTable, SafetensorsTable, write_sharded
from cm3.core.errors import ArtefactError
from cm3.model import CM3ForCausalLM, preset

MIB = 1024**2


def test_no_more_than_a_shard_is_alive(tmp_path):
    alive: set[int] = set()
    most = 0

    def tensors():
        nonlocal most
        for number in range(20):
            tensor = torch.full((MIB // 4,), float(number))
            alive.add(number)
            weakref.finalize(tensor, alive.discard, number)
            most = max(most, len(alive))
            yield f"t{number:02d}", tensor
            del tensor

    write_sharded(tensors(), tmp_path, shard_bytes=4 * MIB)
    assert most <= 6  # a shard of four, the next tensor, and the one in hand
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 20 * MIB
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05d}-of-00005.safetensors" for n in range(1, 6)]
    table = SafetensorsTable(tmp_path)
    assert len(table) == 20
    assert all((table[f"t{n:02d}"] == n).all() for n in range(20))


def test_views_are_written_as_tensors_of_their_own(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_sharded([("a", whole.T), ("b", whole[1:])], tmp_path)
    back = load_file(tmp_path / "model.safetensors")
    assert torch.equal(back["a"], whole.T)
    assert torch.equal(back["b"], whole[1:])


def test_transformers_loads_a_streamed_model(tmp_path):
    config = preset("tiny", vocab_size=64, num_hidden_layers=2)
    model = CM3ForCausalLM(config)
    weights = dict(model.named_parameters())
    table = RenamedTable({name: (lambda name=name: weights[name].detach()) for name in weights})
    StreamedModel(config, table, "memory", shard_bytes=400_000).save_pretrained(tmp_path)
    assert (tmp_path / INDEX).exists()
    back = CM3ForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.gain": torch.ones(2)}, "model.norm.gain is not expected"),
        ({"model.layers.1.mlp.up_proj.weight": None}, "model.layers.1.mlp.up_proj.weight is missing"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.ones(3, 3)}, r"q_proj.weight is \(3, 3\), expected \(128, 128\)"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.full((128, 128), float("nan"))}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    config = preset("tiny", vocab_size=64, num_hidden_layers=2)
    weights = {name: tensor.detach() for name, tensor in CM3ForCausalLM(config).named_parameters()} | change
    table = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(ArtefactError, match=message):
        StreamedModel(config, table, "memory").save_pretrained(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ArtefactError, match=r"no \.safetensors file"):
        SafetensorsTable(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ArtefactError, match="no readable safetensors file"):
        SafetensorsTable(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ArtefactError, match="model-00002-of-00002.safetensors is missing"):
        SafetensorsTable(tmp_path)


@pytest.mark.parametrize("index", [{"weight_map": 3}, {"weight_map": {"a": 1}}, {}])
def test_an_index_that_maps_nothing_is_refused(tmp_path, index):
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ArtefactError, match="has no weight_map from names to files"):
        SafetensorsTable(tmp_path)
