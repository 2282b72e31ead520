"""`TokenTask`: what token models bring to the training loop, for pretraining and instruction tuning alike.

A loader gives batches as a pure function of (step, shard); `TokenObjective` gives the loss; held-out batches give bits per
token by modality. Which objective, mixture or loss mask is used is decided in the loader, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from PIL import Image
from torch import Tensor, nn

from cm3.model import CM3ForCausalLM
from cm3.model.counting import flops_per_token
from cm3.pretrain.objective import TokenObjective, bits_by_modality, bits_ratios
from cm3.sequences.batch import Batch
from cm3.train.optimizers import split_decay
from cm3.train.sharding import is_sharded
from cm3.train.task import Metrics, Shard


class BatchSource(Protocol):
    """Where batches come from: `cm3.sequences.SequenceLoader`, or anything else that is pure in its arguments."""

    def batch(self, step: int, shard_index: int, shard_count: int) -> Batch:
        """The batch of part `shard_index` of `shard_count` in `step`."""

    def position(self, step: int, shard_count: int) -> dict[str, float]:
        """Where the data stands before `step`."""

    def document_names(self, step: int, shard_index: int, shard_count: int) -> list[list[str]]:
        """Ids of the documents in every row of that batch."""


Sampler: TypeAlias = Callable[[CM3ForCausalLM], dict[str, Image.Image]]


class TokenTask:
    """A `TrainingTask` over token batches.

    objective: the model with its loss; loader: the training batches; held_out: batches for `evaluate`, each looked at once;
    sampler: draws pictures with the model after every evaluation (name → picture); context: tokens that attention looks at
    around a token, for the cost of one (default: half a row of the model's longest); settings: gives those that decide the result
    (see `cm3.train.task.DescribedTask`), asked when the processes have met.
    """

    def __init__(
        self,
        objective: TokenObjective,
        loader: BatchSource,
        held_out: Sequence[Batch] = (),
        sampler: Sampler | None = None,
        context: float | None = None,
        settings: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.modules: dict[str, nn.Module] = {"objective": objective}
        self.loader, self.held_out, self._sampler = loader, list(held_out), sampler
        self._model, self._settings = objective.model, settings
        self._cost = flops_per_token(objective.model.config, int(context or objective.model.config.max_position_embeddings))

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        """One optimizer for all parameters; no weight decay on vectors."""
        return {"model": split_decay(self.modules["objective"].named_parameters())}

    def batch(self, step: int, shard: Shard) -> Batch:
        """The loader's batch; resuming needs no loader state."""
        return self.loader.batch(step, shard.index, shard.count)

    def document_names(self, step: int, shard: Shard) -> list[list[str]]:
        """Ids of the documents in every row."""
        return self.loader.document_names(step, shard.index, shard.count)

    def loss(self, name: str, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """The weighted mean token loss, with bits per token by modality and the number of tokens."""
        result = self.modules["objective"](batch)
        tokens = (batch.document_ids > 0).sum()
        return result.loss, {"weight": result.weight, "tokens": tokens, **bits_ratios(result)}

    def evaluate(self) -> dict[str, float]:
        """Held-out bits per token by modality; nothing without held-out batches."""
        if not self.held_out:
            return {}
        return bits_by_modality([self.modules["objective"](batch) for batch in self.held_out])

    def pictures(self) -> dict[str, Image.Image]:
        """What the sampler draws; nothing without one, nor from sharded weights, which only whole steps gather."""
        sharded = any(is_sharded(parameter) for parameter in self._model.parameters())
        return {} if self._sampler is None or sharded else self._sampler(self._model)

    def settings(self) -> Mapping[str, Any]:
        """What decides the result, as it was given."""
        return self._settings()

    def flops_per_token(self) -> float:
        """Operations for one token by arithmetic on the configuration (`cm3.model.counting`)."""
        return self._cost

    def position(self, step: int, shards: int) -> dict[str, float]:
        """Documents seen, and how many times the data."""
        return self.loader.position(step, shards)
