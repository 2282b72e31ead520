"""Checkpoints of other projects are opened without running anything from them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

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
    with pytest.raises(ArtefactError, match=r"holds more than tensors.*\(Unsupported global: GLOBAL somewhere\.else\.Anything\)"):
        load_torch(tmp_path / "last.ckpt")
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:200])
    with pytest.raises(ArtefactError):
        load_torch(tmp_path / "torn.ckpt")
