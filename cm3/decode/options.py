"""Decoding by names and numbers: what a user types becomes a strategy and a `Sampling`.

guidance=3                        → strategy "guidance" with scale 3
strategy="contrastive"            → CD-K with its defaults; strategy_options={"k": 4} changes them
temperature=0                     → the most likely token, always
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cm3.core.errors import UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.core.runfile import RunConfig
from cm3.decode.sampling import Sampling
from cm3.decode.strategies import STRATEGIES


class DecodingOptions(RunConfig):
    """How an answer is drawn.

    strategy: a name of `STRATEGIES` (None: "guidance" when a guidance is given, else "plain"), strategy_options its fields;
    guidance, image_guidance: short for its `scale` and `image_scale`; temperature, top_k, top_p: see `Sampling`.
    """

    strategy: str | None = None
    strategy_options: dict[str, Any] = Field(default_factory=dict)
    guidance: float | None = None
    image_guidance: float | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def make_strategy(self) -> DecodingStrategy:
        """The strategy. Raises `UsageError` for a name or an option that it does not have."""
        scales = {"scale": self.guidance, "image_scale": self.image_guidance}
        given = {name: value for name, value in scales.items() if value is not None}
        name = self.strategy or ("guidance" if given else "plain")
        try:
            strategy: DecodingStrategy = STRATEGIES.get(name)(**given, **self.strategy_options)
        except TypeError as error:
            raise UsageError(f"strategy {name!r} does not take these options: {error}") from None
        return strategy

    def make_sampling(self) -> Sampling:
        """Temperature and filters. Raises `UsageError` for a value out of range."""
        return Sampling(self.temperature, self.top_k, self.top_p)
