"""`CM3Pipeline`: Documents in, Documents out. It joins the parts of one model folder and adds nothing of its own.

    prompt (the task's own turns, neighbors before them) → cm3.decode → pieces → pictures through the image tokenizer

Everything random of picture i is fixed by the pair (seed, i), so picture 0 of four is the picture of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import retrieval
from cm3.core.errors import UsageError
from cm3.core.protocols import ImageTokenizer, Reranker, Retriever
from cm3.core.runfile import validate
from cm3.decode import (
    DecodingEngine,
    Done,
    FreeAnswer,
    Generation,
    ImageAnswer,
    ImagePiece,
    Piece,
    Prompt,
    Request,
    TextAnswer,
    TextPiece,
    codes_of,
    continuation,
    fill,
    infilling,
    pieces_of,
    rank_by_reranker,
    unconditional_image,
)
from cm3.decode.options import DecodingOptions
from cm3.decode.pieces import PieceAssembler
from cm3.documents.document import Document, ImageSegment
from cm3.documents.images import decode_image
from cm3.model import CM3ForCausalLM
from cm3.model_folder import Parts, assemble_model_folder, open_model_folder
from cm3.sequences.augmentation import augment
from cm3.sequences.masking import restore
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.messages import Message, required_text, turns_of
from cm3.tokens.regions import box_mask, image_mask, mask_cells
from cm3.tokens.tokenized import TokenizedDocument
from cm3.tokens.turns import Turn, encode_prompt

Picture = Image.Image | Path | str | bytes

DRAWING = DecodingOptions(temperature=0.7, top_p=0.9)  # Chameleon's own settings for pictures
EXACT = DecodingOptions(temperature=0.0)  # answers, captions, edits: the most likely one
TEXT_LIMIT = 96


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A picture with how it came about: codes (h, w) int64, the pair (seed, i) it was drawn with, the reranker's score."""

    image: Image.Image
    codes: np.ndarray
    seed: tuple[int, int]
    score: float | None = None


class CM3Pipeline:
    """Everything a model folder can do.

    model, tokenizer: the network and the document tokenizer (with its image tokenizer); tasks: name → task with the options
    that the model was tuned with (None: the defaults); parts: the folders of the optional parts.

    Keyword arguments called `options` below are the fields of `DecodingOptions`: strategy, guidance, temperature, top_k …
    """

    def __init__(
        self,
        model: CM3ForCausalLM,
        tokenizer: DocumentTokenizer,
        tasks: Mapping[str, Any] | None = None,
        parts: Parts | None = None,
    ) -> None:
        from sft.tasks import default_tasks  # tasks are named by the model folder and live outside this package

        self.model, self.tokenizer, self.vocab = model, tokenizer, tokenizer.vocab
        self.tasks = {**default_tasks(), **(tasks or {})}
        self.parts = parts or Parts()
        self.engine = DecodingEngine(model, tokenizer.vocab)

    @classmethod
    def from_pretrained(
        cls, path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, verify: bool = True
    ) -> CM3Pipeline:
        """Open a model folder, or one of the Hugging Face hub by its id ("owner/name").

        verify: compare every file with its hash. Raises `InputError` when there is none, `ArtefactError` when it is damaged
        or its parts do not belong together.
        """
        from sft.tasks import load_tasks

        folder = open_model_folder(path, verify, device, dtype)
        return cls(folder.model, folder.tokenizer, load_tasks(folder.path), folder.parts)

    def save(self, path: Path | str) -> Path:
        """Write a model folder with the parts this pipeline has; see `assemble_model_folder`."""
        from sft.tasks import TASKS_FILE, tasks_json

        files = {TASKS_FILE: tasks_json(self.tasks)}
        return assemble_model_folder(Path(path), self.model, self.tokenizer, self.parts, json_files=files)

    def generate(
        self, prompt: str | None, n: int = 1, best_of: int = 1, seed: int = 0, retrieve: int = 0, **options: Any
    ) -> list[Image.Image]:
        """Draw `n` pictures of what `prompt` says (None: of anything). See `draw`."""
        return [drawn.image for drawn in self.draw(prompt, n, best_of, seed, retrieve, **options)]

    def draw(
        self, prompt: str | None, n: int = 1, best_of: int = 1, seed: int = 0, retrieve: int = 0, **options: Any
    ) -> list[DrawnPicture]:
        """`generate` with codes, seeds and scores.

        best_of: each picture is the best of so many candidates by the encoder's judgement; candidate j of picture i is
        drawn with (seed, i · best_of + j). retrieve: put so many documents of the memory before the prompt.
        Raises `InputError` for an empty or too long prompt, `UsageError` for an option or a part that is not there.
        """
        for name, value in (("n", n), ("best_of", best_of)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if best_of > 1 and prompt is None:
            raise UsageError("best_of chooses by the prompt; give a prompt, or leave best_of at 1")
        asked = unconditional_image(self.vocab)
        if prompt is not None:
            asked = self._prompt(self._turns("text_to_image", prompt), self.vocab.num_image_tokens, retrieve)
        requests = [Request(asked, ImageAnswer(), seed, index) for index in range(n * best_of)]
        candidates = self._draw(requests, options, DRAWING)
        if best_of == 1 or prompt is None:
            return candidates
        return [self._best(prompt, candidates[start : start + best_of]) for start in range(0, len(candidates), best_of)]

    def caption(self, image: Picture, retrieve: int = 0, seed: int = 0, **options: Any) -> str:
        """What the picture shows, in words."""
        return self._say(self.tasks["captioning"].prompt(self._segment(image)), retrieve, seed, options)

    def ask(self, image: Picture, question: str, retrieve: int = 0, seed: int = 0, **options: Any) -> str:
        """The answer to a question about the picture."""
        return self._say(self._turns("vqa", question, image), retrieve, seed, options)

    def edit(self, image: Picture, instruction: str, seed: int = 0, **options: Any) -> Image.Image:
        """The picture, changed as the instruction says."""
        return self.draw_edit(image, instruction, seed, **options).image

    def draw_edit(self, image: Picture, instruction: str, seed: int = 0, **options: Any) -> DrawnPicture:
        """`edit` with codes and seed."""
        prompt = self._prompt(self._turns("editing", instruction, image), self.vocab.num_image_tokens)
        return self._draw([Request(prompt, ImageAnswer(), seed)], options, EXACT)[0]

    def infill(
        self,
        image: Picture,
        mask: Image.Image | np.ndarray | None = None,
        prompt: str | None = None,
        box: Sequence[int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Image.Image:
        """The picture with a region filled in anew; see `draw_infill`."""
        return self.draw_infill(image, mask, prompt, box, seed, **options).image

    def draw_infill(
        self,
        image: Picture,
        mask: Image.Image | np.ndarray | None = None,
        prompt: str | None = None,
        box: Sequence[int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> DrawnPicture:
        """`infill` with codes and seed.

        The region is a `mask` of the picture's size (light or true: fill in) or a `box` (x0, y0, x1, y1) in its pixels;
        every code that it touches is drawn anew, all others stay as they are. prompt: what the whole picture shows.
        """
        segment = self._segment(image)
        if (mask is None) == (box is None):
            raise UsageError("infilling needs one region: give either a mask or a box, not both")
        size = segment.load().size
        region = box_mask(size, box) if box is not None else image_mask(mask, size)  # type: ignore[arg-type]
        cells = mask_cells(region, self._image_tokenizer())
        task, caption = self.tasks["infilling"], None if prompt is None else required_text(prompt, "prompt")
        masked = task.masked(segment, cells, caption, self.tokenizer)
        asked, answer = infilling(masked, self.vocab)
        [generation] = self.decode([Request(asked, answer, seed)], options, EXACT)
        codes = self.filled_codes(masked, generation)
        return DrawnPicture(self.decode_codes([codes])[0], codes, (seed, 0))

    def chat(self, messages: Sequence[Message], seed: int = 0, limit: int = 256, **options: Any) -> dict[str, Any]:
        """The next message of a dialog: {"role": "assistant", "content": [one text or image item]}.

        messages: see `cm3.tokens.messages`.
        """
        prompt = self._prompt(turns_of(messages), limit)
        for piece in self._pieces(Request(prompt, FreeAnswer(self._fitting(prompt, limit)), seed), options):
            if isinstance(piece, ImagePiece):
                return {"role": "assistant", "content": [{"type": "image", "image": piece.image}]}
            if not isinstance(piece, Done):
                return {"role": "assistant", "content": [{"type": "text", "text": piece.text}]}
        return {"role": "assistant", "content": []}

    def stream(self, document: Document, seed: int = 0, limit: int = 256, max_images: int = 1, **options: Any) -> Iterator[Piece]:
        """What follows `document`: texts and pictures as they are finished, then `Done`.

        limit: the most tokens (fewer when the context ends); max_images: the most pictures.
        """
        prompt = self._prompt([Turn("user", document.segments)] if document.segments else [], limit)
        answer = FreeAnswer(self._fitting(prompt, limit), max_images)
        yield from self._pieces(Request(prompt, answer, seed), options)

    def decode(
        self, requests: Sequence[Request], options: Mapping[str, Any] | DecodingOptions, default: DecodingOptions = EXACT
    ) -> list[Generation]:
        """The answers to many requests at once; `options` replace fields of `default`."""
        chosen = _options(options, default)
        return self.engine.generate(requests, chosen.make_strategy(), chosen.make_sampling())

    def filled_codes(self, masked: TokenizedDocument, generation: Generation) -> np.ndarray:
        """The codes (h, w) of the masked picture with its gaps as `generation` fills them."""
        ids = restore(fill(masked, generation.token_ids, self.vocab), self.vocab)
        return self.vocab.codes(ids[self.vocab.is_image(ids)]).reshape(self.vocab.grid_shape)

    def decode_codes(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Codes (h, w) each → pictures."""
        tokenizer = self._image_tokenizer()
        return tokenizer.postprocess(tokenizer.decode(torch.from_numpy(np.stack(codes).astype(np.int64))))

    @cached_property
    def memory(self) -> Retriever:
        """The memory of the model folder. Raises `UsageError` when it has none."""
        if self.parts.memory is None:
            raise UsageError("this model has no memory/ to retrieve from; add one (`cm3 retrieval build`), or use retrieve=0")
        return retrieval.open(self.parts.memory, verified=False)

    @cached_property
    def reranker(self) -> Reranker:
        """The encoder of the model folder as a judge of pictures. Raises `UsageError` when it has none."""
        if self.parts.encoder is None:
            raise UsageError("this model has no encoder/ to choose among candidates with; use best_of=1")
        return retrieval.CLIPReranker.from_folder(self.parts.encoder)

    def _say(self, turns: Sequence[Turn], retrieve: int, seed: int, options: Mapping[str, Any]) -> str:
        prompt = self._prompt(turns, TEXT_LIMIT, retrieve)
        [generation] = self.decode([Request(prompt, TextAnswer(self._fitting(prompt, TEXT_LIMIT)), seed)], options)
        return self.text_of(generation)

    def text_of(self, generation: Generation) -> str:
        """The first text of an answer; empty when there is none."""
        pieces = pieces_of(generation, self.vocab, self.tokenizer.text)
        return next((piece.text for piece in pieces if isinstance(piece, TextPiece)), "")

    def _draw(self, requests: Sequence[Request], options: Mapping[str, Any], default: DecodingOptions) -> list[DrawnPicture]:
        codes = [codes_of(generation, self.vocab) for generation in self.decode(requests, options, default)]
        pictures = zip(self.decode_codes(codes), codes, requests, strict=True)
        return [DrawnPicture(image, grid, (request.seed, request.picture)) for image, grid, request in pictures]

    def _best(self, prompt: str, candidates: Sequence[DrawnPicture]) -> DrawnPicture:
        ranking = rank_by_reranker(prompt, [candidate.image for candidate in candidates], self.reranker)
        return replace(candidates[ranking.best], score=ranking.scores[ranking.best])

    def _turns(self, task: str, text: str, image: Picture | None = None) -> list[Turn]:
        """The turns of a request in words, about `image` if there is one."""
        words = required_text(text, _WORDS[task])
        prompt = self.tasks[task].prompt
        return prompt(words) if image is None else prompt(self._segment(image), words)

    def _prompt(self, turns: Sequence[Turn], reserve: int, retrieve: int = 0) -> Prompt:
        """What the model sees before it answers; retrieved documents leave room for `reserve` tokens."""
        if retrieve < 0:
            raise UsageError(f"retrieve must be at least 0, got {retrieve}")
        document = encode_prompt(turns, self.tokenizer)
        room = self.model.config.max_position_embeddings - reserve
        if retrieve == 0 or len(document) > room:
            return continuation(document, self.vocab)
        neighbors = [self.tokenizer.encode(found) for found in self._neighbors(turns, retrieve)]
        joined = augment(document, neighbors, self.vocab, room)
        return continuation(joined, self.vocab, len(joined.spans) - len(document.spans))

    def _fitting(self, prompt: Prompt, limit: int) -> int:
        """`limit`, or what is left of the context (at least 1: decoding says that nothing fits)."""
        return max(1, min(limit, self.model.config.max_position_embeddings - len(prompt.token_ids)))

    def _neighbors(self, turns: Sequence[Turn], count: int) -> list[Document]:
        """What the memory holds nearest to the picture of the request, or to its words when there is no picture."""
        asked = Document("request", tuple(segment for turn in turns for segment in turn.segments))
        query = {"image": asked.images[0].load()} if asked.images else {"text": asked.text}
        return [found.document for found in self.memory.search(**query, k=count)]

    def _pieces(self, request: Request, options: Mapping[str, Any]) -> Iterator[Piece]:
        chosen, assembler = _options(options, DRAWING), PieceAssembler(self.vocab, self.tokenizer.text)
        for emission in self.engine.stream([request], chosen.make_strategy(), chosen.make_sampling()):
            for piece in assembler.take(emission.token_ids, emission.reason):
                yield replace(piece, image=self.decode_codes([piece.codes])[0]) if isinstance(piece, ImagePiece) else piece

    def _segment(self, image: Picture) -> ImageSegment:
        self._image_tokenizer()
        return ImageSegment(image=decode_image(image))

    def _image_tokenizer(self) -> ImageTokenizer:
        if self.tokenizer.image_tokenizer is None:
            raise UsageError("this model has no image_tokenizer/: it takes and makes text alone; use a whole model folder")
        return self.tokenizer.image_tokenizer


_WORDS = {"text_to_image": "prompt", "vqa": "question", "editing": "instruction"}


def _options(given: Mapping[str, Any] | DecodingOptions, default: DecodingOptions) -> DecodingOptions:
    if isinstance(given, DecodingOptions):
        return given
    return validate(DecodingOptions, {**default.model_dump(), **given}, "decoding") if given else default
