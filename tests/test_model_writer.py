"""model/writer.py: in order, beside the caller, and no failure is lost or written over."""

from __future__ import annotations

import threading
import time

import pytest

from greyhound.model.checkpoint import Writer


def fail() -> None:
    time.sleep(0.05)
    raise OSError("the disk is full")


def test_calls_run_beside_the_caller_in_their_order() -> None:
    done: list[int] = []
    gate = threading.Event()

    def first() -> None:
        gate.wait(10)
        done.append(1)

    with Writer() as write:
        write(first)
        write(done.append, 2)
        assert not done, "the caller goes on while the first one waits"
        gate.set()
    assert done == [1, 2]


def test_waiting_raises_a_failure_and_nothing_is_written_after_it() -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="the disk is full"), Writer() as write:
        write(done.append, 1)
        write(fail)
        write(done.append, 2)
        with pytest.raises(OSError, match="the disk is full"):
            write.wait()
        write(done.append, 3)
    assert done == [1]


def test_leaving_waits_and_raises() -> None:
    with pytest.raises(OSError, match="the disk is full"), Writer() as write:
        write(fail)


def test_an_error_under_way_is_not_hidden_and_the_work_is_done() -> None:
    done: list[int] = []
    writer = Writer()
    with pytest.raises(ValueError, match="diverged"), writer as write:
        write(done.append, 1)
        write(fail)
        raise ValueError("diverged")
    assert done == [1]
    with pytest.raises(OSError, match="the disk is full"):
        writer.wait()
