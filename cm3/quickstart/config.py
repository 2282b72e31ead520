"""What the quickstart does by default, and how its budget of minutes becomes training steps.

The settings of every stage are the run-file models of the packages themselves: what the quickstart runs, a user can write
down and run alone. Steps scale with the minutes; the sizes of the networks do not, so results of different budgets compare.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from cm3.core.runfile import RunConfig

REFERENCE_MINUTES = 15.0  # the budget the step counts below were measured for, on two quiet cores


class QuickstartConfig(RunConfig):
    """out: where everything goes; minutes: budget; data: pictures with texts (None: the embedded world); seed: of every draw;
    held_out: documents per task in the evaluation."""

    out: Path = Path("quickstart")
    minutes: float = Field(REFERENCE_MINUTES, gt=0)
    data: Path | None = None
    seed: int = Field(0, ge=0)
    held_out: int = Field(256, ge=4)

    @property
    def scale(self) -> float:
        """How much longer or shorter than the reference every training is."""
        return self.minutes / REFERENCE_MINUTES

    def steps(self, at_reference: int) -> int:
        """Training steps of a stage that takes `at_reference` of them in the reference budget."""
        return max(2, round(at_reference * self.scale))

    def size(self, at_reference: int, least: int) -> int:
        """Documents of a data set: a smaller budget needs fewer, a larger one no more than it can look at once."""
        return max(least, min(at_reference * 4, round(at_reference * self.scale)))


def training(config: QuickstartConfig, steps: int, **settings: Any) -> dict[str, Any]:
    """The `train` section of a stage: `steps` in the reference budget, no checkpoint more often than once a minute or so."""
    count = config.steps(steps)
    warmup = min(settings.pop("warmup_steps", 40), count // 4)
    return {
        "steps": count,
        "seed": config.seed,
        "warmup_steps": warmup,
        "checkpoint_every": max(1, count // 8),
        "keep_checkpoints": 1,
        "log_every": max(1, count // 100),
        "tensorboard": False,
        **settings,
    }
