"""Does the CM3 objective help? Causal against CM3 at equal tokens, with and without retrieved documents, on the embedded world.

Every arm trains the same model on the same number of tokens of a finished quickstart, with several seeds. Measured on its
held-out documents, in bits per token (lower is better), each arm asked in the layout it was trained for:

text to image   the picture's codes given the caption
captioning      the caption's tokens given the picture (CM3: the caption is a masked span; causal: the picture comes first)
infilling       the codes of the middle rows (CM3: given all others; causal: given those before, it cannot see behind)

Arms with retrieval are trained with up to two documents before half of their documents, and asked with none and with two. A pair
behind others is not turned around in training, so the causal arm with retrieval is not asked for captions.

ours and peer are means over seeds and documents; `interval` is the 95 % t-interval of ours - peer over the held-out documents
(paired), `by_seed` the same difference for every seed: what training noise does.
Finished runs are kept in RUNS and not trained again; `--most N` trains at most N missing ones and stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.measure import Row, report
from cm3.core.artefact import MANIFEST
from cm3.core.errors import UsageError
from cm3.core.runfile import load_run
from cm3.pretrain.objective import LossConfig, TokenObjective
from cm3.pretrain.run import PretrainConfig, load_language_model, pretrain
from cm3.sequences.augmentation import augment
from cm3.sequences.batch import collate
from cm3.sequences.masking import mask_spans
from cm3.sequences.ordering import reorder
from cm3.sequences.shards import TokenShards
from cm3.tokens import TokenizedDocument, Vocab

STEPS, ROW_LENGTH, BATCH_SIZE = 300, 256, 16
RETRIEVED = ["neighbors.share=0.5", "neighbors.augmentation.law=ra_cm3", "neighbors.augmentation.max_length=208"]
ARMS = {
    "causal": ["loader.objective.name=causal"],
    "causal, half image first": ["loader.objective.name=causal", "loader.objective.image_first_prob=0.5"],
    "cm3": ["loader.objective.name=cm3"],
    "cm3, retrieved documents": ["loader.objective.name=cm3", *RETRIEVED],
    "causal, retrieved documents": ["loader.objective.name=causal", *RETRIEVED],
}
Layout = Callable[[TokenizedDocument, Vocab], TokenizedDocument]


def run_config(data: Path, runs: Path, arm: str, seed: int) -> PretrainConfig:
    """The run of one arm and seed: the quickstart's tiny model and optimizer."""
    places = {"tokens": "tokens", "tokenizer": "document_tokenizer"}
    neighbors = [f"neighbors.table={data / 'neighbors'}"] if "retrieved" in arm else []
    settings = [f"train.steps={STEPS}", f"train.seed={seed}", "train.optimizer=muon", "train.learning_rate=8e-3"]
    settings += ["train.warmup_steps=20", "train.schedule=wsd", "train.decay_fraction=0.4", "train.checkpoint_every=0"]
    settings += [f"loader.row_length={ROW_LENGTH}", f"loader.batch_size={BATCH_SIZE}", "train.device=cpu", "train.log_every=40"]
    out = runs / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    overrides = [f"{name}={data / place}" for name, place in places.items()]
    return load_run(PretrainConfig, None, [*overrides, f"out={out}", *settings, *neighbors, *ARMS[arm]])


def only(document: TokenizedDocument, start: int, stop: int) -> TokenizedDocument:
    """The document with weight on the tokens [start, stop) alone."""
    document.loss_weights[:] = 0
    document.loss_weights[start:stop] = 1
    return document


def picture_given_text(document: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    last = document.spans[-1]
    return only(document, last.start, last.stop)


def caption_moved(document: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    text = document.spans[-2]  # before it are neighbors
    masked = mask_spans(document, [(text.start, text.stop)], vocab)
    return only(masked, masked.spans[-1].start, masked.spans[-1].stop)


def caption_last(document: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    turned = reorder(document, (1, 0), vocab)
    return only(turned, turned.spans[-1].start, turned.spans[-1].stop)


def _middle(document: TokenizedDocument, vocab: Vocab) -> tuple[int, int]:
    start, third = document.spans[-1].start, vocab.num_image_tokens // 3
    return start + third, start + 2 * third


def middle_masked(document: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    masked = mask_spans(document, [_middle(document, vocab)], vocab)
    return only(masked, masked.spans[-1].start, masked.spans[-1].stop)


def middle_in_order(document: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    return only(document, *_middle(document, vocab))


class Study:
    """The trained arms and the held-out documents."""

    def __init__(self, data: Path, runs: Path, seeds: int) -> None:
        self.data, self.runs, self.seeds = data, runs, range(seeds)
        self.held_out, self.memory = TokenShards(data / "held_out_tokens"), TokenShards(data / "tokens")

    def train(self, most: int) -> bool:
        """Train what is missing, at most `most` runs; returns whether everything is there."""
        for seed in self.seeds:
            for arm in ARMS:
                config = run_config(self.data, self.runs, arm, seed)
                if (config.out / MANIFEST).is_file():
                    continue
                if most == 0:
                    return False
                most -= 1
                pretrain(config)
        return True

    def bits(self, arm: str, layout: Layout, neighbors: int = 0) -> np.ndarray:
        """(seeds, documents) mean bits of the weighted tokens of every held-out document, behind `neighbors` others."""
        return np.stack([self._bits(run_config(self.data, self.runs, arm, seed).out, layout, neighbors) for seed in self.seeds])

    @torch.no_grad()
    def _bits(self, path: Path, layout: Layout, neighbors: int) -> np.ndarray:
        model, tokenizer = load_language_model(path)
        objective = TokenObjective(model.eval(), tokenizer.vocab, LossConfig())
        found = []
        for first in range(0, len(self.held_out), BATCH_SIZE):
            rows = [[self._document(n, layout, neighbors)] for n in range(first, min(first + BATCH_SIZE, len(self.held_out)))]
            batch = collate(rows, ROW_LENGTH, tokenizer.vocab.pad_id)
            losses = torch.zeros(batch.tokens.shape)
            losses[batch.loss_weights > 0] = objective(batch).token_losses
            found.append(losses.sum(1) / (batch.loss_weights > 0).sum(1) / np.log(2))  # (B,)
        return torch.cat(found).numpy()

    def _document(self, index: int, layout: Layout, neighbors: int) -> TokenizedDocument:
        document, vocab = self.held_out[index], self.held_out.vocab
        if neighbors:
            document = augment(document, self._similar(document, neighbors), vocab, ROW_LENGTH - 8)
        return layout(document, vocab)

    def _similar(self, document: TokenizedDocument, count: int) -> list[TokenizedDocument]:
        """Training documents that share most words with the caption: a retriever that needs no encoder."""
        words = set(document.token_ids[document.spans[0].start : document.spans[0].stop].tolist())
        shared = np.array([len(words & others) / len(words | others) for others in self._words()])
        return [self.memory[int(index)] for index in np.argsort(-shared, kind="stable")[:count]]

    def _words(self) -> list[set[int]]:
        if not hasattr(self, "_all_words"):
            texts = (self.memory[index] for index in range(min(len(self.memory), 4000)))
            self._all_words = [set(text.token_ids[text.spans[0].start : text.spans[0].stop].tolist()) for text in texts]
        return self._all_words


def compared(name: str, ours: np.ndarray, peer: np.ndarray) -> Row:
    """A row with the 95 % t-interval of the difference over the held-out documents, and the difference of every seed."""
    difference = (ours - peer).mean(0)  # (documents,)
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
    row = Row(row=name, ours=0, peer=0, ratio=0, unit="bits", limit_fraction=None, gate="ok")
    row |= {"ours": round(float(ours.mean()), 4), "peer": round(float(peer.mean()), 4)}
    row |= {"ratio": round(float(peer.mean() / ours.mean()), 3)}
    interval = [round(float(difference.mean() + sign * half), 4) for sign in (-1, 1)]
    by_seed = [round(float(value), 4) for value in (ours - peer).mean(1)]
    return row | {"interval": interval, "by_seed": by_seed, "tokens": STEPS * ROW_LENGTH * BATCH_SIZE}


def rows(data: str, runs: str, seeds: str, most: str) -> Iterator[Row]:
    """The table, once every run is there."""
    if not (Path(data) / "tokens" / MANIFEST).is_file():
        raise UsageError(f"{data} is no finished quickstart; run `make quickstart` first, or name one with --data")
    study = Study(Path(data), Path(runs), int(seeds))
    if not study.train(int(most)):
        return
    causal, turned, cm3, cm3_retrieved, causal_retrieved = ARMS
    picture, caption, middle = (study.bits(cm3, layout) for layout in (picture_given_text, caption_moved, middle_masked))
    in_order, middle_causal = study.bits(causal, picture_given_text), study.bits(causal, middle_in_order)
    yield compared("text to image: cm3 / causal", picture, in_order)
    yield compared("text to image: cm3 / causal, half image first", picture, study.bits(turned, picture_given_text))
    yield compared("captioning: cm3 / causal, half image first", caption, study.bits(turned, caption_last))
    yield compared("infilling: cm3 / causal", middle, middle_causal)
    for task, arm, retrieved, layout, without in (
        ("text to image", "cm3", cm3_retrieved, picture_given_text, picture),
        ("captioning", "cm3", cm3_retrieved, caption_moved, caption),
        ("infilling", "cm3", cm3_retrieved, middle_masked, middle),
        ("text to image", "causal", causal_retrieved, picture_given_text, in_order),
        ("infilling", "causal", causal_retrieved, middle_in_order, middle_causal),
    ):
        for shown, count in (("no document", 0), ("two documents", 2)):
            yield compared(f"{task}: {arm} with retrieval, {shown} / {arm}", study.bits(retrieved, layout, count), without)


if __name__ == "__main__":
    report(rows, __doc__ or "", data="quickstart", runs="runs/objectives", seeds="3", most="100")
