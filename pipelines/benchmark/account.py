"""Account: where the core time of an image goes, and how long a training waits for its images.

Before it: a resident pack. After it: `measure` puts both beside the rows.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greyhound.cache.machine import available_cores
from greyhound.cache.store import Pack
from greyhound.pipelines import threads
from greyhound.pipelines.benchmark.rows import open_loader, train_step
from greyhound.pipelines.decoded import Tier
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Clock, Loader


@dataclass(frozen=True)
class Account:
    """Where the core time of the threads engine goes: core-milliseconds an image, each part measured by itself.

    hand_over: drawing, ordering and lending batches in the engine's own thread, receiving them in the main thread, and
    the loop of the engine's threads around the three steps. total: of the process, by the kernel; the parts are within 5 % of it. waiting: share of the
    cores' time, 0..1, that the engine's threads did not use, because they had nothing to do or others used it.
    """

    decode: float
    warp: float
    colour: float
    hand_over: float
    total: float
    waiting: float

    @property
    def parts(self) -> float:
        """The sum of the parts."""
        return self.decode + self.warp + self.colour + self.hand_over


def take_account(path: Path, seconds: float) -> Account:
    """The account of the threads engine, encoded: every step is timed where it is called, in its thread's core time.

    The books are opened before the first batch is asked for and closed after the last one has come, so that no image
    is counted in half; how many epochs that is, a pass before tells.
    """
    pack = Pack(path)
    pack.make_resident()
    started = time.perf_counter()
    _pass(pack, 2)
    epochs = math.ceil(2 * seconds / (time.perf_counter() - started))
    steps = {
        "decode": (Tier, "pixels"),
        "pad": (threads.Scratch, "pad"),
        "warp": (threads, "warp"),
        "colour": (threads, "colour"),
        "fill": (threads, "fill_rows"),
        "draw": (Loader, "request"),
        "start": (threads, "_start"),
        "lend": (threads, "_finish"),
    }
    spent = dict.fromkeys(steps, 0.0)
    with _replaced({place: _timed(getattr(*place), name, spent) for name, place in steps.items()}):
        started, total, main = time.perf_counter(), time.process_time(), time.thread_time()
        _pass(pack, epochs)
        elapsed = time.perf_counter() - started
        total, main = time.process_time() - total, time.thread_time() - main
    warp = spent["pad"] + spent["warp"]
    around = main + spent["draw"] + spent["start"] + spent["lend"]
    rest = around + spent["fill"] - spent["decode"] - warp - spent["colour"]
    an_image = 1000 / (epochs * len(pack))
    return Account(
        decode=an_image * spent["decode"],
        warp=an_image * warp,
        colour=an_image * spent["colour"],
        hand_over=an_image * rest,
        total=an_image * total,
        waiting=max(0.0, 1 - spent["fill"] / (elapsed * available_cores())),
    )


def take_waiting(path: Path, seconds: float) -> float:
    """Share of a training's time, 0..1, that it waits for data: the row `train-step`, at least so long, once warm."""
    pack = Pack(path)
    pack.make_resident()
    clock = Clock()
    stream = train_step(with_loader=True, clock=clock)(pack, available_cores())
    next(stream)
    waited, started = clock.waiting, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(stream)
    share = (clock.waiting - waited) / (time.perf_counter() - started)
    stream.close()  # type: ignore[attr-defined]
    return share


def _pass(pack: Pack, epochs: int) -> None:
    with open_loader(pack, Resources("threads", "cpu", image_cache="encoded"), epochs=epochs) as loader:
        for _ in loader:
            pass


def _timed(step: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """The step, which adds its thread's core time to `spent[name]`."""
    lock = threading.Lock()

    def call(*arguments: Any) -> Any:
        started = time.thread_time()
        try:
            return step(*arguments)
        finally:
            elapsed = time.thread_time() - started
            with lock:
                spent[name] += elapsed

    return call


@contextmanager
def _replaced(steps: dict[tuple[Any, str], Callable[..., Any]]) -> Iterator[None]:
    """Functions of a module or class exchanged for as long as the block runs."""
    before = {place: getattr(*place) for place in steps}
    try:
        for (owner, name), step in steps.items():
            setattr(owner, name, step)
        yield
    finally:
        for (owner, name), step in before.items():
            setattr(owner, name, step)
