"""The run lock: one holder, named when refused; a dead one does not count."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from cm3.core.errors import RunLockedError, StorageError
from cm3.train.runlock import LOCK_NAME, run_lock


def test_a_second_process_is_refused_with_the_holders_pid(tmp_path, in_child):
    def second():
        with pytest.raises(RunLockedError, match=rf"in use by process {os.getppid()} on "), run_lock(tmp_path):
            pass

    with run_lock(tmp_path):
        assert in_child(second) == 0
    with run_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, in_child):
    def hold():
        with run_lock(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)

    pid = in_child(hold, wait=False)
    deadline = time.monotonic() + 20
    while not (tmp_path / "held").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RunLockedError, match=str(pid)), run_lock(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_a_run_folder_in_use_is_refused_before_anything_is_touched(tmp_path, settings, train_quietly, tiny_task):
    task = tiny_task()
    with run_lock(tmp_path / "run"), pytest.raises(RunLockedError):
        train_quietly(task, settings(), tmp_path / "run")
    assert task.calls == []
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == [LOCK_NAME]


def test_a_place_that_cannot_be_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), run_lock(tmp_path / "file" / "run"):
        pass
