"""Names and numbers to strategies and samplings."""

import pytest

from cm3.core.errors import UsageError
from cm3.core.runfile import validate
from cm3.decode.options import DecodingOptions
from cm3.decode.sampling import Sampling
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Plain()),
        ({"guidance": 2.0}, Guidance(scale=2.0)),
        ({"guidance": 2.0, "image_guidance": 1.5}, Guidance(scale=2.0, image_scale=1.5)),
        ({"strategy": "contrastive"}, Contrastive()),
        ({"strategy": "contrastive", "strategy_options": {"k": 3, "scale": 2.0}}, Contrastive(k=3, scale=2.0)),
        ({"strategy": "mixed", "guidance": 2.0}, Mixed(scale=2.0)),
        ({"strategy": "cm3.decode.strategies.plain:Plain"}, Plain()),
    ],
)
def test_strategies(options, expected):
    assert DecodingOptions(**options).make_strategy() == expected


def test_sampling():
    assert DecodingOptions(temperature=0.5, top_k=3, top_p=0.9).make_sampling() == Sampling(0.5, 3, 0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "guidence"}, "did you mean 'guidance'"),
        ({"strategy": "plain", "guidance": 2.0}, "does not take guidance.*(none).*strategy_options"),
        ({"strategy": "contrastive", "guidance": 2.0}, "does not take guidance.*k, alpha, scale, drop.*strategy_options"),
        ({"strategy": "contrastive", "image_guidance": 2.0}, "does not take guidance"),
        ({"strategy": "mixed", "image_guidance": 2.0}, "does not take the option 'image_scale'"),
        ({"strategy": "guidance", "strategy_options": {"alpha": 1}}, "does not take"),
        ({"guidance": 2.0, "strategy_options": {"scale": 2.0}}, "guidance is given twice"),
        ({"image_guidance": 2.0, "strategy_options": {"image_scale": 2.0}}, "image_guidance is given twice"),
        ({"guidance": -1.0}, "at least 0"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(UsageError, match=words):
        DecodingOptions(**options).make_strategy()


def test_wrong_numbers():
    with pytest.raises(UsageError, match="top_p"):
        DecodingOptions(top_p=0.0).make_sampling()
    with pytest.raises(UsageError, match="temperature"):
        validate(DecodingOptions, {"temperature": "hot"})
