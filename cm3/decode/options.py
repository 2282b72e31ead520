"""Decoding by names and numbers: what a user types becomes a strategy and a `Sampling`.

guidance=3                        → strategy "guidance" with scale 3
strategy="contrastive"            → CD-K with its defaults; strategy_options={"k": 4} changes them
temperature=0                     → the most likely token, always
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from cm3.core.errors import UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.core.runfile import RunConfig, validate
from cm3.decode.flight import Plan
from cm3.decode.prompts import Stream
from cm3.decode.records import Request
from cm3.decode.sampling import Sampling
from cm3.decode.strategies import STRATEGIES
from cm3.decode.strategies.guidance import Guidance
from cm3.model import CM3Config
from cm3.tokens import Vocab

_SHORT = {"scale": "guidance", "image_scale": "image_guidance"}  # field of the strategy: what it is called here


class DecodingOptions(RunConfig):
    """How an answer is drawn.

    strategy: a name of `STRATEGIES` (None: "guidance" when a guidance is given, else "plain"), strategy_options its fields;
    guidance, image_guidance: short for its `scale` and `image_scale`, where these are scales of guidance (not so in
    "contrastive"); temperature, top_k, top_p, min_p, repetition_penalty: see
    `Sampling`; window: how many tokens of a picture are tried at once (Jacobi decoding, see `cm3.decode.jacobi`; the tokens
    are the same for any number).
    """

    strategy: str | None = None
    strategy_options: dict[str, Any] = Field(default_factory=dict)
    guidance: float | None = None
    image_guidance: float | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    window: int = Field(default=1, ge=1)

    def make_strategy(self) -> DecodingStrategy:
        """The strategy. Raises `UsageError` for a name or an option that it does not have."""
        given = {name: value for name, short in _SHORT.items() if (value := getattr(self, short)) is not None}
        name = self.strategy or ("guidance" if given else "plain")
        kind = STRATEGIES.get(name)
        if not (isinstance(kind, type) and is_dataclass(kind)):
            raise UsageError(f"strategy {name!r} is no strategy: expected a dataclass with streams() and combine()")
        options = {**given, **self.strategy_options}
        known = [field.name for field in fields(kind)]
        shown = ", ".join(known) or "none"
        if given and not getattr(kind, "scale_is_guidance", "scale" in known):
            raise UsageError(
                f"strategy {name!r} does not take guidance; leave it out, or give fields of the strategy ({shown}) "
                "as strategy_options (--option name=value)"
            )
        if twice := [short for name, short in _SHORT.items() if name in given and name in self.strategy_options]:
            raise UsageError(f"{twice[0]} is given twice, by its name and among the strategy options; give one of them")
        if unknown := [option for option in options if option not in known]:
            raise UsageError(f"strategy {name!r} does not take the option {unknown[0]!r}; it takes {shown}")
        return _checked(kind, name, options)

    def make_sampling(self) -> Sampling:
        """Temperature and filters. Raises `UsageError` for a value out of range."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


DRAWING = DecodingOptions(temperature=0.7, top_p=0.9)  # Chameleon's own settings for pictures
EXACT = DecodingOptions(temperature=0.0)  # answers, captions, edits: the most likely one


def chosen_options(given: Mapping[str, Any] | DecodingOptions, default: DecodingOptions) -> DecodingOptions:
    """`given`, whole or as fields that replace those of `default`. Raises `UsageError` for an unknown field or a wrong value."""
    if isinstance(given, DecodingOptions):
        return given
    return validate(DecodingOptions, {**default.model_dump(), **given}, "decoding") if given else default


def check_conditions(requests: Sequence[Request], strategy: DecodingStrategy, sampling: Sampling, config: CM3Config) -> None:
    """Check that what a strategy leaves out of the prompts is there, and known to the model of `config` as missing.

    Raises `UsageError` for guidance by the pictures of a prompt that has none; warns when a request is compared with a stream
    that has `<mask>` for a text or a picture, which the model may not know.
    """
    by_pictures = isinstance(strategy, Guidance) and strategy.image_scale is not None
    if by_pictures and not all(request.prompt.holds("image") for request in requests):
        raise UsageError("image_guidance guides by the pictures of a prompt, and here is one without any; use guidance alone")
    if config.texts_were_masked:
        return
    plan = Plan.of(requests, strategy, sampling)
    if any(_masked_more(request.prompt.vocab, streams) for request, streams in zip(requests, plan.streams)):
        missing = "picture" if getattr(strategy, "drop", "text") == "image" else "text"
        said = _NEVER_MASKED if config.texts_were_masked is False else _NOT_RECORDED
        warnings.warn(said.format(missing=missing), stacklevel=4)


_NEVER_MASKED = (
    "this model never saw <mask> in place of a {missing}: guidance and contrastive decoding compare with a stream it does not "
    "know, which may make answers worse; train with the objective cm3 and whole_segment_prob above 0"
)
_NOT_RECORDED = (
    "nothing says whether this model saw <mask> in place of a {missing} (its config.json has no texts_were_masked): guidance and "
    "contrastive decoding compare with a stream that it may not know, which may make answers worse; try without, too"
)


def _masked_more(vocab: Vocab, streams: Sequence[Stream]) -> bool:
    """Whether a stream has a `<mask>` that the first one has not; where the condition is left out, as in infilling, none has."""
    first, *others = (int(vocab.is_mask(stream.token_ids).sum()) for stream in streams)
    return any(count > first for count in others)


def _checked(kind: type, name: str, options: dict[str, Any]) -> DecodingStrategy:
    """The strategy with `options`, each of the type that its field has."""
    types = get_type_hints(kind)
    values = {}
    for option, value in options.items():
        try:
            values[option] = TypeAdapter(types[option]).validate_python(value)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].replace("Input should be", "expected")
            raise UsageError(f"option {option!r} of strategy {name!r}: {expected}, got {value!r}") from None
    strategy: DecodingStrategy = kind(**values)
    return strategy
