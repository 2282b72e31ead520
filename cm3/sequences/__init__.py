"""Token documents to training batches: objectives, retrieval augmentation, packing, token shards, a stateless loader."""

from cm3.sequences.augmentation import AugmentationConfig, AugmentedSource, augment, draw_neighbors
from cm3.sequences.batch import Batch, collate
from cm3.sequences.loader import LoaderConfig, SequenceLoader, one_pass
from cm3.sequences.masking import mask_spans, restore, restore_order
from cm3.sequences.objectives import OBJECTIVES, ObjectiveConfig
from cm3.sequences.shards import TokenShards, write_shards
from cm3.sequences.sources import Mixture, Source

__all__ = [
    "OBJECTIVES",
    "AugmentationConfig",
    "AugmentedSource",
    "Batch",
    "LoaderConfig",
    "Mixture",
    "ObjectiveConfig",
    "SequenceLoader",
    "Source",
    "TokenShards",
    "augment",
    "collate",
    "draw_neighbors",
    "mask_spans",
    "one_pass",
    "restore",
    "restore_order",
    "write_shards",
]
