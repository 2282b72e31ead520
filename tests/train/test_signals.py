"""Stop signals: remembered, interrupting only where allowed, handlers restored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cm3.train.signals import stop_signals


def test_a_signal_is_remembered_and_the_work_goes_on():
    with stop_signals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_interruptible_work_ends_at_once_and_is_not_started_after_a_signal():
    reached = []

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the signal")

    with stop_signals() as stop:
        assert stop.interruptible(lambda: 3) == 3
        assert stop.interruptible(work) is None
        assert stop.interruptible(lambda: reached.append("later")) is None
    assert reached == []


def test_errors_of_the_work_pass_through():
    with stop_signals() as stop, pytest.raises(ZeroDivisionError):
        stop.interruptible(lambda: 1 / 0)


def test_handlers_are_restored_and_threads_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    seen = []

    def in_thread():
        with stop_signals() as stop:
            seen.append((signal.getsignal(signal.SIGTERM) is before, stop.received))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [(True, None)]
