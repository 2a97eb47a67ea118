"""Watch: the same stream of batches, given up where the next one does not come.

Before it: an engine, which waits for disks, drivers and threads in C++; DALI is known to hang now and then
(NVIDIA/DALI#3897). After it: the loader. What hangs cannot be interrupted, only left behind, so the engine works in a
thread that can be.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final

import torch

from greyhound.pipelines.engine import BatchSpec, HangError

_SLICES: Final = 20
"""A wait is this many short ones, so that a process that was stopped through one of them is not taken to hang."""
_AT_THE_END: Final = 10.0
"""Seconds that closing waits for the batch under way."""

Batches = Generator[tuple[BatchSpec, torch.Tensor], None, None]


def watched(stream: Batches, seconds: float, cuda: torch.cuda.Stream | None = None) -> Batches:
    """What `stream` yields; closing this closes it. Raises HangError once an item takes `seconds` to come; 0: never.

    cuda: the consumer's stream, for which a GPU's batches are ready when they are yielded.
    """
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        if cuda is not None:
            torch.cuda.set_stream(cuda)  # which goes by thread, and the device with it
        while wanted.get():
            try:
                answers.put((next(stream, None), None))
            except BaseException as error:  # whatever it is, it is raised where the item is waited for
                answers.put((None, error))
        stream.close()

    worker = threading.Thread(target=work, name="greyhound-engine", daemon=True)
    worker.start()
    try:
        while True:
            wanted.put(True)
            item, error = _wait(answers, seconds)
            if error is not None:
                raise error
            if item is None:
                return
            yield item
            del item  # its memory is for the next but one
    finally:
        wanted.put(False)
        worker.join(_AT_THE_END)


def _wait(answers: queue.SimpleQueue[Any], seconds: float) -> Any:
    """The next answer. Raises HangError after so many seconds; 0: never."""
    if not seconds:
        return answers.get()
    for _ in range(_SLICES):
        with suppress(queue.Empty):
            return answers.get(timeout=seconds / _SLICES)
    raise HangError(
        f"no batch came for {seconds:g} s: a loader thread hangs, or the disk, or the driver; a training goes on with "
        "--resume; --timeout waits longer"
    )
