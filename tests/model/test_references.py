"""The published variants against transformers' own models, and against numbers kept from them (`tests/golden/model`).

The kept numbers are what transformers 5.23 computed from `formula_weights`, which depend on no random generator: when this
model and the library both change, they still say which one did. `python tests/model/test_references.py` makes them again.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.models.chameleon import ChameleonVQVAEConfig

from cm3.model import CM3Config, CM3ForCausalLM, preset

GOLDEN = Path(__file__).parent.parent / "golden" / "model" / "logits.json"
SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = [[7, 3, 58, 21, 40, 11, 3, 35], [1, 2, 3, 5, 8, 13, 21, 34]]


def formula_weights(model: torch.nn.Module) -> None:
    """Weights by a formula: sines of their place, around 1 for gains."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            values = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + index) * 0.25
            is_gain = "norm" in name and name.endswith("weight")
            parameter.copy_((values + is_gain).view(parameter.shape))


def opt() -> PreTrainedModel:
    """OPT without biases and without parameters in its norms: what CM3Leon is built on."""
    config = OPTConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, word_embed_proj_dim=32,
        max_position_embeddings=16, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="relu",
        dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return OPTForCausalLM(config)


def chameleon(swin_norm: bool) -> PreTrainedModel:
    vq = ChameleonVQVAEConfig(
        embed_dim=4, num_embeddings=8, latent_channels=4, resolution=8, base_channels=32, channel_multiplier=[1]
    )
    config = ChameleonConfig(
        **SHAPE, intermediate_size=48, num_key_value_heads=2, swin_norm=swin_norm, vq_config=vq, vocabulary_map={"<image>": 59}
    )
    return ChameleonForConditionalGeneration(config)


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2, rms_norm_eps=1e-5))


REFERENCES = {
    "cm3leon": (opt, {}),
    "chameleon-7b": (lambda: chameleon(False), {}),
    "chameleon-34b": (lambda: chameleon(True), {"norm_placement": "post_branch"}),
    "llama": (llama, {"qk_norm": "none"}),
}
_OPT_NAMES = (
    ("model.decoder.", "model."),
    (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".fc1.", ".mlp.up_proj."),
    (".fc2.", ".mlp.down_proj."),
)


def ours(name: str, weights: dict[str, torch.Tensor]) -> CM3ForCausalLM:
    """Our model of the same variant with the reference's weights."""
    if name == "cm3leon":
        config = preset("cm3leon-350m", **SHAPE, max_position_embeddings=16)
        for theirs, own in _OPT_NAMES:
            weights = {key.replace(theirs, own): value for key, value in weights.items()}
        weights["model.embed_positions.weight"] = weights["model.embed_positions.weight"][2:]  # OPT's rows begin at its padding
    else:
        variant = {"norm": "rmsnorm", "qk_norm": "per_head", "num_key_value_heads": 2, "tie_word_embeddings": False}
        config = CM3Config(**{**SHAPE, "intermediate_size": 48, **variant, **REFERENCES[name][1]})
    model = CM3ForCausalLM(config).eval()
    model.load_state_dict({key: value for key, value in weights.items() if "vqmodel" not in key}, strict=True)
    return model


def reference_logits(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(2, 8, 59) logits of the reference, without its masked last id, and its weights."""
    model = REFERENCES[name][0]().eval()
    formula_weights(model)
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits[..., :59], model.state_dict()


@pytest.mark.parametrize("name", list(REFERENCES))
def test_equals_the_reference_and_the_kept_numbers(name: str) -> None:
    expected, weights = reference_logits(name)
    with torch.no_grad():
        got = ours(name, dict(weights))(torch.tensor(TOKENS)).logits[..., :59]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    kept = torch.tensor(json.loads(GOLDEN.read_text())[name])
    torch.testing.assert_close(got[:, -1, ::6], kept, atol=2e-5, rtol=1e-5)


if __name__ == "__main__":
    table = {name: reference_logits(name)[0][:, -1, ::6].tolist() for name in REFERENCES}
    GOLDEN.write_text(
        json.dumps({name: [[round(v, 7) for v in row] for row in rows] for name, rows in table.items()}, indent=1) + "\n"
    )
