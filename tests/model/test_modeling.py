"""The transformer against independent references and against its own other paths."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, ChameleonConfig, ChameleonForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.models.chameleon import ChameleonVQVAEConfig

from cm3.model import CM3Config, CM3ForCausalLM, create_model, preset

VOCAB, WIDTH, LAYERS, HEADS = 60, 32, 2, 4
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
}


def tiny(**overrides: object) -> CM3ForCausalLM:
    fields = {**COMMON, "grid_embedding": True, "grid_shape": (2, 3), "image_start": 40, "image_stop": 60, "qk_norm": "shared"}
    return create_model(CM3Config(**{**fields, **overrides}), seed=0).eval()


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_equals_llama(randomize) -> None:
    config = LlamaConfig(
        **COMMON, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, max_position_embeddings=64
    )
    reference = LlamaForCausalLM(config).eval()
    randomize(reference, 1)
    ours = CM3ForCausalLM(CM3Config(**COMMON, num_key_value_heads=2, norm="rmsnorm", tie_word_embeddings=False)).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    tokens = ids(3, 17)
    torch.testing.assert_close(ours(tokens).logits, reference(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reordered", [False, True])
def test_equals_chameleon(reordered: bool, randomize) -> None:
    vq = ChameleonVQVAEConfig(
        embed_dim=4, num_embeddings=8, latent_channels=4, resolution=8, base_channels=32, channel_multiplier=[1]
    )
    config = ChameleonConfig(
        **COMMON, num_key_value_heads=HEADS, swin_norm=reordered, vq_config=vq, vocabulary_map={"<image>": 59}, rope_theta=10000.0
    )
    reference = ChameleonForConditionalGeneration(config).eval()
    randomize(reference, 2)
    placement = "post_branch" if reordered else "pre"
    variant = {"norm": "rmsnorm", "qk_norm": "per_head", "norm_placement": placement, "tie_word_embeddings": False}
    ours = CM3ForCausalLM(CM3Config(**COMMON, **variant)).eval()
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith("model.vqmodel")}
    ours.load_state_dict(weights, strict=True)
    tokens = ids(2, 19) % 50
    torch.testing.assert_close(ours(tokens).logits[..., :59], reference(tokens).logits[..., :59], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position_embedding", ["rotary", "learned", "none"])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_cached_equals_uncached(position_embedding: str, activation: str, randomize) -> None:
    model = tiny(position_embedding=position_embedding, activation=activation)
    randomize(model, 3)
    tokens = ids(2, 12)
    grid = torch.where(tokens >= 40, tokens % 6 + 1, 0)
    full = model(tokens, grid_positions=grid).logits
    cache, pieces = None, []
    for start, stop in [(0, 5), (5, 6), (6, 10), (10, 12)]:
        out = model(tokens[:, start:stop], grid_positions=grid[:, start:stop], past_key_values=cache, use_cache=True)
        cache, pieces = out.past_key_values, [*pieces, out.logits]
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_packed_documents_equal_the_documents_alone(backend: str) -> None:
    model = tiny(num_key_value_heads=2)
    model.set_attn_implementation(backend)
    first, second = ids(1, 7, seed=1), ids(1, 5, seed=2)
    row = torch.cat([first, second], dim=1)
    document_ids = torch.tensor([[1] * 7 + [2] * 5])
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    packed = model(row, document_ids=document_ids, position_ids=positions).logits
    alone = torch.cat([model(first).logits, model(second).logits], dim=1)
    # the grid positions of each row are derived from its own ids, and a run of image ids may not cross the seam
    assert (row[0, 6] < 40) or (row[0, 7] < 40)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_back_ends_agree_with_left_padding() -> None:
    model = tiny()
    tokens = ids(2, 9)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    grid = torch.zeros_like(tokens)
    outputs = {}
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        outputs[backend] = model(tokens, attention_mask=mask, position_ids=positions, grid_positions=grid).logits
    torch.testing.assert_close(outputs["sdpa"][:, 4:], outputs["eager"][:, 4:], atol=1e-5, rtol=1e-5)
    alone = model(tokens[:1, 4:], grid_positions=grid[:1, 4:]).logits
    torch.testing.assert_close(outputs["eager"][:1, 4:], alone, atol=1e-5, rtol=1e-5)


def test_a_token_sees_no_later_token() -> None:
    model = tiny()
    tokens = ids(1, 10)
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 40
    grid = torch.zeros_like(tokens)
    before, after = model(tokens, grid_positions=grid).logits, model(changed, grid_positions=grid).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_generate_equals_a_loop_without_cache(randomize) -> None:
    model = tiny(grid_embedding=True)
    randomize(model, 4)
    model.generation_config.eos_token_id = None
    tokens = ids(2, 6).clamp_min(1)  # transformers takes a pad id inside a prompt for padding
    generated = model.generate(tokens, max_new_tokens=8, do_sample=False)
    row = tokens
    for _ in range(8):
        row = torch.cat([row, model(row).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, row)
    static = model.generate(tokens, max_new_tokens=8, do_sample=False, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, row)


def test_save_and_load(tmp_path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, CM3ForCausalLM)
    assert loaded.config.grid_shape == (2, 3)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for (name, weight), other in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(weight, other), name


def test_labels_give_the_mean_cross_entropy_also_on_image_tokens() -> None:
    model = tiny()
    tokens = ids(2, 9)
    labels = tokens.clone()
    labels[:, :3] = -100
    out = model(tokens, labels=labels)
    expected = F.cross_entropy(out.logits[:, 2:-1].reshape(-1, VOCAB), tokens[:, 3:].reshape(-1))
    torch.testing.assert_close(out.loss, expected)
    assert torch.isfinite(out.loss)


def test_project_on_a_range_and_logits_to_keep() -> None:
    model = tiny()
    tokens = ids(2, 5)
    hidden = model.model(tokens).last_hidden_state
    logits = model(tokens).logits
    torch.testing.assert_close(model.project(hidden), logits)
    torch.testing.assert_close(model.project(hidden[:, -1], (40, 60)), logits[:, -1, 40:60])
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, logits[:, -2:])


def test_hidden_states_and_attentions_are_given_when_asked_for() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    out = model(ids(1, 4), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == LAYERS + 1
    assert [tuple(weights.shape) for weights in out.attentions] == [(1, HEADS, 4, 4)] * LAYERS
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(1, HEADS, 4))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    tokens = ids(2, 6)
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model(tokens, labels=tokens).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_lora_trains_and_merges() -> None:
    peft = pytest.importorskip("peft")
    model = tiny(tie_word_embeddings=False)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)
    tokens = ids(2, 6)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    with_adapter = adapted.eval()(input_ids=tokens).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, with_adapter, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(merged(tokens).logits, tiny(tie_word_embeddings=False)(tokens).logits)


def test_paper_initialization() -> None:
    shape = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 500,
        "max_position_embeddings": 32,
    }
    model = create_model(preset("cm3leon-350m", **shape), seed=0)
    layer = model.model.layers[0]
    assert layer.self_attn.o_proj.weight.abs().max() == 0
    assert layer.mlp.down_proj.weight.abs().max() == 0
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for weight, std in [
        (layer.self_attn.q_proj.weight, 0.006),
        (layer.mlp.up_proj.weight, 0.006),
        (model.model.embed_tokens.weight, 0.006),
        (model.model.embed_positions.weight, 0.0002),
    ]:
        assert weight.abs().max() <= 3 * std
        assert abs(weight.std().item() / std - 0.987) < 0.05  # a normal cut at 3 deviations keeps 98.7 % of its deviation
    assert not [name for name, _ in model.named_parameters() if "norm" in name or "bias" in name]


def test_same_seed_same_model_and_global_state_untouched() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (create_model(CM3Config(**COMMON), seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_dropout_acts_only_in_training() -> None:
    model = tiny(dropout=0.5)
    tokens = ids(1, 5)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "exactly one of input_ids"),
        ({"inputs_embeds": torch.zeros(1, 2, WIDTH)}, "grid_positions"),
        ({"input_ids": ids(1, 4), "document_ids": ids(1, 4), "attention_mask": torch.ones(1, 4)}, "no attention_mask"),
        ({"input_ids": ids(1, 4), "position_ids": torch.full((1, 4), 99)}, "longer than max_position_embeddings=16"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call: dict, message: str) -> None:
    model = tiny(position_embedding="learned", max_position_embeddings=16)
    with pytest.raises(ValueError, match=message):
        model.model(**call)
