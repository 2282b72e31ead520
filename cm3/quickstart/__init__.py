"""From nothing to a picture: every stage on the embedded world or on a user's pictures, then an evaluation and a report.

run_quickstart(QuickstartConfig(out=Path("quickstart")), print)      →  DIR/model/, DIR/result.json, DIR/index.html
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3.quickstart.config import QuickstartConfig
    from cm3.quickstart.run import run_quickstart

__all__ = ["QuickstartConfig", "run_quickstart"]

_LAZY = {"QuickstartConfig": "cm3.quickstart.config", "run_quickstart": "cm3.quickstart.run"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'cm3.quickstart' has no attribute {name!r}")
