"""Registries import lazily and answer wrong names with the nearest right ones."""

from __future__ import annotations

import pytest

from cm3.core.errors import UsageError
from cm3.core.registry import Registry

TABLE = {"earth": "collections:OrderedDict", "mars": "math:nothing_there", "venus": "no_such_module_here:X"}
REGISTRY = Registry("planet", TABLE)


def test_known_name_and_outside_path() -> None:
    from collections import Counter, OrderedDict

    assert REGISTRY.get("earth") is OrderedDict
    assert REGISTRY.get("collections:Counter") is Counter
    assert REGISTRY.names() == ["earth", "mars", "venus"]


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown planet 'erth'; did you mean 'earth'"):
        REGISTRY.get("erth")
    with pytest.raises(UsageError, match="known: earth, mars, venus"):
        REGISTRY.get("qqqqqq")


def test_path_that_does_not_import() -> None:
    with pytest.raises(UsageError, match="cannot be imported"):
        REGISTRY.get("venus")
    with pytest.raises(UsageError, match="cannot be imported"):
        REGISTRY.get("collections:Nothing")
    with pytest.raises(AttributeError):
        REGISTRY.get("mars")
