"""`CM3Pipeline`: Documents in, Documents out. It joins the parts of one model folder and adds nothing of its own.

    prompt (the task's own turns, neighbors before them) → cm3.decode → pieces → pictures through the image tokenizer

Everything random of picture i is fixed by the pair (seed, i), so picture 0 of four is the picture of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import retrieval
from cm3 import choosing
from cm3.choosing import Choice, DrawnPicture
from cm3.core.counts import require_positive
from cm3.core.errors import UsageError
from cm3.core.protocols import ImageTokenizer, Reranker, Retriever
from cm3.decode import (
    DecodingEngine,
    Done,
    FreeAnswer,
    Generation,
    ImageAnswer,
    ImagePiece,
    PairAnswer,
    Piece,
    Prompt,
    Request,
    TextAnswer,
    TextPiece,
    codes_of,
    continuation,
    document_start,
    infilling,
    pieces_of,
    unconditional_image,
)
from cm3.decode.int8 import quantize_weights, require_full_weights
from cm3.decode.memory import require_answer_memory
from cm3.decode.options import DRAWING, EXACT, DecodingOptions, check_conditions, chosen_options
from cm3.decode.pieces import PieceAssembler
from cm3.documents.document import Document, ImageSegment
from cm3.documents.images import decode_image
from cm3.gaps import GAP, Boxes, filled_text, region_cells, region_codes, text_with_gaps
from cm3.model import CM3ForCausalLM
from cm3.model_folder import Parts, assemble_model_folder, open_model_folder
from cm3.neighbors import behind_neighbors, nearest, require_retrievable
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.messages import Message, required_text, turns_of
from cm3.tokens.tokenized import SpanKind
from cm3.tokens.turns import Turn, encode_prompt

Device = torch.device | str
Picture = Image.Image | Path | str | bytes
Options = Mapping[str, Any] | DecodingOptions
CodesOf = Callable[[np.ndarray], np.ndarray]

TEXT_LIMIT = 96


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
        cls, path: Path | str, device: Device = "cpu", dtype: torch.dtype | None = None, verify: bool = True, int8: bool = False
    ) -> CM3Pipeline:
        """Open a model folder, or one of the Hugging Face hub by its id ("owner/name").

        dtype: of the model's weights (None: as they are stored); verify: compare every file with its hash; int8: round the
        matrices of the layers to 8 bits, which is lossy (`cm3.decode.int8`). Raises `InputError` when there is none,
        `ArtefactError` when it is damaged or its parts do not belong together.
        """
        from sft.tasks import load_tasks

        folder = open_model_folder(path, verify, device, dtype)
        model = quantize_weights(folder.model) if int8 else folder.model
        return cls(model, folder.tokenizer, load_tasks(folder.path), folder.parts)

    def save(self, path: Path | str) -> Path:
        """Write a model folder with the parts this pipeline has; see `assemble_model_folder`. Int8 weights are refused."""
        from sft.tasks import TASKS_FILE, tasks_json

        require_full_weights(self.model)
        files = {TASKS_FILE: tasks_json(self.tasks)}
        return assemble_model_folder(Path(path), self.model, self.tokenizer, self.parts, json_files=files)

    def generate(
        self, prompt: str | None, n: int = 1, best_of: int = 1, seed: int = 0, retrieve: int = 0, **options: Any
    ) -> list[Image.Image]:
        """Draw `n` pictures of what `prompt` says (None: of anything). See `draw`."""
        return [drawn.image for drawn in self.draw(prompt, n, best_of, seed, retrieve, **options)]

    def draw(
        self,
        prompt: str | None,
        n: int = 1,
        best_of: int = 1,
        seed: int = 0,
        retrieve: int = 0,
        rerank: str | Reranker | None = None,
        **options: Any,
    ) -> list[DrawnPicture]:
        """`generate` with codes, seeds, scores and candidates.

        n, best_of, rerank: see `Choice`. retrieve: put so many documents of the memory before the prompt. Raises `InputError`
        for an empty or too long prompt, `UsageError` for an option or a part that is not there, or for too many pictures.
        """
        choice = Choice(n, best_of, rerank)
        if prompt is None:
            require_retrievable(retrieve, "documents are found by the prompt; give a prompt")
            asked = unconditional_image(self.vocab)
        else:
            asked = self._prompt(self._turns("text_to_image", prompt), self.vocab.num_image_tokens, "image", retrieve)
        return self._chosen(Request(asked, ImageAnswer(), seed), choice, prompt, options)

    def vary(self, image: Picture, n: int = 1, seed: int = 0, **options: Any) -> list[Image.Image]:
        """`n` other pictures of what `image` shows: it is described, and the description drawn."""
        return self.generate(self.caption(image), n, seed=seed, **options)

    def vary_text(self, text: str, n: int = 1, seed: int = 0, **options: Any) -> list[str]:
        """`n` other wordings of `text`: it is drawn, and the pictures described."""
        task = self.tasks["captioning"]
        drawn = self.draw(text, n, seed=seed, **options)
        prompts = [self._prompt(task.prompt(ImageSegment(codes=picture.codes)), TEXT_LIMIT, "text") for picture in drawn]
        requests = [Request(prompt, TextAnswer(self._fitting(prompt, TEXT_LIMIT)), seed) for prompt in prompts]
        return [self.text_of(generation) for generation in self.decode(requests, {})]

    def write(self, n: int = 1, seed: int = 0, limit: int = TEXT_LIMIT, **options: Any) -> list[str]:
        """`n` texts of anything, of at most `limit` tokens."""
        start = document_start(self.vocab)
        answer = TextAnswer(self._fitting(start, limit))
        require_answer_memory(n, "texts", answer.limit)
        requests = [Request(start, answer, seed, index) for index in range(n)]
        return [self.text_of(generation) for generation in self.decode(requests, options, DRAWING)]

    def imagine(self, n: int = 1, seed: int = 0, limit: int = TEXT_LIMIT, **options: Any) -> list[Document]:
        """`n` documents of anything: a text of at most `limit` tokens and its picture, drawn together."""
        start = document_start(self.vocab)
        answer = PairAnswer(self._fitting(start, limit, behind=1 + self.vocab.num_image_tokens))
        require_answer_memory(n, "pairs", answer.max_tokens(self.vocab), self._image_tokenizer().image_size)
        requests = [Request(start, answer, seed, index) for index in range(n)]
        documents = []
        for index, generation in enumerate(self.decode(requests, options, DRAWING)):
            text, picture, *_ = pieces_of(generation, self.vocab, self.tokenizer.text)
            [image] = self.decode_codes([picture.codes])  # type: ignore[union-attr]
            documents.append(Document.pair(f"{seed}-{index}", text.text, image))  # type: ignore[union-attr]
        return documents

    def caption(self, image: Picture, retrieve: int = 0, seed: int = 0, infill: bool = False, **options: Any) -> str:
        """What the picture shows, in words.

        infill: as the text that is missing before the picture (what pretraining teaches, and tuning on answers alone makes a
        model forget) instead of as an answer.
        """
        if infill:
            return self._filling(GAP, image, retrieve, seed, options)
        return self._say(self.tasks["captioning"].prompt(self._segment(image)), retrieve, seed, options)

    def ask(self, image: Picture, question: str, retrieve: int = 0, seed: int = 0, infill: bool = False, **options: Any) -> str:
        """The answer to a question about the picture; infill: as what is missing behind the question, see `caption`."""
        if infill:
            return self._filling(f"{required_text(question, 'question')} {GAP}", image, retrieve, seed, options)
        return str(self.tasks["vqa"].reply(self.explain(image, question, retrieve, seed, **options)))

    def explain(self, image: Picture, question: str, retrieve: int = 0, seed: int = 0, **options: Any) -> str:
        """The answer behind what leads to it, when the questions of tuning had explanations; otherwise the answer alone."""
        return self._say(self._turns("vqa", question, image), retrieve, seed, options)

    def fill_text(self, text: str, image: Picture | None = None, seed: int = 0, **options: Any) -> str:
        """`text` with every ___ in it filled in, to fit the picture if there is one; all else stays as it is."""
        return filled_text(text, self._fills(text, image, seed, options))

    def edit(self, image: Picture, instruction: str, seed: int = 0, **options: Any) -> Image.Image:
        """The picture, changed as the instruction says; see `draw_edits`."""
        return self.draw_edit(image, instruction, seed, **options).image

    def draw_edit(self, image: Picture, instruction: str, seed: int = 0, **options: Any) -> DrawnPicture:
        """`edit` with codes, seed, score and candidates."""
        choosing.require_one(options)
        return self.draw_edits(image, instruction, seed, **options)[0]

    def draw_edits(self, image: Picture, instruction: str, seed: int = 0, **options: Any) -> list[DrawnPicture]:
        """Pictures, changed as the instruction says, by which candidates are judged.

        options: also those of `Choice`. A single picture without a choice is the likeliest one, others are drawn as by `draw`.
        """
        choice, manner = Choice.among(options)
        prompt = self._prompt(self._turns("editing", instruction, image), self.vocab.num_image_tokens, "image")
        return self._chosen(Request(prompt, ImageAnswer(), seed), choice, instruction, manner)

    def infill(
        self,
        image: Picture,
        mask: Image.Image | np.ndarray | None = None,
        prompt: str | None = None,
        box: Boxes | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Image.Image:
        """The picture with a region filled in anew; see `draw_infills`."""
        return self.draw_infill(image, mask, prompt, box, seed, **options).image

    def draw_infill(
        self,
        image: Picture,
        mask: Image.Image | np.ndarray | None = None,
        prompt: str | None = None,
        box: Boxes | None = None,
        seed: int = 0,
        **options: Any,
    ) -> DrawnPicture:
        """`infill` with codes, seed, score and candidates."""
        choosing.require_one(options)
        return self.draw_infills(image, mask, prompt, box, seed, **options)[0]

    def draw_infills(
        self,
        image: Picture,
        mask: Image.Image | np.ndarray | None = None,
        prompt: str | None = None,
        box: Boxes | None = None,
        seed: int = 0,
        **options: Any,
    ) -> list[DrawnPicture]:
        """Pictures with a region filled in anew.

        The region is a `mask` of the picture's size (light or true: fill in) or a `box` (x0, y0, x1, y1) in its pixels, or
        several boxes; every code that it touches is drawn anew, all others stay as they are. prompt: what the picture shows,
        by which candidates are judged. options: as those of `draw_edits`.
        """
        choice, manner = Choice.among(options)
        segment = self._segment(image)
        cells = region_cells(segment, self._image_tokenizer(), mask, box)
        task, caption = self.tasks["infilling"], None if prompt is None else required_text(prompt, "prompt")
        masked = task.masked(segment, cells, caption, self.tokenizer)
        asked, answer = infilling(masked, self.vocab)
        return self._chosen(
            Request(asked, answer, seed), choice, caption, manner, lambda ids: region_codes(cells, masked, ids, self.vocab)
        )

    def chat(self, messages: Sequence[Message], seed: int = 0, limit: int = 256, **options: Any) -> dict[str, Any]:
        """The next message of a dialog: {"role": "assistant", "content": [one text or image item]}.

        messages: see `cm3.tokens.messages`.
        """
        prompt = self._prompt(turns_of(messages), limit)
        for piece in self._pieces(Request(prompt, FreeAnswer(self._fitting(prompt, limit)), seed), options):
            if isinstance(piece, ImagePiece):
                return {"role": "assistant", "content": [{"type": "image", "image": piece.image, "codes": piece.codes}]}
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

    def decode(self, requests: Sequence[Request], options: Options, default: DecodingOptions = EXACT) -> list[Generation]:
        """The answers to many requests at once; `options` replace fields of `default`."""
        chosen = chosen_options(options, default)
        strategy, sampling = chosen.make_strategy(), chosen.make_sampling()
        check_conditions(requests, strategy, sampling, self.model.config)
        return self.engine.generate(requests, strategy, sampling, window=chosen.window)

    def decode_codes(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Codes (h, w) each → pictures."""
        return self.tokenizer.pictures(codes)

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
        prompt = self._prompt(turns, TEXT_LIMIT, "text", retrieve)
        [generation] = self.decode([Request(prompt, TextAnswer(self._fitting(prompt, TEXT_LIMIT)), seed)], options)
        return self.text_of(generation)

    def text_of(self, generation: Generation) -> str:
        """The first text of an answer; empty when there is none."""
        return next(iter(self._texts_of(generation)), "")

    def _texts_of(self, generation: Generation) -> list[str]:
        pieces = pieces_of(generation, self.vocab, self.tokenizer.text)
        return [piece.text for piece in pieces if isinstance(piece, TextPiece)]

    def _chosen(
        self, request: Request, choice: Choice, said: str | None, options: Options, codes: CodesOf | None = None
    ) -> list[DrawnPicture]:
        """The pictures that answer `request`, chosen by what was `said`; codes: (h, w) of the ids of its answer."""
        choice.require_words(said)
        side, what = self._image_tokenizer().image_size, "pictures (n times best_of)"
        require_answer_memory(choice.candidates, what, self.vocab.num_image_tokens, side)
        judge = self._judge(choice.rerank) if choice.best_of > 1 else None  # one that is not there is missed before drawing
        answers = self.decode([replace(request, picture=index) for index in range(choice.candidates)], options, DRAWING)
        grids = [codes(answer.token_ids) if codes else codes_of(answer, self.vocab) for answer in answers]
        drawn = [DrawnPicture(*pair, (request.seed, index)) for index, pair in enumerate(zip(self.decode_codes(grids), grids))]
        return drawn if judge is None else choosing.best_of(choice.best_of, str(said), drawn, judge)

    def _judge(self, rerank: str | Reranker | None) -> choosing.Judge:
        if rerank == "likelihood":
            return choosing.by_likelihood(self.model, self.tokenizer, self.tasks["captioning"])
        return choosing.by_reranker(rerank if isinstance(rerank, Reranker) else self.reranker)

    def _filling(self, text: str, image: Picture, retrieve: int, seed: int, options: Mapping[str, Any]) -> str:
        require_retrievable(retrieve, "what fills a gap is found without documents; leave infill out")
        return "".join(self._fills(text, image, seed, options)).strip()

    def _fills(self, text: str, image: Picture | None, seed: int, options: Mapping[str, Any]) -> list[str]:
        """What the model puts into the gaps of `text`."""
        masked = text_with_gaps(text, None if image is None else self._segment(image), self.tokenizer)
        [generation] = self.decode([Request(*infilling(masked, self.vocab), seed)], options)
        return self._texts_of(generation)

    def _turns(self, task: str, text: str, image: Picture | None = None) -> list[Turn]:
        """The turns of a request in words, about `image` if there is one."""
        words = required_text(text, _WORDS[task])
        prompt = self.tasks[task].prompt
        return prompt(words) if image is None else prompt(self._segment(image), words)

    def _prompt(self, turns: Sequence[Turn], reserve: int, answer: SpanKind | None = None, retrieve: int = 0) -> Prompt:
        """What the model sees before an `answer` of that kind (None: of either), which neighbors leave `reserve` tokens."""
        require_retrievable(retrieve)
        document = encode_prompt(turns, self.tokenizer, answer=answer)
        room = self.model.config.max_position_embeddings - reserve
        if retrieve == 0 or len(document) > room:
            return continuation(document, self.vocab)
        return behind_neighbors(document, nearest(self.memory, turns, retrieve), self.tokenizer, room)

    def _fitting(self, prompt: Prompt, limit: int, behind: int = 0) -> int:
        """`limit`, or what is left of the context before `behind` more (at least 1: decoding says that nothing fits)."""
        require_positive(limit=limit)
        return max(1, min(limit, self.model.config.max_position_embeddings - len(prompt.token_ids) - behind))

    def _pieces(self, request: Request, options: Mapping[str, Any]) -> Iterator[Piece]:
        chosen, assembler = chosen_options(options, DRAWING), PieceAssembler(self.vocab, self.tokenizer.text)
        strategy, sampling = chosen.make_strategy(), chosen.make_sampling()
        check_conditions([request], strategy, sampling, self.model.config)
        for emission in self.engine.stream([request], strategy, sampling, window=chosen.window):
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
