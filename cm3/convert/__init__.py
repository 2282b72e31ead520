"""Model checkpoints of other projects to ours, and back. Each entry is a `ModelFormat`; detection goes in this order."""

from cm3.core.registry import Registry

MODEL_FORMATS = Registry(
    "model format",
    {
        "chameleon": "cm3.convert.chameleon_transformers:FORMAT",
        "chameleon-original": "cm3.convert.chameleon_original:FORMAT",
    },
)
