"""Names on the hub: a folder of that name wins, and every failure to fetch is one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cm3.core.errors import ArtefactError, InputError
from retrieval.encoders import load_encoder
from retrieval.encoders.hub import encoder_folder


def test_a_folder_is_itself(clip_folder: Path) -> None:
    assert encoder_folder(clip_folder) == clip_folder
    assert load_encoder(str(clip_folder)).kind == "clip"


def test_a_name_is_fetched_without_what_is_not_needed(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(clip_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_encoder("someone/clip").kind == "clip"
    assert asked["name"] == "someone/clip"
    assert not any(pattern.endswith((".bin", ".h5", ".msgpack")) for pattern in asked["patterns"])


def test_a_failure_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match="someone/clip.*no network$"):
        load_encoder("someone/clip")


@pytest.mark.parametrize("path", ["nothing", "./some/where", "/no/such/place", "a/b/c"])
def test_a_path_is_never_taken_for_a_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("must not be called"))
    with pytest.raises(ArtefactError):
        load_encoder(path)


def test_a_local_folder_goes_before_the_hub(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(clip_folder, tmp_path / "runs" / "encoder")
    monkeypatch.chdir(tmp_path)
    assert load_encoder("runs/encoder").kind == "clip"
