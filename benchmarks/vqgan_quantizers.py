"""Quantizers on real drawings: one network, equal steps, equal seed; and what a start from data and restarts buy.

`--data` takes pictures in any format that is read (a tar of drawings); without it the embedded world is drawn. ours is the arm,
peer the plain learned codebook ("vq"), both on the same held-out pictures; unit "dB" is PSNR, "SSIM", "share" of the codebook in
use, "codes" is perplexity. Sizes near 1024 codes are taken where a quantizer has fixed ones. Finished runs are kept in `--runs`
and not trained again; `--most N` trains at most N missing ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, report
from cm3.train.metrics import read_records
from vqgan.config import VQTrainConfig
from vqgan.training import train

STEPS, BATCH, SIDE, CODES, PICTURES = 150, 32, 32, 1024, 2000
FIGURES = {"psnr_db": "dB", "ssim": "SSIM", "usage": "share", "perplexity": "codes"}
_RESTART = {"restart_below": 0.5}
ARMS: dict[str, dict[str, Any]] = {
    "vq": {},
    "ema": {"quantizer": "ema"},
    "ema with restarts": {"quantizer": "ema", "quantizer_options": _RESTART},
    "cosine, 8 dimensions": {"quantizer": "cosine", "codebook_dim": 8},
    "rotation": {"quantizer": "rotation"},
    "fsq (1000 codes)": {"quantizer": "fsq", "codebook_size": 1000},
    "lfq": {"quantizer": "lfq"},
    "ibq": {"quantizer": "ibq"},
    "gumbel": {"quantizer": "gumbel", "quantizer_options": {"temperature_steps": STEPS, "kl_steps": STEPS, "kl_weight": 0.1}},
    "vq from noise": {"initialize": False},
    "ema from noise": {"quantizer": "ema", "initialize": False},
    "ema from noise, restarts": {"quantizer": "ema", "quantizer_options": _RESTART, "initialize": False},
    "cosine from noise": {"quantizer": "cosine", "codebook_dim": 8, "initialize": False},
    "cosine from noise, restarts": {
        "quantizer": "cosine",
        "codebook_dim": 8,
        "quantizer_options": _RESTART,
        "initialize": False,
    },
}


def train_arm(arm: dict[str, Any], data: str, out: Path) -> None:
    """Train one arm into the tokenizer folder `out`; its figures stand in the run folder beside it."""
    settings = dict(arm)
    initialize = settings.pop("initialize", True)
    size = settings.pop("codebook_size", CODES)
    tokenizer = {"quantizer": "vq", "codebook_dim": 32, "network": "patch"} | settings
    values = {
        "data": data,
        "out": str(out),
        "image_size": SIDE,
        "codebook_size": size,
        "tokenizer": tokenizer,
        "batch_size": BATCH,
        "max_images": PICTURES,
        "validation_fraction": 0.1,
        "initialize_from_data": initialize,
        "train": {
            "steps": STEPS,
            "learning_rate": 2e-3,
            "weight_decay": 0.0,
            "warmup_steps": 20,
            "checkpoint_every": 0,
            "tensorboard": False,
            "device": "cpu",
            "precision": "fp32",
            "log_every": 50,
        },
    }
    train(VQTrainConfig.model_validate(values))


def rows(data: str = "", runs: str = "", most: int = 99) -> Iterator[Row]:
    """Four rows per arm that stands in `runs`, after training at most `most` missing ones."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, left = Path(runs or scratch), most
        source = data or _embedded(Path(scratch) / "scenes")
        base: dict[str, float] = {}
        for name, arm in ARMS.items():
            out = folder / name.replace(",", "").replace(" ", "-")
            if not out.exists():
                if left == 0:
                    continue
                left -= 1
                train_arm(arm, source, out)
            measured = read_records(out.with_name(out.name + "-run") / "metrics.jsonl")[-1]
            base = base or measured
            for figure, unit in FIGURES.items():
                ours, peer = round(measured[figure], 4), round(base[figure], 4)
                ratio = round(ours / peer, 3) if peer else 0.0
                yield Row(row=f"{name}, {figure}", ours=ours, peer=peer, ratio=ratio, unit=unit, limit_fraction=None, gate="ok")


def _embedded(folder: Path) -> str:
    from cm3.documents.writers import write_documents
    from cm3.scenes import WorldConfig, pair_document

    write_documents((pair_document(WorldConfig(), "train", 0, index) for index in range(800)), folder, "webdataset")
    return str(folder)


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--data", default="", help="pictures")
    own.add_argument("--runs", default="", help="folder for finished runs")
    own.add_argument("--most", type=int, default=99, help="runs to train")
    options, sys.argv[1:] = own.parse_known_args()
    report(partial(rows, **vars(options)), __doc__ or "")
