"""What int8 weights cost and gain on a trained model: pictures that are right, codes that differ, milliseconds.

ours: int8 weights; peer: the full ones, same prompts and seeds. Behind the first code that differs others differ because their
past does, so a third row asks for the likeliest code after the same past (held-out pictures). The model is that of
`CM3_BENCH_MODEL`; the times at 100M weights are of random ones. Gate: "lossy", since equal results are not to be expected.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.chameleon_peer import chameleon_config, random_prompt
from benchmarks.measure import Row, interleaved, report, time_row
from benchmarks.trained_model import held_out_pairs, trained_pipeline
from cm3.decode import GREEDY, DecodingEngine, ImageAnswer, Request
from cm3.decode.int8 import quantize_weights
from cm3.decode.strategies.guidance import Guidance
from cm3.model import CM3ForCausalLM, create_model
from cm3.pipeline import CM3Pipeline
from cm3.tokens import Vocab
from cm3.tokens.turns import encode_turns
from sft.scoring import SceneScorer

PROMPTS, REPEATS = 64, 5


def rows() -> Iterator[Row]:
    """Quality on the trained model, then the times of both sizes."""
    full, small = trained_pipeline(), trained_pipeline()
    if full is not None and small is not None:
        quantize_weights(small.model)
        yield from quality(full, small)
        text = held_out_pairs(1)[0].text
        seconds = interleaved(lambda: small.generate(text), lambda: full.generate(text), REPEATS)
        yield time_row("one picture, the trained model", seconds, "lossy")
    vocab = Vocab(65536 - 8192 - 21, 8192, (4, 6))
    model = create_model(chameleon_config(vocab, 768, 14, 2048), 0)
    request = Request(random_prompt(vocab, 30), ImageAnswer())
    engines = [DecodingEngine(weights, vocab) for weights in (quantize_weights(copy.deepcopy(model)), model)]
    ours, peer = (lambda engine=engine: engine.generate([request], Guidance(), GREEDY) for engine in engines)
    yield time_row("24 codes with guidance, 100M weights", interleaved(ours, peer, REPEATS), "lossy")


def quality(full: CM3Pipeline, small: CM3Pipeline) -> Iterator[Row]:
    """Shares of pictures that are right and of codes that are the same."""
    documents = held_out_pairs(PROMPTS)
    drawn = [[pipe.draw(document.text, seed=seed)[0] for seed, document in enumerate(documents)] for pipe in (small, full)]
    right = []
    for pictures in drawn:
        images, texts = [picture.image for picture in pictures], [document.text for document in documents]
        right.append(float(np.mean(np.array(SceneScorer().score_images("text_to_image", documents, texts, images)) == 1.0)))
    yield _share(f"pictures that are right, {PROMPTS} held-out captions", *right)
    same = [float((ours.codes == theirs.codes).mean()) for ours, theirs in zip(*drawn)]
    yield _share("codes that are the same, same seeds", float(np.mean(same)), 1.0)
    likeliest = [np.concatenate([_likeliest(pipe, document) for document in documents]) for pipe in (small, full)]
    yield _share("likeliest codes that are the same, same past", float((likeliest[0] == likeliest[1]).mean()), 1.0)


def _likeliest(pipe: CM3Pipeline, document: object) -> np.ndarray:
    """The likeliest code at every place of the document's own picture."""
    task = pipe.tasks["text_to_image"]
    example = encode_turns(task.turns(document, np.random.default_rng(0)), pipe.tokenizer)
    model: CM3ForCausalLM = pipe.model
    ids, grid = (torch.from_numpy(part)[None] for part in (example.token_ids, example.grid_positions))
    with torch.inference_mode():
        hidden = model.model(ids, grid_positions=grid).last_hidden_state[0, :-1]  # (T - 1, D)
    places = np.flatnonzero(pipe.vocab.is_image(example.token_ids[1:]))
    return model.project(hidden[torch.from_numpy(places)]).argmax(dim=-1).numpy()


def _share(name: str, ours: float, peer: float) -> Row:
    ratio = round(ours / peer, 4) if peer else float("nan")
    return Row(
        row=name, ours=round(ours, 4) or 1e-9, peer=round(peer, 4), ratio=ratio, unit="share", limit_fraction=None, gate="lossy"
    )


if __name__ == "__main__":
    report(rows, __doc__ or "")
