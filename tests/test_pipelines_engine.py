"""pipelines/engine.py: what hangs, dies or is closed half way ends in one line; nobody waits for a copy."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from engines import both, engine_threads, needs_gpu
from filelock import FileLock
from runs import SMALL, Here

from greyhound.cache.store import Pack
from greyhound.model.run import LOCK
from greyhound.pipelines import engine as module
from greyhound.pipelines import threads
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import EngineName, HangError, Resources, StreamError, ToDevice, WithTimeout
from greyhound.pipelines.loader import Loader


def source(*items: Any) -> Generator[Any, None, None]:
    """Yields the items, but waits for an event and raises an exception."""
    for item in items:
        if isinstance(item, threading.Event):
            item.wait()
        elif isinstance(item, BaseException):
            raise item
        else:
            yield item


def at_row(monkeypatch: pytest.MonkeyPatch, row: int, act: Callable[[], object]) -> None:
    """Do this when a row of a pack is read."""
    reading = Pack.encoded

    def read(self: Pack, index: int) -> Any:
        if index == row:
            act()
        return reading(self, index)

    monkeypatch.setattr(Pack, "encoded", read)


def open_loader(pack: Pack, engine: EngineName = "threads", timeout: float = 600.0) -> Loader:
    resources = Resources(engine, "cpu", threads=2, timeout=timeout, image_cache="encoded")
    return Loader(pack, Augment(size=32), np.arange(20), resources, batch_size=5, epochs=1)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What hangs waits for this; what hung, and no longer does, has ended after the test."""
    monkeypatch.setattr(module, "_AT_THE_END", 0.01)
    event = threading.Event()
    yield event
    event.set()
    for thread in engine_threads():
        thread.join(10)
        assert not thread.is_alive()


def test_what_comes_in_time_is_yielded_in_its_order_to_the_end_and_closing_closes_the_source() -> None:
    items = source(1, 2, 3)
    stream = WithTimeout(items, 10.0)
    assert [stream.next() for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(StopIteration):
            stream.next()
    assert getgeneratorstate(items) == GEN_CLOSED
    items = source(1, 2)
    stream = WithTimeout(items, 10.0)
    stream.next()
    stream.close()
    assert getgeneratorstate(items) == GEN_CLOSED


def test_an_error_is_raised_where_the_batch_is_waited_for() -> None:
    items = source(1, OSError("the disk is gone"))
    stream = WithTimeout(items, 0.0)
    assert stream.next() == 1
    with pytest.raises(OSError, match="the disk is gone"):
        stream.next()
    assert getgeneratorstate(items) == GEN_CLOSED


def test_a_batch_that_does_not_come_is_given_up_where_there_is_a_limit(released: threading.Event) -> None:
    stream = WithTimeout(source(1, released, 2), 2.0)
    assert stream.next() == 1
    with pytest.raises(HangError, match=r"^no batch came for 2 s: a loader thread hangs, .* --timeout"):
        stream.next()
    threading.Timer(0.3, released.set).start()
    patient = WithTimeout(source(released, 2), 0.0)
    assert patient.next() == 2
    patient.close()


@both
def test_an_engine_that_hangs_is_given_up(
    coded_pack: Pack, monkeypatch: pytest.MonkeyPatch, released: threading.Event, engine: EngineName
) -> None:
    """As where the disk of a mapped pack does not answer: in the threads' decoding, in what DALI is fed by."""
    with open_loader(coded_pack, engine) as loader:
        list(loader)  # the first start of DALI takes longer than the patience below
    reached = threading.Event()

    def hang() -> None:
        reached.set()
        released.wait()

    at_row(monkeypatch, 13, hang)
    with (
        open_loader(coded_pack, engine, timeout=2.0) as loader,
        pytest.raises(HangError, match="no batch came for 2 s"),
    ):
        list(loader)
    assert reached.is_set()


@both
def test_what_a_thread_raises_ends_the_stream(
    coded_pack: Pack, monkeypatch: pytest.MonkeyPatch, engine: EngineName
) -> None:
    at_row(monkeypatch, 13, mock.Mock(side_effect=OSError(5, "Input/output error")))
    with open_loader(coded_pack, engine) as loader, pytest.raises(OSError, match="Input/output error"):
        list(loader)
    assert not engine_threads()


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (cv2.Error.StsNoMem, MemoryError, "Failed to allocate"),
        (cv2.Error.StsAssert, StreamError, "^OpenCV stopped: .*; --engine dali does the same$"),
    ],
)
def test_what_opencv_raises_in_a_thread_is_said(
    coded_pack: Pack, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], says: str
) -> None:
    error = cv2.error("OpenCV(5.0.0)\n alloc.cpp:73: error: Failed to allocate 9 bytes")
    error.code, error.err = code, "Failed to allocate 9 bytes"
    monkeypatch.setattr(threads, "warp", mock.Mock(side_effect=error))
    with open_loader(coded_pack) as loader, pytest.raises(kind, match=says):
        list(loader)


def test_a_training_whose_loader_hangs_ends_with_one_line(
    colour_pack: Pack, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    """And at once: Python would wait for the thread that hangs. It does in the first epoch."""
    leave = mock.Mock(side_effect=SystemExit(42))  # to be told from an orderly end
    monkeypatch.setattr(os, "_exit", leave)
    at_row(monkeypatch, int(colour_pack.ids("train")[8]), released.wait)
    arguments = ["paper", "--pack", str(colour_pack.path), "--out", "run", "--timeout", "3", *SMALL]
    answer = here("train.py", *arguments)
    assert answer.code == 42, answer.err
    leave.assert_called_once_with(2)
    assert answer.err.startswith("error: no batch came for 3 s")
    assert len(answer.err.splitlines()) == 1
    with FileLock(tmp_path / "run" / LOCK).acquire(timeout=0):
        assert (tmp_path / "run" / "augmented.png").exists(), "the folder is let go of"


def test_the_options_of_a_loader_are_known_without_torch() -> None:
    """`greyhound train --help` answers at once."""
    absent = ("torch", "pyarrow", "pydantic", "numpy", "greyhound.cache.store")
    code = f"import sys, greyhound.pipelines.engine; print(sorted(set(sys.modules).intersection({absent})))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_the_source_of_a_copy_is_held_until_the_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [mock.Mock(**{"query.return_value": False}) for _ in range(3)]
    sources = []
    monkeypatch.setattr(torch.cuda, "Event", iter(events).__next__)
    to_device = ToDevice(torch.device("meta"))  # any device that is not the host's
    for turn in range(3):
        tensor = torch.full((2,), float(turn))
        sources.append(weakref.ref(tensor))
        assert to_device(tensor).device.type == "meta"
        del tensor
        if turn == 1:
            events[0].query.return_value = True
    gc.collect()
    assert [event.record.called for event in events] == [True] * 3
    assert [source() is None for source in sources] == [True, False, False]
    there = torch.ones(2)
    assert ToDevice(torch.device("cpu"))(there) is there


@needs_gpu
def test_a_copy_to_a_gpu_does_not_wait_for_what_is_queued_before_it() -> None:
    to_device, source = ToDevice(torch.device("cuda")), torch.ones(1000).pin_memory()
    to_device(source)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # type: ignore[no-untyped-call]
    found, busy = to_device(source), not torch.cuda.current_stream().query()
    assert busy, "the copy is still queued behind the pause"
    assert found.sum().item() == 1000
