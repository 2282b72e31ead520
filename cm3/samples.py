"""Pictures drawn while a token model trains: prompts from held-out documents, the model as it is, one sheet per evaluation.

    held-out shards + image tokenizer ──► PictureSampler ──► RUN/pictures/step-XXXXXXXX-samples.png

It stands above the stages because it joins them: pretraining itself knows neither decoding nor an image tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vqgan
from cm3.core.errors import ArtefactError
from cm3.decode.engine import DecodingEngine
from cm3.decode.grammar import ImageAnswer
from cm3.decode.prompts import continuation
from cm3.decode.records import Request, codes_of
from cm3.model import CM3ForCausalLM
from cm3.pretrain.attention import for_decoding
from cm3.sequences.shards import TokenShards
from cm3.tokenize.vocabulary import require_own_image_tokenizer
from cm3.tokens import TokenizedDocument, Vocab


class PictureSampler:
    """Draws pictures for the first texts of held-out shards; a `cm3.pretrain.task.Sampler`.

    held_out: token shards; image_tokenizer: a folder; count: pictures per sheet; the same seed and weights give the same sheet.
    Raises `ArtefactError` when the image tokenizer is not the one whose codes the shards hold.
    """

    def __init__(self, held_out: Path, image_tokenizer: Path, vocab: Vocab, count: int = 8, seed: int = 0) -> None:
        self._images, self._vocab, self._seed = vqgan.from_pretrained(image_tokenizer), vocab, seed
        given = (self._images.codebook_size, tuple(self._images.grid_shape))
        if given != (vocab.codebook_size, vocab.grid_shape):
            raise ArtefactError(
                f"{image_tokenizer} has codebook_size={given[0]} and grid_shape={given[1]}, the vocabulary {vocab.codebook_size} "
                f"and {vocab.grid_shape}; they do not belong together"
            )
        require_own_image_tokenizer(held_out, image_tokenizer)
        shards = TokenShards(held_out, vocab)
        pairs = (shards[index] for index in range(len(shards)))
        self._prompts = [document for _, document in zip(range(count), filter(_is_pair, pairs))]

    def __call__(self, model: CM3ForCausalLM) -> dict[str, Image.Image]:
        """{"samples": one sheet}: the pictures that the model draws for its prompts, side by side."""
        if not self._prompts:
            return {}
        prompts = [continuation(_text_alone(document), self._vocab) for document in self._prompts]
        requests = [Request(prompt, ImageAnswer(), self._seed, index) for index, prompt in enumerate(prompts)]
        with for_decoding(model) as fitting:
            answers = DecodingEngine(fitting, self._vocab).generate(requests)
        codes = np.stack([codes_of(answer, self._vocab) for answer in answers])  # (N, h, w)
        with torch.inference_mode():
            pictures = self._images.postprocess(self._images.decode(torch.from_numpy(codes)))
        return {"samples": _sheet(pictures)}


def _is_pair(document: TokenizedDocument) -> bool:
    return [span.kind for span in document.spans] == ["text", "image"]


def _text_alone(document: TokenizedDocument) -> TokenizedDocument:
    """What stands before the picture: the document, cut at its first code."""
    cut = document.spans[1].start
    return TokenizedDocument(
        document.id,
        document.token_ids[:cut],
        document.grid_positions[:cut],
        document.spans[:1],
        document.loss_weights[:cut],
    )


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (width * index, 0))
    return sheet
