"""The SigLIP encoder gives what transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cm3.documents.document import Document
from retrieval.encoders import Encoder, load_encoder

LENGTH = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pairs: list[Document]) -> Path:
    """A random SigLIP of the smallest size; padding and end of text are id 1, as in the released ones."""
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        [pair.text for pair in pairs], trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 80, "max_position_embeddings": LENGTH, "projection_size": 16, "pad_token_id": 1}
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config={**tower, "image_size": 24, "patch_size": 12})).save_pretrained(
        folder
    )
    SiglipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def test_vectors_equal_those_of_transformers(folder: Path, pairs: list[Document]) -> None:
    model = SiglipModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    texts, images = [pair.text for pair in pairs], [pair.images[0].load().resize((40, 30)) for pair in pairs]
    ids = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=processor(images, return_tensors="pt")["pixel_values"])
    ours = load_encoder(folder)
    assert isinstance(ours, Encoder)
    assert (ours.kind, ours.width) == ("siglip", 16)
    assert np.abs(ours.encode_texts(texts) - theirs.text_embeds.numpy()).max() <= 1e-5
    assert np.abs(ours.encode_images(images) - theirs.image_embeds.numpy()).max() <= 1e-5
