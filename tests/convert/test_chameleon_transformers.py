"""Chameleon in the layout of transformers: the same numbers, codes and words, and every byte back."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import ChameleonForConditionalGeneration

from cm3.core import artefact
from cm3.model import CM3ForCausalLM
from cm3.model_conversion import convert, export
from cm3.model_folder import open_model_folder

IMAGE_IDS = slice(4, 20)


def ids(batch: int, length: int, size: int) -> torch.Tensor:
    """Token ids with codes among them, as a document has them."""
    return torch.randint(0, size, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("swin_norm", [False, True])
def test_equals_transformers(transformers_folder, tmp_path, swin_norm):
    source = transformers_folder(swin_norm)
    reference = ChameleonForConditionalGeneration.from_pretrained(transformers_folder(swin_norm, decoder=False)).eval()
    convert(source, tmp_path / "ours")
    opened = open_model_folder(tmp_path / "ours")
    tokens = ids(2, 21, opened.tokenizer.vocab.size)
    with torch.no_grad():
        ours, theirs = opened.model(tokens).logits, reference(tokens).logits
        unmasked = reference.lm_head(reference.model(tokens).last_hidden_state)
    is_text = torch.ones(ours.shape[-1], dtype=torch.bool)
    is_text[IMAGE_IDS] = False
    torch.testing.assert_close(ours[..., is_text], theirs[..., is_text], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[..., IMAGE_IDS], unmasked[..., IMAGE_IDS], atol=1e-5, rtol=1e-5)
    assert (theirs[..., IMAGE_IDS] < -1e30).all()  # the reference rules pictures out, ours does not

    prompt = ids(1, 6, 4).clamp_min(3) + 40
    how = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    expected = reference.generate(prompt, **how)
    got = opened.model.generate(prompt, **how, suppress_tokens=list(range(4, 20)))
    assert got.tolist() == expected.tolist()
    assert len(set(got[0].tolist())) > 6  # not one token over and over

    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        codes = reference.model.vqmodel.encode(pixels).image_tokens.view(3, 2, 2)
        tokens_of_codes = reference.model.get_image_tokens(pixels)
    images = opened.tokenizer.image_tokenizer
    assert images.encode(pixels).tolist() == codes.tolist()
    assert opened.tokenizer.vocab.image_ids(codes).view(3, -1).tolist() == tokens_of_codes.tolist()
    assert images.decode(codes).shape == pixels.shape


def test_the_round_trip_gives_every_byte_back(transformers_folder, tmp_path):
    source = transformers_folder()
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs", "chameleon")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "theirs"))
    assert {**first, "transformers_version": 0} == {**second, "transformers_version": 0}
    ChameleonForConditionalGeneration.from_pretrained(transformers_folder(decoder=False), config=tmp_path / "theirs")

    convert(tmp_path / "theirs", tmp_path / "again")
    tables = [artefact.read_manifest(tmp_path / name).files for name in ("ours", "again")]
    different = {name for name in tables[0] if tables[0][name] != tables[1].get(name)}
    assert different <= {"image_tokenizer/manifest.json"}  # which names its own source file


def test_half_precision_stays_half_precision(transformers_folder, tmp_path):
    reference = ChameleonForConditionalGeneration.from_pretrained(transformers_folder(decoder=False), dtype=torch.bfloat16)
    source = tmp_path / "half"
    reference.save_pretrained(source)
    (source / "tokenizer.json").write_bytes((transformers_folder() / "tokenizer.json").read_bytes())
    convert(transformers_folder(), tmp_path / "whole")
    convert(source, tmp_path / "ours", image_tokenizer=tmp_path / "whole" / "image_tokenizer")
    model = CM3ForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, reference.lm_head.weight)
