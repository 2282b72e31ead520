"""Files of arrays: what is read is what was written, and what is no array is told as one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cm3.core.arrays import read_array

MAPPED: list[Literal["r", "c"] | None] = [None, "r", "c"]


@pytest.mark.parametrize("mapped", MAPPED)
def test_round_trip(tmp_path: Path, mapped: Literal["r", "c"] | None) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    assert read_array(tmp_path / "a.npy", mapped).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("length", [0, 5, 60, 140])
def test_what_is_cut_short_is_a_value_error(tmp_path: Path, length: int, mapped: Literal["r", "c"] | None) -> None:
    np.save(tmp_path / "a.npy", np.arange(6))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:length])
    with pytest.raises(ValueError, match=r"."):
        read_array(tmp_path / "a.npy", mapped)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_array(tmp_path / "a.npy")
