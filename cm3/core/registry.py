"""Registries: literal tables from a name to "module:object", imported only when asked for.

A registry is written in the `__init__.py` of the folder whose files it lists, so that a new task, tokenizer,
checkpoint format or strategy is one new file and one line. Code outside the project is named as "package.module:Thing".
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cm3.core.errors import UsageError


def nearest(name: str, options: list[str]) -> str:
    """A did-you-mean sentence: the closest of `options` to `name`, or all of them when nothing is close."""
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(option) for option in close) + "?"
    return "known: " + (", ".join(sorted(options)) or "none")


class Registry:
    """A lazy table of implementations of one kind.

    Parameters
    ----------
    kind: what the entries are, in the singular ("quantizer"); used in messages and by `cm3 list`.
    table: name → "module:object".
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = MappingProxyType(dict(table))

    def names(self) -> list[str]:
        """The registered names, in the order of the table."""
        return list(self._table)

    def get(self, name: str) -> Any:
        """The object registered as `name`, or the one at "package.module:Thing".

        Raises `UsageError` for an unknown name (with the nearest ones) and for a path that does not import.
        """
        target = self._table.get(name)
        if target is None and ":" in name:
            target = name
        if target is None:
            raise UsageError(f"unknown {self.kind} {name!r}; {nearest(name, self.names())}")
        module_name, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._table and not isinstance(error, ModuleNotFoundError):
                raise
            raise UsageError(f"{self.kind} {name!r} cannot be imported: {error}; check that it is installed") from error
