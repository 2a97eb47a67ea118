"""Look at every file once: does it decode, how large is it, how colourful, what are its hashes?

Before it: a folder of photographs. After it: `pack` leaves out what cannot be used and says why.

The looking itself happens in child processes (`python -m pipelines.examine`), because the decoders that training uses
live in another room, and because a file that crashes a decoder must cost one child and not the survey. A child reads
one JSON line per file on its standard input and answers one JSON line.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.machine import available_cores

GREY_SPREAD: Final = 4.0
"""Levels: an image is grayscale when 99 % of its pixels have no larger difference between their channels.
On 3,829 real photographs the 18 grayscale ones measured at most 2, the palest coloured one 8 (docs/log.md)."""
TIMEOUT: Final = 60.0
"""Seconds that one file may take before its child is ended and the file is called undecodable."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a file found. `problem` is empty when the file can be trained on as it is.

    width, height: pixels, after EXIF rotation. mean_luma: 0..255. colourfulness: Hasler & Suesstrunk 2003.
    crc32, sha256: of the file's bytes. transcode: why training cannot decode it as it is though Pillow can, else "".
    """

    format: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    mean_luma: float = 0.0
    colourfulness: float = 0.0
    grayscale: bool = False
    bytes: int = 0
    crc32: int = 0
    sha256: str = ""
    transcode: str = ""
    problem: str = ""
    detail: str = ""


class SurveyError(RuntimeError):
    """The survey itself cannot run: the child process does not start."""


def measure(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Statistics of one decoded image `[H, W, 3]`: the fields of `Look` that come from pixels.

    Large images are sampled on a grid of at least 256 pixels a side; the means move by well under one level.
    """
    step = max(1, min(pixels.shape[:2]) // 256)
    sample = pixels[::step, ::step].astype(np.float32)
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    spread = sample.max(axis=2) - sample.min(axis=2)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    return {
        "mean_luma": float((0.299 * red + 0.587 * green + 0.114 * blue).mean()),
        "colourfulness": float(
            np.hypot(*opponents.std(axis=(1, 2))) + 0.3 * np.hypot(*opponents.mean(axis=(1, 2)))
        ),
        "grayscale": bool(np.percentile(spread, 99) <= GREY_SPREAD),
    }


def survey(paths: Sequence[Path], workers: int | None = None, progress: Progress | None = None) -> list[Look]:
    """Look at every file, `workers` at a time (default: one a core), in the order of `paths`.

    progress: called with (files done, files in all). Raises SurveyError when the child processes do not start.
    """
    workers = min(workers or available_cores(), max(len(paths), 1))
    looks: list[Look | None] = [None] * len(paths)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(paths)):
        waiting.put(index)
    stopping = threading.Event()

    def work() -> None:
        with _child() as ask:
            for index in _drain(waiting, stopping):
                looks[index] = ask(paths[index])

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            _wait(futures, waiting, len(paths), progress)
        finally:
            stopping.set()
    return [look for look in looks if look is not None]


def _drain(waiting: queue.SimpleQueue[int], stopping: threading.Event) -> Iterator[int]:
    while not stopping.is_set():
        try:
            yield waiting.get_nowait()
        except queue.Empty:
            return


def _wait(
    futures: Sequence[Future[None]], waiting: queue.SimpleQueue[int], count: int, progress: Progress | None
) -> None:
    """Wait for all the workers, and raise the first error of any."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        if progress:
            progress(count - waiting.qsize(), count)


@contextmanager
def _child() -> Iterator[Callable[[Path], Look]]:
    """A decoder process, restarted whenever a file ends it; ended on leaving."""
    child = _Child()
    try:
        yield child.look
    finally:
        child.end()


class _Child:
    """Owns one decoder process and its pipes."""

    def __init__(self) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  `end` closes it
        try:
            self.process = self._start()
        except BaseException:
            self.errors.close()
            raise

    def look(self, path: Path) -> Look:
        answer = self._ask(path)
        if answer is not None:
            known = {field.name for field in fields(Look)}
            return Look(**{name: value for name, value in answer.items() if name in known})
        code = self.process.wait()
        self._close()
        self.process = self._start()
        why = f"took more than {TIMEOUT:.0f} s or all the memory" if code == -9 else f"exit status {code}"
        return Look(problem="undecodable", detail=f"the file ended its decoder ({why})")

    def end(self) -> None:
        self._close()
        self.process.wait()
        self.errors.close()

    def _ask(self, path: Path) -> dict[str, Any] | None:
        assert self.process.stdin and self.process.stdout
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(os.fsencode(path).hex()).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def _start(self) -> subprocess.Popen[bytes]:
        home = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.examine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdout
        if process.stdout.readline() != b"ready\n":
            with process:
                pass  # leaving closes its pipes and waits for its end
            self.errors.seek(0)
            last = (self.errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[
                -1
            ]
            raise SurveyError(f"the decoder process does not start: {last}")
        return process

    def _close(self) -> None:
        assert self.process.stdin and self.process.stdout
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
