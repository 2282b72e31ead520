"""Checkpoints of other projects are opened without running anything from them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cm3.core.errors import ArtefactError
from cm3.core.tensor_files import load_torch


def save_with_class(path: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint as Lightning wrote it, with the class of a callback as a key; the module is gone afterwards."""
    kind = type(name, (), {"__module__": module})
    with monkeypatch.context() as patched:
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            patched.setitem(sys.modules, ".".join(parts[:count]), ModuleType(module))
        setattr(sys.modules[module], name, kind)
        torch.save(
            {"epoch": 3, "callbacks": {kind: {"best_model_score": torch.ones(1)}}, "state_dict": {"w": torch.eye(2)}}, path
        )


def test_lightning_beside_the_weights_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_with_class(tmp_path / "last.ckpt", "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", monkeypatch)
    assert torch.equal(load_torch(tmp_path / "last.ckpt")["state_dict"]["w"], torch.eye(2))


def test_other_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_with_class(tmp_path / "last.ckpt", "somewhere.else", "Anything", monkeypatch)
    with pytest.raises(ArtefactError, match=r"holds more than tensors.*\(it names 'somewhere\.else\.Anything'\)"):
        load_torch(tmp_path / "last.ckpt")


@pytest.mark.parametrize(("function", "named"), [(os.system, f"{os.name}.system"), (eval, "eval")])
def test_calls_are_refused_by_their_name_alone(tmp_path: Path, function: Callable[..., Any], named: str) -> None:
    """torch knows `posix` as hostile, and `eval` as something it does not know; to both it adds how to open the file anyway."""

    class Call:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return function, ("0",)

    torch.save({"state_dict": {"w": torch.eye(2)}, "call": Call()}, tmp_path / "last.ckpt")
    with pytest.raises(ArtefactError, match=rf"last\.ckpt holds more than tensors.*\(it names '{named}'\)") as caught:
        load_torch(tmp_path / "last.ckpt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_cut_anywhere_are_named(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {f"w{number}": torch.ones(100, 100) for number in range(5)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped
    )
    whole = (tmp_path / "w.pt").read_bytes()
    for size in (0, 100, 400, 5_000, 50_000, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(ArtefactError, match=r"cut\.pt is no readable PyTorch checkpoint \(.+\); it may be cut off") as caught:
            load_torch(tmp_path / "cut.pt")
        assert "weights_only" not in str(caught.value)
