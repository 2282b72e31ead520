"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from cm3.core.devices import require_device
from cm3.core.errors import UsageError


def test_a_device_that_is_there() -> None:
    assert require_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "xpu:99", "graphics card", "", "meta"])
def test_a_device_that_is_not_there_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device {name!r} here; take cpu"):
        require_device(name)
