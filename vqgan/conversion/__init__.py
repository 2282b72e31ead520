"""Checkpoints of other projects to our folder, and back. Each entry is a `CheckpointFormat`; detection goes in this order."""

from cm3.core.registry import Registry

CHECKPOINT_FORMATS = Registry(
    "checkpoint format",
    {
        "llamagen": "vqgan.conversion.llamagen:FORMAT",
        "janus": "vqgan.conversion.janus:FORMAT",
        "chameleon": "vqgan.conversion.chameleon:FORMAT",
        "taming": "vqgan.conversion.taming:FORMAT",
        "dalle": "vqgan.conversion.dalle:FORMAT",
    },
)
