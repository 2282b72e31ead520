"""From pictures to a finished tokenizer folder: `cm3 vqgan train`.

pictures → start from data → loop (`vqgan.task` in `cm3.train`) → folder
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from cm3.core.artefact import require_replaceable, write_json
from cm3.core.errors import UsageError
from cm3.core.runfile import write_resolved
from cm3.core.seeding import derive_seed
from cm3.core.storage import sibling
from cm3.documents.report import ReadReport
from cm3.train.loop import TrainResult
from cm3.train.loop import train as run_loop
from cm3.train.processes import on_main_process, process_count, runs_on_cpu
from cm3.train.trial import Examples, estimate_by_trial
from vqgan.codebook_monitor import HORIZON
from vqgan.config import VQTrainConfig
from vqgan.initialization import initialize_from_data
from vqgan.model import VQModel
from vqgan.pictures import read_pictures
from vqgan.task import VQTask
from vqgan.tokenizer import KIND, VQTokenizer


def train(config: VQTrainConfig, out: Path | str | None = None, provenance: Mapping[str, Any] | None = None) -> VQTokenizer:
    """Train the tokenizer that `config` describes on `config.data` and write its folder to `out` (default: `config.out`).

    The run itself (checkpoints, metrics, pictures, the resolved configuration, the report of the reading) lies in the
    sibling folder `OUT-run`; calling again after an interruption goes on there. Returns the tokenizer. Raises `UsageError` when
    that folder holds a run with other data, network or losses, or the run does not fit into memory, and what `read_pictures` and
    `cm3.train.loop.train` raise.
    """
    target = out or config.out
    if target is None:
        raise UsageError("no place for the tokenizer; set `out`")
    target = Path(target)
    require_replaceable(target, KIND)
    run_dir = sibling(target, suffix="-run")
    tokenizer_config = config.resolve()
    report = ReadReport()
    pictures = read_pictures(config, tokenizer_config, run_dir, report)
    PartialState(
        cpu=runs_on_cpu(config.train.device)
    )  # the processes meet before quantizers ask whether to share their statistics
    torch.manual_seed(derive_seed(config.train.seed, "weights"))
    model = VQModel(tokenizer_config)
    task = VQTask(model, config, pictures)
    everything_on = HORIZON * (1 + config.loss.adversarial_start)  # and no step that looks for a collapse
    examples = Examples(config.batch_size, "pictures", step=everything_on)
    estimate_by_trial(task, config.train, examples, partial(_remedy, config)).announce()
    if config.initialize_from_data:
        initialize_from_data(model, pictures, task.training_indices, config.train.seed)
    result = run_loop(task, config.train, run_dir, label="image tokenizer")
    on_main_process(lambda: write_resolved(config, run_dir))
    on_main_process(lambda: write_json(run_dir / "reading.json", report.to_json()))
    model.cpu()
    if result.ema:
        model.load_state_dict(result.ema["model"], strict=False)
    tokenizer = VQTokenizer(model)
    figures = _last_evaluation(result)
    made_by = {"run": config.model_dump(mode="json"), "figures": figures, **(provenance or {})}
    on_main_process(lambda: tokenizer.save(target, provenance=made_by))
    return tokenizer


def _remedy(config: VQTrainConfig, fitting: int) -> str:
    """What makes a run fit into memory where that of `fitting` pictures fits at a time."""
    size, processes = config.batch_size, process_count()
    for steps in range(config.train.accumulation_steps + 1, size // processes + 1):
        if size % (steps * processes) == 0 and size // (steps * processes) <= fitting:
            return f"set train.accumulation_steps={steps}"
    return "choose a smaller preset, smaller pictures (image_size), or narrower networks (tokenizer.network_options)"


def _last_evaluation(result: TrainResult) -> dict[str, Any]:
    records = [record for record in result.history if record["kind"] == "eval"]
    return dict(records[-1]) if records else {}
