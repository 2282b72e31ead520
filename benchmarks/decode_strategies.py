"""Does each strategy help? All-correct rates on held-out captions, best of 1 to 32, by each judge, beside the oracle.

The curve of figure 4 of arXiv:2309.02591 for the model of `CM3_BENCH_MODEL`: candidates are drawn by plain sampling, guidance,
CD-K and both mixed; of the first n the judge's favorite is scored by reading the scene from its pixels. `oracle` counts a prompt
as solved when any of the n is right. ours: the share of prompts that are right; peer: plain sampling without a choice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Row, report
from benchmarks.trained_model import held_out_pairs, trained_pipeline
from cm3.choosing import by_likelihood, by_reranker
from sft.scoring import SceneScorer

PROMPTS, CANDIDATES, SHOWN = int(os.environ.get("CM3_BENCH_PROMPTS", "64")), 32, (1, 2, 4, 8, 16, 32)
STRATEGIES = {
    "plain": {"temperature": 1.0, "top_p": 1.0},
    "plain, top-p": {},
    "guidance 1.5": {"guidance": 1.5},
    "guidance 3": {"guidance": 3.0},
    "CD-K, k = 1": {"strategy": "contrastive", "strategy_options": {"k": 1, "alpha": 0.5}, "top_p": 1.0},
    "CD-K, k = 3, scale 0.1": {"strategy": "contrastive", "strategy_options": {"k": 3, "scale": 0.1}, "top_p": 1.0},
    "CD-K, k = 3": {"strategy": "contrastive", "strategy_options": {"k": 3}, "top_p": 1.0},
    "mixed, k = 1": {"strategy": "mixed", "strategy_options": {"k": 1, "scale": 1.5, "alpha": 0.5}, "top_p": 1.0},
}


def rows() -> Iterator[Row]:
    """One row per strategy, judge and number of candidates."""
    pipe = trained_pipeline()
    if pipe is None:
        return
    judges = {
        "encoder": by_reranker(pipe.reranker),
        "likelihood": by_likelihood(pipe.model, pipe.tokenizer, pipe.tasks["captioning"]),
    }
    base = None
    for name, options in STRATEGIES.items():
        right, scores = [], {judge: [] for judge in judges}
        for seed, document in enumerate(held_out_pairs(PROMPTS)):
            drawn = pipe.draw(document.text, n=CANDIDATES, seed=seed, **options)
            texts, pictures = [document.text] * CANDIDATES, [picture.image for picture in drawn]
            right.append(SceneScorer().score_images("text_to_image", [document] * CANDIDATES, texts, pictures))
            for judge, order in judges.items():
                scores[judge].append(order(document.text, drawn).scores)
        correct = np.array(right) == 1.0  # (prompts, candidates)
        base = float(correct.mean()) if base is None else base
        yield _row(f"{name}, no choice", float(correct.mean()), base)
        for judge, given in [*scores.items(), ("oracle", right)]:
            for n in SHOWN[1:]:
                chosen = np.argmax(np.array(given)[:, :n], axis=1)
                share = float(correct[np.arange(PROMPTS), chosen].mean())
                yield _row(f"{name}, best of {n} by {judge}", share, base)


def _row(name: str, share: float, base: float) -> Row:
    ratio = share / base if base else float("nan")
    return Row(row=name, ours=round(share, 4) or 1e-9, peer=base, ratio=ratio, unit="share", limit_fraction=None, gate="ok")


if __name__ == "__main__":
    report(rows, __doc__ or "")
