"""The public face of the package: light to import, and every name is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import retrieval


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import sys, retrieval; print([name for name in ('torch', 'transformers', 'faiss') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", retrieval.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert callable(getattr(retrieval, name))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = retrieval.nothing
