"""Decoding strategies: which streams a request is decoded with, and how their logits become one distribution.

    plain        the conditional stream alone
    guidance     away from the stream without its condition, by a scale; two scales for editing
    contrastive  CD-K: the ratio of both, among the tokens the conditional stream finds plausible
    mixed        half of the pictures by guidance and top-p, half by CD-K

A strategy is a frozen dataclass with `streams(prompt)` and `combine(logits)` (`cm3.core.protocols.DecodingStrategy`).
`guidance=3` is short for its field `scale`, unless it says `scale_is_guidance = False`.
One that differs from picture to picture also has `for_picture(number, sampling)`, which gives the strategy and the sampling
of that picture.
"""

from cm3.core.registry import Registry

STRATEGIES = Registry(
    "strategy",
    {
        "plain": "cm3.decode.strategies.plain:Plain",
        "guidance": "cm3.decode.strategies.guidance:Guidance",
        "contrastive": "cm3.decode.strategies.contrastive:Contrastive",
        "mixed": "cm3.decode.strategies.mixed:Mixed",
    },
)

__all__ = ["STRATEGIES"]
