"""Quantizers on real drawings: one network, equal steps, equal seed; and what a start from data and restarts buy.

Arms start from the data: principal components in the network, k-means centers in the codebook. "codebook from noise" has the
former alone, "from noise" neither.

`--data` takes pictures in any format that is read (a tar of drawings); without it nothing is measured. ours is the arm,
peer the plain learned codebook ("vq"), both on the same held-out pictures; unit "dB" is PSNR, "SSIM", "share" of the codebook in
use, "codes" is perplexity. Sizes near 1024 codes are taken where a quantizer has fixed ones. Finished runs are kept in `--runs`
by their settings and not trained again, and are refused when they saw other pictures; `--most N` trains at most N missing ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measure import Row, report
from cm3.train.metrics import read_records
from vqgan.config import VQTrainConfig
from vqgan.initialization import initialize_from_data
from vqgan.model import VQModel
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
    "vq, codebook from noise": {"initialize": "network"},
    "ema, codebook from noise": {"quantizer": "ema", "initialize": "network"},
    "ema, codebook from noise, restarts": {"quantizer": "ema", "quantizer_options": _RESTART, "initialize": "network"},
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


def settings_of(arm: dict[str, Any]) -> dict[str, Any]:
    """The run file of one arm but for its places."""
    settings = dict(arm)
    initialize = settings.pop("initialize", True)
    size = settings.pop("codebook_size", CODES)
    tokenizer = {"quantizer": "vq", "codebook_dim": 32, "network": "patch"} | settings
    return {
        "image_size": SIDE,
        "codebook_size": size,
        "tokenizer": tokenizer,
        "batch_size": BATCH,
        "max_images": PICTURES,
        "validation_fraction": 0.1,
        "initialize_from_data": bool(initialize),
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


def network_from_data(model: VQModel, *given: Any) -> None:
    """`initialize_from_data`, without the codebook."""
    with mock.patch.object(model.quantizer, "initialize"):
        initialize_from_data(model, *given)


def folder_of(name: str, settings: dict[str, Any]) -> str:
    """A folder name for the run of an arm: other settings, another folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{name.replace(',', '').replace(' ', '-')}-{digest[:8]}"


def rows(data: str = "", runs: str = "", most: int = 99) -> Iterator[Row]:
    """Four rows per arm that stands in `runs`, after training at most `most` missing ones.

    A finished run is gone on with, for no step: that raises `UsageError` when its data, network or losses were others.
    """
    if not data:
        print("the quantizers are compared on pictures that you name with --data", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, left = Path(runs or scratch), most
        base: dict[str, float] = {}
        for name, arm in ARMS.items():
            settings = settings_of(arm)
            out = folder / folder_of(name, settings)
            if not out.exists():
                if left == 0:
                    continue
                left -= 1
            begin = network_from_data if arm.get("initialize") == "network" else initialize_from_data
            with mock.patch("vqgan.training.initialize_from_data", begin):
                train(VQTrainConfig.model_validate({**settings, "data": data, "out": str(out)}))
            measured = read_records(out.with_name(out.name + "-run") / "metrics.jsonl")[-1]
            base = base or measured
            for figure, unit in FIGURES.items():
                ours, peer = round(measured[figure], 4), round(base[figure], 4)
                ratio = round(ours / peer, 3) if peer else 0.0
                yield Row(row=f"{name}, {figure}", ours=ours, peer=peer, ratio=ratio, unit=unit, limit_fraction=None, gate="ok")


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--data", default="", help="pictures")
    own.add_argument("--runs", default="", help="folder for finished runs")
    own.add_argument("--most", type=int, default=99, help="runs to train")
    options, sys.argv[1:] = own.parse_known_args()
    report(partial(rows, **vars(options)), __doc__ or "")
