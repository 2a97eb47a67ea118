"""Scan every file once, in child processes, through every decoder -> `ImageInfo`.

Before it: a folder of photographs. After it: an `ImageInfo` for each file, by which `pack` and the survey
decide. A child process (`cache.validate`) decodes, because a file that crashes a decoder must cost one child
and not the scan. It reads JSON lines on its standard input, each of a few files, and answers each by one.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from greyhound.cache.errors import UserError
from greyhound.cache.machine import available_cores
from greyhound.cache.place import Place, length, to_line

FORMATS: Final = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "JPEG", "JPEG2000", "PCX",
    "PNG", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Formats (Pillow's names; an MPO opens as a JPEG) in which a picture is taken: those that say how large it
is before a pixel is decoded, which an icon does not, and that need no other program, as EPS does."""
WHITE: Final = "#ffffff"
"""The colour on which transparent pixels are laid, unless another one is asked for."""
TIMEOUT: Final = 60.0
"""Seconds that one file may take before its child is ended and the file is called undecodable."""
AHEAD: Final = 512
"""Files scanned ahead of the reader: so long one slow file holds up no other."""
WITHOUT_DALI: Final = "--without-dali"
"""Tells a child that DALI need not decode the files; importing it takes more time than a small file."""
TOGETHER: Final = 16
"""Files a child is asked about at once. If it ends, it is asked about each alone."""
FEW: Final = 64
SMALL: Final = 16 << 20
"""Of fewer files, and fewer bytes together, one child is enough: to start a second takes longer."""

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What one look at a file found. `problem` is empty when the file can be trained on as it is.

    width, height: pixels, after EXIF rotation. From mean_luma to detail_across: see `stats.measure`; luma is
    0..255, luma_low and luma_high are the 5th and 95th percentile, blown is the share of white pixels. mode:
    Pillow's, as stored. thumbnail: RGB `[16, 16, 3]`, the upright picture without regard to its aspect ratio,
    b"" where nothing decodes. crc32, sha256: of the file's bytes. transcode: why it is packed as PNG, ""
    where it is packed as it is. transparent: some pixels are.
    """

    format: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    mean_luma: float = 0.0
    colourfulness: float = 0.0
    grayscale: bool = False
    tinted: bool = False
    luma_low: float = 0.0
    luma_high: float = 0.0
    blown: float = 0.0
    sharpness: float = 0.0
    detail_along: float = 0.0
    detail_across: float = 0.0
    mode: str = ""
    animated: bool = False
    transparent: bool = False
    thumbnail: bytes = b""
    bytes: int = 0
    crc32: int = 0
    sha256: str = ""
    transcode: str = ""
    problem: str = ""
    detail: str = ""


class ScanError(UserError):
    """The child processes do not start."""


def scan(
    paths: Iterable[Place], workers: int | None = None, background: str = WHITE, dali: bool = True
) -> Generator[ImageInfo, None, None]:
    """What was found in every file, in the order of `paths`; close it to end early. Raises ScanError.

    workers: child processes; without it one for a few files, else one a core. background: the colour on
    which transparent pixels are laid. dali: whether DALI must decode them too, where it is installed.
    """
    waiting = iter(paths)
    first = list(islice(waiting, FEW))
    quick = len(first) < FEW and sum(map(_bytes, first)) <= SMALL
    workers = workers or (1 if quick else available_cores())
    together = TOGETHER if len(first) == FEW else 1
    files = chain(first, waiting)
    parts = iter(lambda: [*islice(files, together)], [])
    with children(background, dali) as look:
        yield from chain.from_iterable(in_order(look, parts, workers, AHEAD // together))


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, most: int
) -> Generator[Result, None, None]:
    """What `work` makes of each item, in so many threads, `most` ahead of the reader and no more."""
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def counted(items: Iterable[Item], total: int, progress: Progress | None) -> Iterator[Item]:
    """The items as they come; progress: called after each with (items so far, `total`)."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress:
            progress(done, total)


def _bytes(path: Place) -> int:
    try:
        return length(path)
    except OSError:
        return 0


@contextmanager
def children(background: str, dali: bool) -> Iterator[Callable[[Sequence[Place]], list[ImageInfo]]]:
    """Yield a function that scans files in an idle child process, or in a new one; for any thread.

    It takes at most TOGETHER of them.
    """
    started: list[_Child] = []
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def look(paths: Sequence[Place]) -> list[ImageInfo]:
        try:
            child = idle.get_nowait()
        except queue.Empty:
            child = _Child(background, dali)
            started.append(child)
        try:
            return child.look(paths)
        finally:
            idle.put(child)

    try:
        yield look
    finally:
        for child in started:
            child.end()


class _Child:
    """Owns one decoder process and its pipes."""

    def __init__(self, background: str, dali: bool) -> None:
        self.arguments = [background, *([] if dali else [WITHOUT_DALI])]
        self.asked, self.ended = threading.Lock(), False
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  `end` closes it
        try:
            self._start()
        except BaseException:
            self.errors.close()
            raise

    def look(self, paths: Sequence[Place]) -> list[ImageInfo]:
        with self.asked:
            return self._look(paths)

    def end(self) -> None:
        """End the process; one that was asked, from another thread, is killed, and its files undecodable."""
        self.ended = True
        if self.asked.locked():
            self.process.kill()
        with self.asked:
            self._close()
            self.errors.close()

    def _look(self, paths: Sequence[Place]) -> list[ImageInfo]:
        if self.process.poll() is not None:  # ended since its last answer: no fault of these files
            self._close()
            self._start()
        if answer := self._ask(paths):
            return [ImageInfo(**row | {"thumbnail": bytes.fromhex(row["thumbnail"])}) for row in answer]
        code = self._close()
        if not self.ended:
            self._start()
            if len(paths) > 1:
                return [info for path in paths for info in self._look([path])]
        why = f"took more than {TIMEOUT:.0f} s or all the memory" if code == -9 else f"exit status {code}"
        return [ImageInfo(problem="undecodable", detail=f"the file ended its decoder ({why})")] * len(paths)

    def _ask(self, paths: Sequence[Place]) -> list[dict[str, Any]] | None:
        try:
            self.questions.write(to_line(paths))
            self.questions.flush()
        except BrokenPipeError:
            return None
        waiting = select.poll()
        waiting.register(self.answers, select.POLLIN)
        if not waiting.poll(1000 * TIMEOUT):
            self.process.kill()
        line = self.answers.readline()  # which a child writes in one go
        return json.loads(line) if line.endswith(b"\n") else None

    def _start(self) -> None:
        home = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "greyhound.cache.validate", *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
        )
        if self.ended:  # meanwhile
            self.process.kill()
        assert self.process.stdin and self.process.stdout
        self.questions, self.answers = self.process.stdin, self.process.stdout
        if self.answers.readline() != b"ready\n":
            self._close()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip() or "it said nothing"
            raise ScanError(f"the decoder process does not start: {said.splitlines()[-1]}")

    def _close(self) -> int:
        """Close the pipes, at which the process ends: its exit status."""
        for pipe in (self.questions, self.answers):
            with suppress(BrokenPipeError):
                pipe.close()
        return self.process.wait()
