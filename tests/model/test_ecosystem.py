"""The model under torch.compile and FlexAttention, and as transformers' own auto classes and generation see it."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cm3.model import CM3Config, CM3ForCausalLM, CM3Model, create_model

SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
GRID = {"grid_embedding": True, "grid_shape": (2, 3), "image_start": 40, "image_stop": 60}


def ids(batch: int, length: int, most: int = 60) -> torch.Tensor:
    return torch.randint(3, most, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def compiled_caches():
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiled_caches")
def test_the_whole_model_is_one_graph() -> None:
    """`fullgraph` refuses any break; the graph gives the same loss and gradients as the model itself."""
    model = create_model(CM3Config(**SHAPE, **GRID, qk_norm="per_head", dropout=0.0), seed=0)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    tokens, documents = ids(2, 12), torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        network(tokens, labels=tokens, document_ids=documents).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, of_graph in zip(*gradients):
        torch.testing.assert_close(of_graph, plain)


@pytest.mark.usefixtures("compiled_caches")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask")
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_flex_attention_equals_sdpa_on_packed_documents() -> None:
    model = create_model(CM3Config(**SHAPE), seed=0).eval()
    tokens, documents = ids(2, 12), torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    expected = model(tokens, document_ids=documents).logits
    model.set_attn_implementation("flex_attention")
    # the same mathematics without a C++ compiler, and forward alone: FlexAttention has no backward pass on a CPU
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        got = model(tokens, document_ids=documents).logits
        causal = model(tokens).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(causal, expected)


def test_flash_attention_is_refused_for_packed_documents_by_name() -> None:
    model = create_model(CM3Config(**SHAPE), seed=0)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa, eager or flex_attention"):
        model(ids(1, 4), document_ids=torch.zeros(1, 4, dtype=torch.long))


def test_auto_classes_load_every_variant(tmp_path) -> None:
    variant = {"norm_placement": "post_branch", "norm": "rmsnorm", "qk_norm": "per_head", "tie_word_embeddings": False}
    model = create_model(CM3Config(**SHAPE, **GRID, **variant), seed=0)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "cm3"
    loaded_config, own = (config.to_dict() for config in (AutoConfig.from_pretrained(tmp_path), model.config))
    assert {**loaded_config, "_name_or_path": ""} == {**own, "_name_or_path": ""}
    assert isinstance(AutoModel.from_pretrained(tmp_path), CM3Model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert isinstance(loaded, CM3ForCausalLM)
    assert loaded.dtype == torch.bfloat16
    tokens = ids(1, 7)
    fresh = AutoModelForCausalLM.from_config(model.config).eval()
    assert fresh(tokens).logits.shape == model(tokens).logits.shape


def test_generate_takes_padded_prompts_and_beams(randomize) -> None:
    model = randomize(create_model(CM3Config(**SHAPE), seed=0).eval(), 2)
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    long, short = ids(1, 7, 40), ids(1, 4, 40)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1)
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    both = model.generate(torch.cat([long, padded]), attention_mask=mask, **how)
    assert both[0].tolist() == model.generate(long, **how)[0].tolist()
    assert both[1, 3:].tolist() == model.generate(short, **how)[0].tolist()
    assert model.generate(long, num_beams=2, **how).shape == (1, 13)
