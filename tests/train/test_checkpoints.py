"""Checkpoints: dying anywhere loses nothing, damage is found and passed over, a full disk harms nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from torch import nn

from cm3.core.artefact import MANIFEST, read_json, verify
from cm3.core.errors import ArtefactError, Preempted, StorageError, UsageError
from cm3.train import tensor_files
from cm3.train.checkpoints import Checkpoints
from cm3.train.config import TrainConfig
from cm3.train.crashpoints import CRASH_POINTS, require_known_crash_point
from cm3.train.metrics import read_records
from cm3.train.state import RunState


@pytest.fixture
def uninterrupted(tmp_path, settings, train_quietly, tiny_task, state_hashes):
    """Hashes and configuration of a run of six steps that saves in every second one."""
    config = settings(steps=6, checkpoint_every=2, keep_checkpoints=1, eval_every=2)
    train_quietly(tiny_task(), config, tmp_path / "whole")
    return SimpleNamespace(config=config, hashes=state_hashes(tmp_path / "whole", 6))


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_dying_at_any_named_moment_loses_nothing(
    point, uninterrupted, tmp_path, monkeypatch, train_quietly, tiny_task, in_child, state_hashes
):
    step = {"resumed": 0, "finished": 6, "batch-ready": 3, "gradients-ready": 3, "updated": 3}.get(point, 4)
    monkeypatch.setenv("CRASH_AT", f"{point}@{step}")
    assert in_child(lambda: train_quietly(tiny_task(), uninterrupted.config, tmp_path / "run")) == 137
    monkeypatch.delenv("CRASH_AT")
    result = train_quietly(tiny_task(), uninterrupted.config, tmp_path / "run")
    assert state_hashes(tmp_path / "run", 6) == uninterrupted.hashes
    assert [record["step"] for record in result.history if record["kind"] == "eval"] == [2, 4, 6]
    assert sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000006"]


def test_killing_at_random_moments_loses_nothing(
    uninterrupted, tmp_path, train_quietly, tiny_task, in_child, state_hashes, times
):
    """After every kill the newest checkpoint verifies and nothing older than it is needed; finished runs begin anew."""
    rng = random.Random(0)
    kills = begun = 0
    for _ in times(12):
        run_dir = tmp_path / f"run-{begun}"
        slow = tiny_task(lambda step: time.sleep(0.05))  # the first run outlasts any delay below
        pid = in_child(lambda: train_quietly(slow, uninterrupted.config, run_dir), wait=False)  # noqa: B023
        time.sleep(rng.uniform(0.005, 0.08))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if found := list(Checkpoints(run_dir, keep=1).paths().values()):
            verify(found[-1], kind="checkpoint")
        if kills % 12 == 11:
            train_quietly(tiny_task(), uninterrupted.config, run_dir)
            assert state_hashes(run_dir, 6) == uninterrupted.hashes
            begun += 1
    assert kills
    train_quietly(tiny_task(), uninterrupted.config, tmp_path / f"run-{begun}")
    assert state_hashes(tmp_path / f"run-{begun}", 6) == uninterrupted.hashes


def test_stopping_at_random_moments_saves_the_last_finished_step(
    uninterrupted, tmp_path, train_quietly, tiny_task, in_child, state_hashes, times
):
    """SIGTERM while data is awaited, in a step, in a save or an evaluation: exit code 75 within ten seconds, nothing is lost."""
    rng = random.Random(1)

    class Slow(tiny_task):
        def evaluate(self):
            time.sleep(0.1)
            return super().evaluate()

    def work(run_dir):
        try:
            train_quietly(Slow(lambda step: time.sleep(0.05)), uninterrupted.config, run_dir)
        except Preempted as stop:
            os._exit(stop.exit_code)

    for number in times(4):
        run_dir = tmp_path / f"run-{number}"
        pid = in_child(lambda: work(run_dir), wait=False)  # noqa: B023
        while not (run_dir / "metrics.jsonl").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(pid, signal.SIGTERM)
        asked = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == Preempted.exit_code
        assert time.monotonic() - asked < 10
        last = max(Checkpoints(run_dir, keep=1).paths())
        assert last in {record["step"] for record in read_records(run_dir / "metrics.jsonl")}  # written for the last step
        train_quietly(tiny_task(), uninterrupted.config, run_dir)
        assert state_hashes(run_dir, 6) == uninterrupted.hashes


def test_random_flips_and_cuts_are_noticed_and_named(tmp_path, settings, train_quietly, tiny_task, times):
    train_quietly(tiny_task(), settings(steps=1), tmp_path)
    (folder,) = Checkpoints(tmp_path, keep=1).paths().values()
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    rng = random.Random(2)
    for number in times(40):
        path = rng.choice(files)
        content = path.read_bytes()
        place = rng.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        path.write_bytes(content[:place] if number % 10 == 0 else flipped)
        with pytest.raises(ArtefactError, match=path.name):
            verify(folder, kind="checkpoint")
        path.write_bytes(content)
    verify(folder, kind="checkpoint")


def test_an_unknown_crash_point_is_refused(monkeypatch):
    monkeypatch.setenv("CRASH_AT", "step-dome")
    with pytest.raises(UsageError, match="did you mean 'step-done'"):
        require_known_crash_point()


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "extra", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(damage, tmp_path, settings, train_quietly, tiny_task, state_hashes):
    config = settings(steps=6, checkpoint_every=3)
    train_quietly(tiny_task(), config, tmp_path)
    expected = state_hashes(tmp_path, 6)
    newest = tmp_path / "checkpoints" / "step-00000006"
    target = newest / "optimizer-model.safetensors"
    content = bytearray(target.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        target.write_bytes(content)
    elif damage == "cut":
        target.write_bytes(content[:-9])
    elif damage == "missing":
        target.unlink()
    elif damage == "extra":
        (newest / "more.safetensors").write_bytes(b"")
    else:
        (newest / "manifest.json").unlink()
    resumed = tiny_task()
    with pytest.warns(UserWarning, match=r"skipped a damaged checkpoint, continuing from step-00000003: .*step-00000006"):
        train_quietly(resumed, config, tmp_path)
    assert resumed.calls[0][0] == 3
    assert state_hashes(tmp_path, 6) == expected  # replaced by a good one
    verify(newest)


def test_nothing_intact_is_an_error_and_not_a_fresh_start(tmp_path, settings, train_quietly, tiny_task):
    config = settings(steps=3)
    train_quietly(tiny_task(), config, tmp_path)
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"no checkpoint in .* is intact; remove that folder"):
        train_quietly(tiny_task(), config, tmp_path)


def test_a_checkpoint_of_another_model_is_refused_with_a_reason(tmp_path, settings, train_quietly, tiny_task):
    class Wider(tiny_task):
        def __init__(self):
            super().__init__()
            self.modules["model"][4] = nn.Linear(12, 7)

    train_quietly(tiny_task(), settings(steps=3), tmp_path)
    with pytest.raises(ArtefactError, match=r"step-00000003 does not fit this run: .*size mismatch for 4.weight"):
        train_quietly(Wider(), settings(steps=6), tmp_path)


def test_changed_settings_are_named(tmp_path, settings, train_quietly, tiny_task):
    train_quietly(tiny_task(), settings(steps=3), tmp_path)
    with pytest.raises(UsageError, match=r"step-00000003 was made with train.seed=0, this run has 5; restore"):
        train_quietly(tiny_task(), settings(steps=4, seed=5), tmp_path)
    with pytest.warns(UserWarning, match=r"continuing step-00000003 .* config.learning_rate 0.01 -> 0.1, config.steps 3 -> 4"):
        train_quietly(tiny_task(), settings(steps=4, learning_rate=0.1, log_every=1), tmp_path)


@pytest.mark.parametrize("steps", [3, 6])  # of a finished run, and of one that would go on
def test_another_task_does_not_go_on(tmp_path, settings, train_quietly, tiny_task, steps):
    def described(**changes):
        task = tiny_task()
        task.settings = lambda: {"data": {"fingerprint": "ab"}, "loss": {"weights": (1, 2)}, "mask": None} | changes
        return task

    def content():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name}

    train_quietly(described(), settings(steps=3), tmp_path)
    before = content()
    with pytest.raises(UsageError, match=r'step-00000003 was made with data.fingerprint="ab", this run has "cd"; restore'):
        train_quietly(described(data={"fingerprint": "cd"}), settings(steps=steps), tmp_path)
    with pytest.raises(UsageError, match=r"made with loss\.weights\.1=2, this run has 3; .* another run folder"):
        train_quietly(described(loss={"weights": [1, 3]}), settings(steps=steps), tmp_path)
    with pytest.raises(UsageError, match=r'made with mask=null, this run has {"rate": 1}'):
        train_quietly(described(mask={"rate": 1}), settings(steps=steps), tmp_path)
    assert content() == before
    result = train_quietly(described(newer=1), settings(steps=3), tmp_path)  # a setting that the older run did not know
    assert result.step == 3


def test_checkpoints_that_do_not_describe_their_task_go_on(tmp_path, settings, train_quietly, tiny_task):
    train_quietly(tiny_task(), settings(steps=3), tmp_path)
    task = tiny_task()
    task.settings = lambda: {"data": 1}
    assert train_quietly(task, settings(steps=3), tmp_path).step == 3


def test_another_thread_count_is_named(tmp_path, settings, train_quietly, tiny_task, monkeypatch):
    train_quietly(tiny_task(), settings(steps=3), tmp_path)
    threads = read_json(tmp_path / "checkpoints" / "step-00000003" / "state.json")["threads"]
    monkeypatch.setattr("torch.get_num_threads", lambda: threads + 1)
    with pytest.warns(UserWarning, match=rf"threads {threads} -> {threads + 1}"):
        train_quietly(tiny_task(), settings(steps=3), tmp_path)


def test_a_machine_that_computes_in_another_dtype_is_named(tmp_path, settings, train_quietly, tiny_task, monkeypatch):
    found = {}
    for tiles in (False, True):  # what "auto" makes of it
        monkeypatch.setattr("cm3.train.precision.cpu_has_bf16_tiles", lambda tiles=tiles: tiles)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_quietly(tiny_task(), settings(steps=3 + tiles, precision="auto"), tmp_path)
        found[tiles] = [str(one.message) for one in said if "not bit-identical" in str(one.message)]
    assert found[False] == []
    assert "arithmetic cpu float32 -> cpu bfloat16" in found[True][0]


@pytest.fixture
def small_state():
    """The state of a network without optimizers."""
    return RunState({"model": nn.Linear(3, 3)}, {})


def test_retention_never_removes_the_newest_good_one(tmp_path, small_state, monkeypatch, times):
    """Model-based: random saves, failing saves and stray deletions against a list of what must be there."""
    rng = random.Random(1)
    expected: list[int] = []
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in times(60):
        small_state.step = step
        if rng.random() < 0.3:
            with monkeypatch.context() as patch, pytest.raises(StorageError):
                patch.setattr(tensor_files, "save_file", _full_disk)
                checkpoints.save(small_state, TrainConfig(), 1)
        elif expected and rng.random() < 0.15:
            shutil.rmtree(checkpoints.paths()[expected.pop(rng.randrange(len(expected)))])
        else:
            checkpoints.save(small_state, TrainConfig(), 1)
            expected = [*expected, step][-2:]
        assert list(checkpoints.paths()) == expected
        if expected:
            verify(checkpoints.paths()[expected[-1]], kind="checkpoint")


def test_later_checkpoints_of_a_damaged_future_survive_a_save(tmp_path, small_state):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (3, 9, 4):
        small_state.step = step
        checkpoints.save(small_state, TrainConfig(), 1)
    assert list(checkpoints.paths()) == [4, 9]


def test_a_checkpoint_that_cannot_fit_is_refused_before_writing(tmp_path, small_state, monkeypatch):
    monkeypatch.setattr("cm3.train.checkpoints.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match=r"needs 48 bytes, 10 are free"):
        Checkpoints(tmp_path, keep=1).save(small_state, TrainConfig(), 1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_without_room_for_a_checkpoint_is_refused_before_its_first_step(
    optimizer, tmp_path, settings, train_quietly, tiny_task, monkeypatch
):
    """The need is to the byte what the tensors of a checkpoint take that is written after some steps."""
    config = settings(optimizer=optimizer, steps=3)
    train_quietly(tiny_task(), config, tmp_path / "whole")
    files = (tmp_path / "whole" / "checkpoints" / "step-00000003").glob("*.safetensors")
    need = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    monkeypatch.setattr("cm3.train.checkpoints.shutil.disk_usage", lambda path: SimpleNamespace(free=need - 1))
    task = tiny_task()
    with pytest.raises(StorageError, match=rf"needs {need:,} bytes, {need - 1:,} are free; free some, or write elsewhere"):
        train_quietly(task, config, tmp_path / "run")
    assert task.calls == []
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert train_quietly(tiny_task(), config, tmp_path / "whole").step == 3  # nothing is left to save


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_no_stump(tmp_path, settings, train_quietly, tiny_task, monkeypatch):
    def full_from_step_five(step):
        if step == 5:
            monkeypatch.setattr(tensor_files, "save_file", _full_disk)

    with pytest.raises(StorageError, match="no space left"):
        train_quietly(tiny_task(full_from_step_five), settings(), tmp_path)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    verify(tmp_path / "checkpoints" / "step-00000003")


def _full_disk(*arguments, **options):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
