"""Training objectives: how a document becomes the sequence a model learns from. A new one is one file and one line here."""

from cm3.core.registry import Registry
from cm3.sequences.objectives.config import Objective, ObjectiveConfig

OBJECTIVES = Registry(
    "objective",
    {
        "causal": "cm3.sequences.objectives.causal:causal",
        "cm3": "cm3.sequences.objectives.cm3:cm3",
        "fill_in_middle": "cm3.sequences.objectives.fill_in_middle:fill_in_middle",
    },
)

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig"]
