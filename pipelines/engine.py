"""What an engine is: its batches, what it runs on, its errors, its timeout, and the copy to the device.

Before it: draws and order. After it: `dali` and `threads`, which turn every BatchSpec into one tensor, and
`loader`. It is imported for `--help`, so torch and the pack are imported where they are used.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from greyhound.cache.errors import UserError
from greyhound.cache.machine import available_cores, available_memory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from greyhound.cache.store import Pack
    from greyhound.pipelines.decoded import ImageCache

Device = Literal["gpu", "cpu"]
DeviceName = Literal["auto", "gpu", "cpu"]
EngineChosen = Literal["dali", "threads"]
EngineName = Literal["auto", "dali", "threads"]
ImageCacheName = Literal["auto", "encoded", "decoded"]
Originals = Literal["mmap", "ram"]
CorruptPolicy = Literal["error", "skip"]

_SLICES: Final = 20
"""A wait is this many short ones: a process that was suspended in one of them does not count as hanging."""
_AT_THE_END: Final = 10.0
"""Seconds that closing waits for the batch under way."""


class ResourcesError(UserError, ValueError):
    """What was asked for is not there, or does not fit."""


class DeviceError(ResourcesError):
    """The engine or device that was asked for does not exist on this machine."""


class StreamError(UserError, RuntimeError):
    """The engine stopped."""


class HangError(StreamError):
    """The engine does not go on."""

    hung = True


class BadImageError(StreamError):
    """An image of the pack did not decode, though it did when it was packed."""


@dataclass(frozen=True)
class Resources:
    """What a stream runs on; no pixel depends on it beyond the engines' tolerance."""

    engine: EngineName = "auto"
    """auto: DALI on a GPU, threads without one."""
    device: DeviceName = "auto"
    """gpu, cpu, or whichever is there."""
    threads: int | None = None
    """Loader threads; default one a core."""
    prefetch: int = 2
    """Batches prepared ahead."""
    originals: Originals = "mmap"
    """Where originals lie. mmap: in the page cache, which processes share; ram: copied by each process."""
    image_cache: ImageCacheName = "auto"
    """What engine threads keeps. decoded: the pixels of each original, decoded once; encoded: none; auto: as
    the memory allows."""
    on_corrupt: CorruptPolicy = "error"
    """Corrupt images of the pack. error: stop. skip: find them all at the start, train on others of their
    classes in their place, evaluate without them, and say so."""
    cache_bytes: str = ""
    """Memory of each process for decoded originals, such as 4GB; default: half of what is free, divided among
    the processes."""
    timeout: float = 600.0
    """Seconds without a batch after which the loader counts as hanging and the program ends; 0: no limit."""

    def __post_init__(self) -> None:
        """Refuse what no loader could do."""
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
        if self.prefetch < 1:
            raise ValueError(f"prefetch is {self.prefetch}; expected at least 1")
        if not 0 <= self.timeout < math.inf:
            raise ValueError(f"timeout is {self.timeout}; expected 0 or more")
        if self.cache_bytes:
            parse_bytes(self.cache_bytes)

    def shared(self, processes: int) -> Resources:
        """What one of so many processes on this machine runs on: they divide cores and free memory."""
        if processes == 1:
            return self
        threads = self.threads or max(1, available_cores() // processes)
        nbytes = self.cache_bytes or f"{default_cache_bytes() // processes}B"
        return replace(self, threads=threads, cache_bytes=nbytes)


@dataclass(frozen=True)
class BatchSpec:
    """One batch: which images, under which matrices; K views of each.

    ids: int64 `[B]`, rows of the pack. geometry: float32 `[B, K, 3, 3]`, output pixel -> decoded pixel,
    after the reduction. colour: float32 `[B, K, 3, 4]`. log2_reduction: int32 `[B, 2]`, as
    `augment.log2_reduction` gives it, of the stored sizes. epoch, stop: where the stream stands once this
    batch is done, as an epoch and a number of images of it. mixing: float32 `[B, K, 2, S]`, as
    `mixing.draw_mixing` gives it, where images are mixed; not the engine's to do.
    """

    ids: NDArray[np.int64]
    geometry: NDArray[np.float32]
    colour: NDArray[np.float32]
    log2_reduction: NDArray[np.int32]
    epoch: int
    stop: int
    mixing: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class EngineConfig:
    """What stays the same from batch to batch. size, fill: pixels and level, as in `Augment`."""

    size: int
    fill: int
    views: int
    batch_size: int
    threads: int
    prefetch: int
    device: Device
    image_cache: ImageCache


Stream = Generator[tuple[BatchSpec, "torch.Tensor"], None, None]
"""Specifications and their images: float32 `[B, K, S, S, 3]`, in the order asked for."""

Engine = Callable[["Pack", Iterator[BatchSpec], EngineConfig], Stream]
"""A generator function `(pack, specs, config)`; closing the generator frees what it holds."""


class WithTimeout:
    """A stream that is given up where its next item does not come; DALI may hang (NVIDIA/DALI#3897).

    What hangs in C++ cannot be interrupted, only left behind, so the engine works in a thread that can be.
    """

    def __init__(self, stream: Any, seconds: float, cuda: torch.cuda.Stream | None = None) -> None:
        """stream: a generator, which this owns. seconds: the longest wait for an item; 0: no limit.

        cuda: the consumer's stream, for which a GPU's batches are ready when `next` returns them.
        """
        self._seconds, self._closed = seconds, False
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream, arguments = stream, (stream, self._wanted, self._answers, cuda)
        self._worker = threading.Thread(target=_work, args=arguments, name="greyhound-engine", daemon=True)

    def next(self) -> Any:
        """The next item. Raises StopIteration at the end, HangError, what the stream raises; all close it."""
        if self._closed:
            raise StopIteration
        if not self._worker.ident:
            self._worker.start()
        try:
            self._wanted.put(True)
            item, error = self._wait()
            if error is not None:
                raise error
            if item is None:
                raise StopIteration
        except BaseException:
            self.close()
            raise
        return item

    def close(self) -> None:
        """Close the stream, and wait a little for its end; a second time nothing happens."""
        if self._closed:
            return
        self._closed = True
        if self._worker.ident:
            self._wanted.put(False)
            self._worker.join(_AT_THE_END)
        else:
            self._stream.close()

    def _wait(self) -> Any:
        if not self._seconds:
            return self._answers.get()
        for _ in range(_SLICES):
            with suppress(queue.Empty):
                return self._answers.get(timeout=self._seconds / _SLICES)
        hangs = f"no batch came for {self._seconds:g} s: a loader thread hangs, or the disk, or the driver"
        raise HangError(f"{hangs}; a training goes on with --resume; --timeout waits longer")


def _work(stream: Any, wanted: queue.SimpleQueue[bool], answers: queue.SimpleQueue[Any], cuda: Any) -> None:
    """The thread of a WithTimeout: for every True an item, or what was raised; at False, the end."""
    if cuda is not None:
        import torch

        torch.cuda.set_stream(cuda)  # which goes by thread, and the device with it
    while wanted.get():
        try:
            answers.put((next(stream, None), None))
        except BaseException as error:  # whatever it is, it is raised where the item is waited for
            answers.put((None, error))
    stream.close()


class ToDevice:
    """Copies from page-locked memory to a GPU, which nobody waits for.

    A copy is made when its turn comes on the current stream. Its source is held, unchanged, until then.
    """

    def __init__(self, device: torch.device) -> None:
        """device: where all go."""
        self._device = device
        self._copying: deque[tuple[Any, torch.Tensor]] = deque()

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; itself where it is there."""
        import torch

        if tensor.device.type == self._device.type:
            return tensor
        found = tensor.to(self._device, non_blocking=True)
        copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._copying.append((copied, tensor))
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return found


def default_cache_bytes() -> int:
    """Bytes for decoded originals where none are given: half of what is free."""
    return available_memory() // 2


def parse_bytes(text: str) -> int:
    """A size such as 4GB or 512MiB in bytes. Raises ValueError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ValueError(f"cache_bytes is {text!r}; expected a size such as 4GB or 512MB") from None
