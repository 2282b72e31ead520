"""Banks built in shares give together what one machine gives, whichever engine runs the shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import retrieval
from cm3.core.errors import CM3Error, UsageError
from cm3.documents.document import Document
from cm3.documents.writers import write_documents
from retrieval.config import BuildConfig
from retrieval.scaling import ShareTask, build_shards, total_account


@pytest.fixture
def data(pairs: list[Document], tmp_path: Path) -> Path:
    """Four tars of twelve pairs."""
    for number in range(4):
        write_documents(pairs[12 * number : 12 * number + 12], tmp_path / "parts" / str(number))
    (tmp_path / "data").mkdir()
    for number in range(4):
        [tar] = (tmp_path / "parts" / str(number)).glob("*.tar")
        tar.rename(tmp_path / "data" / f"{number}.tar")
    return tmp_path / "data"


def require_equal_to_one_machine(shards: list[Path], data: Path, tmp_path: Path) -> None:
    retrieval.build(data, tmp_path / "whole", "hashing")
    whole, together = retrieval.open(tmp_path / "whole"), retrieval.open_banks(shards)
    assert len(together) == len(whole) == 48
    for query in ("red at the left of blue", "yellow"):
        expected = {(hit.document.id, round(hit.score, 6)) for hit in whole.search(text=query, k=48)}
        assert {(hit.document.id, round(hit.score, 6)) for hit in together.search(text=query, k=48)} == expected
    merged = retrieval.open(retrieval.merge(shards, tmp_path / "merged").path)
    assert sorted(merged.ids) == sorted(whole.ids)
    row = {name: number for number, name in enumerate(merged.ids)}
    assert np.array_equal(np.asarray(merged.vectors)[[row[name] for name in whole.ids]], np.asarray(whole.vectors))


@pytest.mark.parametrize("tasks", [3, 7])
def test_shares_by_files_and_by_documents(tasks: int, data: Path, tmp_path: Path) -> None:
    task = ShareTask(str(data), tmp_path / "out", "hashing", BuildConfig())
    for rank in range(tasks):
        task(None, rank, tasks)
    account = total_account(tmp_path / "out")
    assert (account.seen, account.ok, account.rejected) == (48, 48, {})
    require_equal_to_one_machine(sorted((tmp_path / "out" / "shards").iterdir()), data, tmp_path)


def test_more_tasks_than_documents_are_a_usage_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take fewer tasks"):
        ShareTask(str(data), tmp_path / "out", "hashing", BuildConfig())(None, 60, 61)


def test_a_folder_begun_with_other_settings_is_refused(data: Path, tmp_path: Path) -> None:
    first = ShareTask(str(data), tmp_path / "out", "hashing", BuildConfig())
    first(None, 0, 2)
    first(None, 1, 2)
    for task, tasks, name in (
        (first, 4, "tasks 2, now it is 4"),
        (replace(first, config=BuildConfig(index="hnsw")), 2, "index 'auto', now it is 'hnsw'"),
        (replace(first, source="elsewhere"), 2, "now it is 'elsewhere'"),
    ):
        with pytest.raises(UsageError, match=name):
            task.require_plan(tasks)
    replace(first, config=BuildConfig(device="cuda")).require_plan(2)  # where vectors are made is no part of what they are


def test_an_unknown_engine_is_a_usage_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'ray'"):
        build_shards(data, tmp_path / "out", "hashing", tasks=2, engine="rays")


@pytest.mark.filterwarnings("ignore")  # of the engine
def test_the_local_engine_and_its_markers(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    shards = build_shards(data, tmp_path / "out", "hashing", tasks=2)
    before = [(shard / "CURRENT").stat().st_mtime_ns for shard in shards]
    assert build_shards(data, tmp_path / "out", "hashing", tasks=2) == shards
    assert [(shard / "CURRENT").stat().st_mtime_ns for shard in shards] == before  # completed tasks are not done again
    require_equal_to_one_machine(shards, data, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_failed_task_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    with pytest.raises(CM3Error, match="nothing at"):
        build_shards(tmp_path / "nothing", tmp_path / "out", "hashing", tasks=2)
    monkeypatch.setattr(ShareTask, "__call__", lambda *_: 1 / 0)
    with pytest.raises(CM3Error, match="a task failed: .*division by zero.*; see .*logs"):
        build_shards(tmp_path / "nothing", tmp_path / "out", "hashing", tasks=2)
