"""model/beside.py: in order, beside the caller, and no error is lost."""

from __future__ import annotations

import threading
import time

import pytest

from model.beside import Beside


def test_calls_run_beside_the_caller_in_their_order() -> None:
    done: list[int] = []
    gate = threading.Event()

    def first() -> None:
        gate.wait(10)
        done.append(1)

    with Beside() as beside:
        beside(first)
        beside(done.append, 2)
        assert not done, "the caller goes on while the first one waits"
        gate.set()
    assert done == [1, 2]


def test_the_next_call_raises_what_an_earlier_one_raised() -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    beside = Beside()
    with pytest.raises(OSError, match="the disk is full"), beside:
        beside(fail)
        for _ in range(100):
            time.sleep(0.01)
            beside(time.sleep, 0)


def test_leaving_waits_and_raises() -> None:
    def fail() -> None:
        time.sleep(0.05)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Beside() as beside:
        beside(fail)


def test_an_error_under_way_is_not_hidden_and_the_work_is_done() -> None:
    done: list[int] = []

    def work() -> None:
        time.sleep(0.05)
        done.append(1)
        raise OSError("the disk is full")

    with pytest.raises(ValueError, match="diverged"), Beside() as beside:
        beside(work)
        raise ValueError("diverged")
    assert done == [1]
