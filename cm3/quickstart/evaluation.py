"""What the finished model is measured by: exact accuracies on the embedded world, likelihoods and distances on other pictures.

tell_story          everything on the report page
evaluate_command    `cm3 eval`: one task of any model folder on held-out data of the embedded world
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import retrieval
import vqgan
from cm3.core import artefact
from cm3.documents.document import Document
from cm3.metrics.intervals import wilson_interval
from cm3.pipeline import CM3Pipeline
from cm3.pretrain.objective import LossConfig, TokenObjective, bits_by_modality
from cm3.pretrain.run import held_out_batches, loss_curve
from cm3.quickstart import showcase
from cm3.quickstart.config import QuickstartConfig
from cm3.quickstart.settings import Places, Settings
from cm3.quickstart.showcase import Judge
from cm3.quickstart.story import Story, TaskScore
from cm3.train.metrics import read_records
from sft.evaluate import EvaluationConfig, evaluate, evaluate_round_trip
from sft.scoring import SceneScorer
from sft.tasks import make_task

HELD_OUT = "held-out combinations"
CURVES = ("image_tokenizer", "encoder", "pretrained", "tuned")


def tell_story(config: QuickstartConfig, settings: Settings, places: Places, stages: Mapping[str, Mapping[str, float]]) -> Story:
    """Measure the model and gather the examples of the page."""
    from cm3.quickstart.run import command_of

    pipe = CM3Pipeline.from_pretrained(places.model)
    scenes = config.data is None
    judge = Judge(SceneScorer(settings.world) if scenes else None)
    pairs = showcase.first(places.held_out_pairs, config.held_out)
    versions = artefact.read_manifest(places.model).versions
    shown: dict[str, Any] = {
        "reconstructions": showcase.reconstructions(pipe, pairs, judge),
        "generations": showcase.drawings(pipe, pairs, judge, config.seed),
        "captions": showcase.captions(pipe, pairs, judge),
        "infills": showcase.infills(pipe, pairs, judge, config.seed),
        "neighbors": showcase.neighbors(pipe, pairs),
        "curves": {name: curve for name in CURVES if (curve := read_curve(places.run_of(places.out / name)))},
    }
    if scenes:
        shown |= {
            "answers": showcase.answers(pipe, showcase.first(places.data / "vqa" / "test", config.held_out, "vqa"), judge),
            "edits": showcase.edits(
                pipe, showcase.first(places.data / "edits" / "test", config.held_out, "edits"), judge, config.seed
            ),
            "tasks": scene_scores(pipe, settings, places, config),
        }
    else:
        shown["real"] = real_figures(pipe, settings, places, pairs)
    source = "the embedded world of small scenes (cm3.scenes)" if scenes else f"the pictures and texts of {config.data}"
    return Story("cm3 quickstart", f"Trained from scratch on {source}.", command_of(config), versions, stages, **shown)


def scene_scores(pipe: CM3Pipeline, settings: Settings, places: Places, config: QuickstartConfig) -> dict[str, TaskScore]:
    """Every task on held-out combinations, and the image tokenizer and the encoder on the same pairs."""
    scorer, limit = SceneScorer(settings.world), config.held_out
    pairs = showcase.first(places.held_out_pairs, limit)
    results = {"tokenizer": evaluate_round_trip(pipe, pairs, scorer, HELD_OUT)}
    options = EvaluationConfig(seed=config.seed, split=HELD_OUT)
    for entry in settings.tuning.mixture:
        task = pipe.tasks[entry.task]
        documents = showcase.first(entry.data.with_name("test"), limit, task.data_format)
        results[entry.task] = evaluate(pipe, entry.task, documents, scorer, options)
    scores = {name: TaskScore(**result.to_json()) for name, result in results.items()}
    return {**scores, "retrieval": retrieval_score(places.encoder, pairs)}


def retrieval_score(encoder: Path, pairs: Sequence[Document]) -> TaskScore:
    """How often the encoder finds the right picture for a caption among all of `pairs`, at the first place."""
    figures = retrieval.evaluate(encoder, pairs, limit=len(pairs))
    share, n = figures["text_to_image/recall_at_1"], len(pairs)
    low, high = wilson_interval(round(share * n), n)
    return TaskScore(share, low, high, n, figures["chance_at_1"], None, f"{HELD_OUT}, 1 of {n} pictures by its caption")


def evaluate_command(model: Path, data: Path, task: str, limit: int, seed: int) -> dict[str, TaskScore]:
    """Measure one task of a model folder on the first `limit` documents of `data`, which the embedded world's scorer judges."""
    chosen = make_task(task)
    pipe = CM3Pipeline.from_pretrained(model)
    documents = showcase.first(data, limit, chosen.data_format)
    result = evaluate(pipe, task, documents, SceneScorer(), EvaluationConfig(seed=seed, split=str(data)))
    return {task: TaskScore(**result.to_json())}


def real_figures(pipe: CM3Pipeline, settings: Settings, places: Places, pairs: Sequence[Document]) -> dict[str, Any]:
    """Figures on held-out pictures that nobody can judge exactly: reconstruction, retrieval, likelihood."""
    images = [document.images[0].load() for document in pairs]
    tokenizer = vqgan.evaluate(vqgan.from_pretrained(places.image_tokenizer), images)
    encoder = retrieval.evaluate(places.encoder, pairs, limit=len(pairs))
    reading = artefact.read_json(places.data / "reading.json")
    figures: dict[str, Any] = {"held_out_pairs": len(pairs), "training_pairs": retrieval.open(places.memory).info.count}
    figures |= {name: tokenizer[name] for name in ("psnr_db", "ssim", "usage", "perplexity")}
    figures |= {f"recall_at_{k}": encoder[f"text_to_image/recall_at_{k}"] for k in (1, 5, 10)}
    figures |= {f"chance_recall_at_{k}": encoder[f"chance_at_{k}"] for k in (1, 10)}
    figures |= held_out_bits(pipe, settings)
    figures["records_rejected"] = sum(reading["rejected"].values())
    return figures


def held_out_bits(pipe: CM3Pipeline, settings: Settings) -> dict[str, float]:
    """Bits per text and per image token of the held-out pairs under the finished model."""
    objective = TokenObjective(pipe.model, pipe.vocab, LossConfig())
    with torch.no_grad():
        return bits_by_modality([objective(batch) for batch in held_out_batches(settings.pretraining, pipe.tokenizer)])


def read_curve(run_folder: Path) -> dict[str, list[float]]:
    """The training records of a run as columns, for plotting; empty when there are none."""
    return loss_curve(read_records(run_folder / "metrics.jsonl"))
