"""Conversion on random weights: the same codes and pixels as the reference, and the same tensors back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from cm3.core.errors import ArtefactError, InputError, UsageError
from vqgan.config import VQConfig, VQTrainConfig
from vqgan.conversion.convert import convert, detect, export
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer, from_pretrained

SIZES = {"embed_dim": 8, "num_embeddings": 32, "latent_channels": 16, "base_channels": 32, "channel_multiplier": [1, 1, 2]}
TAMING = VQConfig(
    image_size=32,
    downsample_factor=4,
    codebook_size=32,
    codebook_dim=8,
    network="taming",
    network_options={
        "channels": 32,
        "channel_multipliers": (1, 1, 2),
        "residual_blocks": 1,
        "attention_levels": (2,),
        "latent_channels": 16,
    },
    quantizer="vq",
)
FITTING = {"channels": 128, "residual_blocks": 2}  # all that LlamaGen's code builds
LLAMAGEN = TAMING.model_copy(update={"network_options": {**TAMING.network_options, **FITTING}, "quantizer": "cosine"})
DVAE = VQConfig(
    image_size=32,
    downsample_factor=4,
    codebook_size=32,
    codebook_dim=8,
    network="dvae",
    network_options={"hidden": 8, "groups": 3},
    quantizer="gumbel",
    quantizer_options={"latent_dim": 32},
)


def _pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _saved(config: VQConfig, path: Path) -> VQTokenizer:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(VQModel(config))
    tokenizer.save(path)
    return tokenizer


@torch.no_grad()
def test_janus_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = JanusVQVAE(JanusVQVAEConfig(**SIZES, num_res_blocks=1, num_patches=8)).eval()
    reference.save_pretrained(tmp_path / "janus")
    tokenizer = convert(tmp_path / "janus", tmp_path / "ours", image_size=32)
    codes = tokenizer.encode(_pixels())
    assert torch.equal(codes.flatten(), reference.encode(_pixels()).image_tokens.flatten())
    assert torch.allclose(tokenizer.decode(codes), reference.decode(codes.flatten(1)).clamp(-1, 1), atol=1e-5)
    back = load_file(export(tmp_path / "ours", tmp_path / "back.safetensors", "janus"))
    original = load_file(tmp_path / "janus" / "model.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)


@torch.no_grad()
def test_chameleon_of_transformers_encodes_and_says_that_it_has_no_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = ChameleonVQVAE(ChameleonVQVAEConfig(**SIZES, num_res_blocks=1, attn_resolutions=None)).eval()
    reference.save_pretrained(tmp_path / "hf")
    whole = {"model.vqmodel." + name: tensor for name, tensor in reference.state_dict().items()}
    save_file(whole | {"model.norm.weight": torch.ones(4)}, tmp_path / "whole.safetensors")
    for source in ("hf", "whole.safetensors"):
        convert(tmp_path / source, tmp_path / f"from-{source}", image_size=32)
        tokenizer = from_pretrained(tmp_path / f"from-{source}")
        codes = tokenizer.encode(_pixels())
        assert torch.equal(codes.flatten(), reference.encode(_pixels()).image_tokens.flatten())
        latents = reference.quant_conv(reference.encoder(_pixels()))
        assert torch.allclose(tokenizer.model.latents(_pixels()), latents, atol=1e-5)
        with pytest.raises(InputError, match=r"has no decoder.*tokenizer/vqgan\.ckpt"):
            tokenizer.decode(codes)
    back = load_file(export(tmp_path / "from-hf", tmp_path / "back.safetensors", "chameleon"))
    original = load_file(tmp_path / "hf" / "model.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)
    with pytest.raises(UsageError, match=r"'taming' can't hold decoder False"):
        export(tmp_path / "from-hf", tmp_path / "back.safetensors", "taming")
    with pytest.raises(ArtefactError, match="holds no decoder"):
        convert(tmp_path / "hf", tmp_path / "out", "taming")
    with pytest.raises(UsageError, match="decoder=false can't be trained"):
        VQTrainConfig.model_validate({"tokenizer": {"decoder": False}}).resolve()


@torch.no_grad()
@pytest.mark.parametrize("levels", [(), (2,)])
def test_ours_opens_as_chameleon_in_transformers(levels: tuple[int, ...], tmp_path: Path) -> None:
    config = TAMING.model_copy(update={"network_options": {**TAMING.network_options, "attention_levels": levels}})
    tokenizer = _saved(config, tmp_path / "a")
    reference = ChameleonVQVAE.from_pretrained(export(tmp_path / "a", tmp_path / "hf", "chameleon")).eval()
    assert torch.equal(tokenizer.encode(_pixels()).flatten(), reference.encode(_pixels()).image_tokens.flatten())
    latents = reference.quant_conv(reference.encoder(_pixels()))
    assert torch.allclose(tokenizer.model.latents(_pixels()), latents, atol=1e-5)


@torch.no_grad()
def test_ours_opens_as_janus_in_transformers(tmp_path: Path) -> None:
    config = TAMING.model_copy(update={"quantizer_options": {"unit_lookup": True}})
    tokenizer = _saved(config, tmp_path / "a")
    reference = JanusVQVAE.from_pretrained(export(tmp_path / "a", tmp_path / "hf", "janus")).eval()
    codes = tokenizer.encode(_pixels())
    assert torch.equal(codes.flatten(), reference.encode(_pixels()).image_tokens.flatten())
    assert torch.allclose(tokenizer.decode(codes), reference.decode(codes.flatten(1)).clamp(-1, 1), atol=1e-5)
    _saved(TAMING, tmp_path / "plain")
    with pytest.raises(UsageError, match=r"ends in \.safetensors"):
        export(tmp_path / "plain", tmp_path / "folder", "taming")


def test_each_format_is_found_out_from_its_names(tmp_path: Path) -> None:
    options = {"channels": 32, "channel_multipliers": (1, 1, 2), "attention_levels": (2,)}  # the rest by default
    defaults = TAMING.model_copy(update={"network_options": options})
    unit = defaults.model_copy(update={"quantizer_options": {"unit_lookup": True}})
    names = {"taming": defaults, "llamagen": LLAMAGEN, "dalle": DVAE, "janus": unit}
    for format, config in names.items():
        _saved(config, tmp_path / format)
        assert detect(load_file(export(tmp_path / format, tmp_path / f"{format}.safetensors", format)), tmp_path) == format
    assert (export(tmp_path / "janus", tmp_path / "folder", "janus") / "config.json").is_file()


@pytest.mark.parametrize(
    ("format", "quantizer", "network", "options", "refused"),
    [
        ("taming", "vq", {"groups": 16}, {}, r"groups 16 \(always 32\)"),
        ("chameleon", "vq", {"groups": 16}, {}, r"groups 16 \(always 32\)"),
        ("janus", "vq", {"groups": 16}, {"unit_lookup": True}, r"groups 16 \(always 32\)"),
        (
            "llamagen",
            "cosine",
            {"groups": 16},
            {},
            r"groups 16 \(always 32\), channels 32 \(always 128\), residual_blocks 1 \(always 2\); take another format",
        ),
        ("taming", "vq", {}, {"unit_lookup": True}, r"unit_lookup True \(always False\)"),
        ("chameleon", "vq", {}, {"unit_lookup": True}, r"unit_lookup True \(always False\)"),
        ("janus", "vq", {}, {}, r"unit_lookup False \(always True\)"),
        ("janus", "vq", {"attention_levels": ()}, {"unit_lookup": True}, r"attention_levels \[\] \(always \[2\]\)"),
        ("llamagen", "cosine", {**FITTING, "attention_levels": (1, 2)}, {}, r"attention_levels \[1, 2\] \(always \[2\]\)"),
        ("llamagen", "cosine", {**FITTING, "middle_attention": False}, {}, r"middle_attention False \(always True\)"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(
    format: str, quantizer: str, network: dict[str, Any], options: dict[str, Any], refused: str, tmp_path: Path
) -> None:
    changes = {"network_options": {**TAMING.network_options, **network}, "quantizer": quantizer, "quantizer_options": options}
    _saved(TAMING.model_copy(update=changes), tmp_path / "a")
    with pytest.raises(UsageError, match=f"format '{format}' can't hold {refused}"):
        export(tmp_path / "a", tmp_path / "x.safetensors", format)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_wrong_format_side_or_table_is_one_sentence(tmp_path: Path) -> None:
    _saved(TAMING, tmp_path / "a")
    source = export(tmp_path / "a", tmp_path / "t.safetensors", "taming")
    with pytest.raises(ArtefactError, match=r"it is not LlamaGen's; leave --from out"):
        convert(source, tmp_path / "b", "llamagen", image_size=32)
    with pytest.raises(UsageError, match="image_size 30 is not a multiple of downsample_factor 4"):
        convert(source, tmp_path / "b", image_size=30)
    codebook, level = "quantize.embedding.weight", "encoder.down.1.block.0.conv1.weight"
    for name, change, said in (
        (level, {}, f"no tensor '{level}'"),
        (codebook, {codebook: torch.zeros(32)}, rf"'{codebook}' of the checkpoint is \(32,\), expected 2 dimensions"),
    ):
        table = {key: tensor for key, tensor in load_file(source).items() if key != name}
        save_file({**table, **change}, tmp_path / "odd.safetensors")
        with pytest.raises(ArtefactError, match=said):
            convert(tmp_path / "odd.safetensors", tmp_path / "b", image_size=32)
    _saved(DVAE, tmp_path / "d")
    source = export(tmp_path / "d", tmp_path / "d.safetensors", "dalle")
    with pytest.raises(UsageError, match="image_size 30 is not a multiple"):
        convert(source, tmp_path / "b", image_size=30)
    with pytest.raises(ArtefactError, match=r"no tensor 'decoder\.up\.\*'"):
        convert(source, tmp_path / "b", "janus")


def test_weights_of_another_layout_name_the_first_differences(tmp_path: Path) -> None:
    _saved(TAMING, tmp_path / "a")
    table = load_file(export(tmp_path / "a", tmp_path / "t.safetensors", "taming"))
    table["decoder.conv_in.weight"] = table["decoder.conv_in.weight"][:, :3].clone()
    del table["decoder.norm_out.bias"]
    save_file(table, tmp_path / "odd.safetensors")
    with pytest.raises(
        ArtefactError, match=r"2 differences.*decoder\.conv_in\.weight is \(64, 3.*decoder\.norm_out\.bias is missing"
    ):
        convert(tmp_path / "odd.safetensors", tmp_path / "b", image_size=32)
    table = load_file(tmp_path / "t.safetensors")
    table["encoder.conv_in.bias"][0] = float("nan")
    save_file(table, tmp_path / "nan.safetensors")
    with pytest.raises(ArtefactError, match=r"encoder\.conv_in\.bias holds values that are not finite"):
        convert(tmp_path / "nan.safetensors", tmp_path / "b", image_size=32)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("wrapped", [False, True])
def test_taming_there_and_back(wrapped: bool, tmp_path: Path) -> None:
    tokenizer = _saved(TAMING, tmp_path / "a")
    table = load_file(export(tmp_path / "a", tmp_path / "t.safetensors", "taming"))
    assert "quantize.embedding.weight" in table
    prefix = "first_stage_model." if wrapped else ""
    checkpoint = {prefix + name: tensor for name, tensor in table.items()} | {"loss.logvar": torch.zeros(1)}
    torch.save({"state_dict": checkpoint, "epoch": 3}, tmp_path / "last.ckpt")
    again = convert(tmp_path / "last.ckpt", tmp_path / "b", image_size=32)
    assert again.config == TAMING.model_copy(update={"network_options": {**again.config.network_options, "groups": 32}})
    assert TAMING.network_options.items() <= again.config.network_options.items()
    assert torch.equal(from_pretrained(tmp_path / "b").codebook, tokenizer.codebook)
    codes = tokenizer.encode(_pixels())
    assert torch.equal(again.encode(_pixels()), codes)
    assert torch.equal(again.decode(codes), tokenizer.decode(codes))


def test_gumbel_taming(tmp_path: Path) -> None:
    config = TAMING.model_copy(update={"quantizer": "gumbel", "quantizer_options": {"straight_through": True}})
    tokenizer = _saved(config, tmp_path / "a")
    again = convert(export(tmp_path / "a", tmp_path / "t.safetensors", "taming"), tmp_path / "b", image_size=32)
    assert again.config.quantizer == "gumbel"
    assert torch.equal(again.encode(_pixels()), tokenizer.encode(_pixels()))


@torch.no_grad()
def test_llamagen_names_and_unit_codes(tmp_path: Path) -> None:
    tokenizer = _saved(LLAMAGEN, tmp_path / "a")
    table = load_file(export(tmp_path / "a", tmp_path / "t.safetensors", "llamagen"))
    expected = {  # as printed from the original class
        "encoder.conv_blocks.0.res.0.conv1.weight": (128, 128, 3, 3),
        "encoder.conv_blocks.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.conv_blocks.2.attn.1.q.weight": (256, 256, 1, 1),
        "encoder.mid.1.proj_out.weight": (256, 256, 1, 1),
        "decoder.conv_blocks.0.res.2.norm1.weight": (256,),
        "decoder.conv_blocks.0.attn.1.k.weight": (256, 256, 1, 1),
        "decoder.conv_blocks.0.upsample.conv.weight": (256, 256, 3, 3),
        "decoder.conv_blocks.2.res.0.conv1.weight": (128, 128, 3, 3),
        "quantize.embedding.weight": (32, 8),
        "quantize.codebook_used": (65536,),
    }
    assert {name: tuple(table[name].shape) for name in expected} == expected
    assert "decoder.conv_blocks.2.upsample.conv.weight" not in table
    table["quantize.embedding.weight"] *= torch.rand(32, 1) + 0.5  # stored at any length
    torch.save({"model": table}, tmp_path / "vq.pt")
    again = convert(tmp_path / "vq.pt", tmp_path / "b", image_size=32)
    latents = again.model.latents(_pixels()).permute(0, 2, 3, 1)
    cosine = F.cosine_similarity(latents[..., None, :], table["quantize.embedding.weight"], dim=-1)
    assert torch.equal(again.encode(_pixels()), cosine.argmax(-1))
    codes = tokenizer.encode(_pixels())
    assert torch.allclose(again.decode(codes), tokenizer.decode(codes), atol=1e-5)


@torch.no_grad()
def test_dalle_names_and_input_bias(tmp_path: Path) -> None:
    tokenizer = _saved(DVAE, tmp_path / "a")
    table = load_file(export(tmp_path / "a", tmp_path / "t.safetensors", "dalle"))
    assert tuple(table["encoder.blocks.group_2.block_1.id_path.w"].shape) == (16, 8, 1, 1)
    assert tuple(table["encoder.blocks.group_1.block_1.res_path.conv_4.w"].shape) == (8, 2, 1, 1)
    assert tuple(table["decoder.blocks.group_1.block_1.res_path.conv_1.w"].shape) == (8, 8, 1, 1)
    bias = torch.randn(8)
    table["decoder.blocks.input.b"] = bias
    table["decoder.blocks.input.w"] = table["decoder.blocks.input.w"] - bias[:, None, None, None]
    save_file(table, tmp_path / "biased.safetensors")
    again = convert(tmp_path / "biased.safetensors", tmp_path / "b", image_size=32)
    codes = tokenizer.encode(_pixels())
    assert torch.equal(again.encode(_pixels()), codes)
    assert torch.allclose(again.decode(codes), tokenizer.decode(codes), atol=1e-5)


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    _saved(DVAE, tmp_path / "a")
    with pytest.raises(UsageError, match="holds a 'taming' network"):
        export(tmp_path / "a", tmp_path / "x.safetensors", "taming")
    with pytest.raises(InputError, match="no known format"):
        detect({"foo.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(InputError, match="there is no checkpoint"):
        convert(tmp_path / "missing.pt", tmp_path / "b")
    (tmp_path / "words.txt").write_text("no weights")
    with pytest.raises(InputError, match="no known kind"):
        convert(tmp_path / "words.txt", tmp_path / "b")
    torch.save({"state_dict": Path("code")}, tmp_path / "code.ckpt")
    with pytest.raises(ArtefactError, match="holds more than tensors"):
        convert(tmp_path / "code.ckpt", tmp_path / "b")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 this is no zip")
    with pytest.raises(ArtefactError, match="no readable|holds more"):
        convert(tmp_path / "broken.pt", tmp_path / "b")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ArtefactError, match="no readable safetensors"):
        convert(tmp_path / "broken.safetensors", tmp_path / "b")
    assert not (tmp_path / "b").exists()
