"""pipelines/watch.py: what hangs, dies or is closed half way, and that the program ends with a line all the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from filelock import FileLock
from runs import Here

from greyhound.cache.store import Pack
from greyhound.cache.validate import available
from greyhound.model.shapes import LOCK
from greyhound.pipelines import threads, watch
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import EngineName, Loader, Resources
from greyhound.pipelines.request import HangError, StreamError
from greyhound.pipelines.watch import watched

ITEMS: list[Any] = [1, 2, 3]
ENGINES = ["threads", *(["dali"] if available() else [])]


class Source:
    """A generator that says what became of it."""

    def __init__(self, *items: Any) -> None:
        """items: to yield; an event is waited for, an exception raised."""
        self.items, self.closed = items, False

    def __call__(self) -> Any:
        return self._generate()

    def _generate(self) -> Iterator[Any]:
        try:
            for item in self.items:
                if isinstance(item, threading.Event):
                    item.wait()
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            self.closed = True


def end_threads() -> None:
    """Wait until what hung, and no longer does, has ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("greyhound"):
            thread.join(10)
            assert not thread.is_alive()


def test_what_comes_in_time_is_yielded_in_its_order_to_the_end() -> None:
    source = Source(*ITEMS)
    assert [*watched(source(), 10.0)] == ITEMS
    assert source.closed


def test_an_error_is_raised_where_the_batch_is_waited_for() -> None:
    source = Source(1, OSError("the disk is gone"))
    stream: Any = watched(source(), 0.0)
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert source.closed


def test_closing_closes_what_is_watched() -> None:
    source = Source(1, 2)
    stream: Any = watched(source(), 10.0)
    next(stream)
    stream.close()
    assert source.closed


def test_a_batch_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AT_THE_END", 0.01)
    released = threading.Event()
    stream: Any = watched(Source(1, released, 2)(), 0.2)
    assert next(stream) == 1
    with pytest.raises(HangError, match=r"^no batch came for 0\.2 s: a loader thread hangs, .* --patience"):
        next(stream)
    released.set()
    end_threads()


def test_without_a_limit_it_waits() -> None:
    released = threading.Event()
    stream: Any = watched(Source(released, 2)(), 0.0)
    threading.Timer(0.3, released.set).start()
    assert next(stream) == 2
    stream.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_hangs_is_given_up(
    coded_pack: Pack, monkeypatch: pytest.MonkeyPatch, engine: EngineName
) -> None:
    """As where the disk of a mapped pack does not answer: in the threads' decoding, in what DALI is fed by."""
    monkeypatch.setattr(watch, "_AT_THE_END", 0.01)
    released, reading = threading.Event(), Pack.encoded

    def read(self: Pack, index: int) -> Any:
        if index == 13:
            released.wait()
        return reading(self, index)

    monkeypatch.setattr(Pack, "encoded", read)
    resources = Resources(engine, "cpu", threads=2, patience=2.0, tier="encoded")
    with Loader(coded_pack, Augment(size=32), np.arange(20), resources, batch_size=5, epochs=1) as loader:
        try:
            with pytest.raises(HangError, match="no batch came for 2 s"):
                for _ in loader:
                    pass
        finally:
            released.set()
            end_threads()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_thread_raises_ends_the_stream(
    coded_pack: Pack, monkeypatch: pytest.MonkeyPatch, engine: EngineName
) -> None:
    reading = Pack.encoded

    def read(self: Pack, index: int) -> Any:
        if index == 13:
            raise OSError(5, "Input/output error")
        return reading(self, index)

    monkeypatch.setattr(Pack, "encoded", read)
    resources = Resources(engine, "cpu", threads=2, tier="encoded")
    with (
        Loader(coded_pack, Augment(size=32), np.arange(20), resources, batch_size=5, epochs=1) as loader,
        pytest.raises(OSError, match="Input/output error"),
    ):
        list(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("greyhound")]


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
    def fail(*_: object) -> None:
        error = cv2.error("OpenCV(5.0.0)\n alloc.cpp:73: error: Failed to allocate 9 bytes")
        error.code, error.err = code, "Failed to allocate 9 bytes"
        raise error

    monkeypatch.setattr(threads, "warp", fail)
    resources = Resources("threads", "cpu", threads=2)
    with (
        Loader(coded_pack, Augment(size=32), np.arange(20), resources, batch_size=5, epochs=1) as loader,
        pytest.raises(kind, match=says),
    ):
        list(loader)


@pytest.mark.parametrize("patience", [-1.0, float("nan"), float("inf")])
def test_a_patience_that_is_none_is_refused(patience: float) -> None:
    with pytest.raises(ValueError, match=r"patience is .*; expected 0 or more"):
        Resources(patience=patience)


def test_a_training_whose_loader_hangs_ends_with_one_line(
    colour_pack: Pack, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at once: Python would wait for the thread that hangs."""

    def leave(code: int) -> None:
        raise SystemExit(code + 40)  # to be told from an orderly end

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(watch, "_AT_THE_END", 0.01)
    released, reading, row = threading.Event(), Pack.encoded, int(colour_pack.ids("train")[7])

    def read(self: Pack, index: int) -> Any:
        if index == row:
            released.wait()
        return reading(self, index)

    monkeypatch.setattr(Pack, "encoded", read)
    arguments = [
        "paper",
        "--pack",
        str(colour_pack.path),
        "--out",
        "run",
        "--device",
        "cpu",
        "--patience",
        "2",
    ]
    arguments += ["--network", "test_efficientnet", "--weights", "none", "--augment.size", "32"]
    try:
        answer = here("train.py", *arguments)
    finally:
        released.set()
        end_threads()
    assert answer.code == 42, answer.err
    assert answer.err.startswith("error: no batch came for 2 s")
    assert len(answer.err.splitlines()) == 1
    with FileLock(tmp_path / "run" / LOCK).acquire(timeout=0):
        assert (tmp_path / "run" / "recipe.json").exists(), "the folder is let go of"
