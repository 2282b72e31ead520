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


def test_it_can_be_silenced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_PROGRESS", "off")
    monkeypatch.setattr(progress_module, "_LINE_INTERVAL_S", 0.0)
    with progress(2, "count") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
