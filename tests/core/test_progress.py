"""Progress goes to stderr only, and says how much time is left."""

from __future__ import annotations

import pytest

from cm3.core import progress as progress_module
from cm3.core.progress import progress


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CM3_PROGRESS", raising=False)
    monkeypatch.setattr(progress_module, "_LINE_INTERVAL_S", 0.0)
    with progress(4, "count", unit="page", initial=1) as bar:
        bar.advance(2, loss=0.5)
    output = capsys.readouterr()
    assert output.out == ""
    assert "count: 3/4 page" in output.err
    assert "s left, loss 0.5" in output.err


def test_what_an_earlier_run_did_says_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """90 of 100 are there already, and are passed over in 50 s; then one takes 10 s, so the other nine take 90."""
    monkeypatch.delenv("CM3_PROGRESS", raising=False)
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    with progress(100, "count", initial=40) as bar:
        for clock[0], known, fresh in ((20.0, 25, 0), (50.0, 25, 0), (60.0, 0, 1)):
            bar.skip(known)
            bar.advance(fresh)
    assert capsys.readouterr().err.splitlines() == [
        "count: 65/100 step",
        "count: 90/100 step",
        "count: 91/100 step, 90 s left",
    ]


def test_a_bar_counts_what_an_earlier_run_did(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CM3_PROGRESS", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(4, "count", initial=1) as bar:
        bar.skip(2)
        bar.advance()
    assert "4/4" in capsys.readouterr().err


def test_it_can_be_silenced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_PROGRESS", "off")
    monkeypatch.setattr(progress_module, "_LINE_INTERVAL_S", 0.0)
    with progress(2, "count") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
