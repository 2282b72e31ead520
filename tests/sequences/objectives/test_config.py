"""ObjectiveConfig: settings that the named objective does not read are refused, and a resolved configuration never is."""

import pytest

from cm3.core.errors import UsageError
from cm3.core.runfile import load_run
from cm3.sequences import OBJECTIVES, ObjectiveConfig


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("causal", "whole_segment_prob=0.2"),
        ("causal", "count_law=metaseq"),
        ("causal", "sentinel_weight=1"),
        ("causal", "fill_rate=0.25"),
        ("fill_in_middle", "span_rate=2.0"),
        ("fill_in_middle", "max_spans=3"),
        ("cm3", "fill_rate=0.25"),
    ],
)
def test_settings_of_another_objective_are_refused(name, setting):
    with pytest.raises(UsageError, match=f"{setting} would change nothing beside name={name}; leave out one or the other"):
        load_run(ObjectiveConfig, None, [f"name={name}", setting])


@pytest.mark.parametrize("name", [*OBJECTIVES.names(), "my_package.objectives:Mine"])
def test_settings_of_every_objective_read_back(name):
    config = ObjectiveConfig(name=name, image_first_prob=0.5)
    assert ObjectiveConfig.model_validate(config.model_dump()) == config
