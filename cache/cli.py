"""What every command line shares: exit codes, signals, progress bar, JSON back into dataclasses.

Before it: nothing. After it: every script. Its import is cheap: rich and pydantic are loaded when needed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import signal
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn, Protocol, TypeVar

from greyhound.cache.errors import UserError
from greyhound.cache.files import remove_unfinished

Result = TypeVar("Result")
Value = TypeVar("Value")

ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask for an end: Ctrl-C, a shutdown or preemption, a terminal that closes."""
BAD_INPUT = 2
"""Exit code when what the user gave is not what was expected."""
LINE_SECONDS: Final = 10.0
NOTE_SECONDS: Final = 2
"""How often what stands behind a bar is made anew: it may have to wait for the device."""
LINE_SHARE: Final = 0.02
"""How often a pass without a terminal says how far it is: see `progress_bar`."""
_IMPORTS: Final = "<frozen importlib._bootstrap>"


class ValueFormatError(UserError):
    """The content is not of the type that was expected."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's `main` and leave with its exit code.

    A UserError, or a path that may not be used, is one line on standard error, exit code 2. Ctrl-C and the
    other `ENDINGS`: 128 and the signal's number. Any other error is a bug: one line that names the file with
    its traceback, exit code 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no valid text
    # Pillow warns from 89 megapixels on; cache/validate.py decides how large a picture may be.
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")
    gc.freeze()  # what was imported stays
    gc.enable()
    try:
        with _interruptible():
            code = main() or 0
        sys.exit(code)
    except KeyboardInterrupt as asked:
        sys.exit(128 + (asked.args[0] if asked.args else signal.SIGINT))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output, `head` for example, has seen enough
        sys.exit(141)
    except UserError as error:
        _complain(f"error: {error}")
        if error.hung:
            sys.stdout.flush()
            os._exit(BAD_INPUT)
        sys.exit(BAD_INPUT)
    except Exception as error:
        _refuse_forbidden(error)
        with tempfile.NamedTemporaryFile("w", prefix="greyhound-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        _complain(f"unexpected {type(error).__name__}: {error} -- please report it with {file.name}")
        sys.exit(1)


def end_quietly() -> None:
    """Begin the imports that `run` needs: until then Ctrl-C ends the program without a word, exit code 130.

    And no garbage is collected, neither in the imports, which leave none, nor at the end: both took a third
    of the time of importing timm (docs/log.md, 2026-11-29).
    """
    gc.disable()
    atexit.register(gc.freeze)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background jobs have it
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def read_or_exit(read: Callable[[], Result]) -> Result:
    """What `read` makes of the command line. A refusal is one line on standard error and exit code 2."""
    try:
        return read()
    except UserError as error:
        _complain(f"error: {error}")
        sys.exit(BAD_INPUT)
    except PermissionError as error:
        _refuse_forbidden(error)
        raise


def _refuse_forbidden(error: Exception) -> None:
    """End with one line where a path may not be used: asking whether it exists fails in a closed folder."""
    if isinstance(error, PermissionError) and error.filename:
        _complain(f"error: {error.filename}: {error.strerror}; expected one that you may use")
        sys.exit(BAD_INPUT)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Signals that ask for an end interrupt the block; after it they change nothing."""
    ours = [each for each in ENDINGS if signal.getsignal(each) is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does; from here on only Ctrl-C interrupts the clearing up."""
    while frame:
        if frame.f_code.co_filename == _IMPORTS:  # which prints, or makes an ImportError of an interrupt
            remove_unfinished()
            os._exit(128 + number)
        frame = frame.f_back
    for each in ENDINGS[1:]:
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGHUP:
        _leave_terminal()
    raise KeyboardInterrupt(number)


def _leave_terminal() -> None:
    """The terminal is gone, and writing to it is an error: discard what is printed from now on."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


Stop = Callable[[], int | None]
"""The signal that asked for an end, if any did."""


class Stopped(Exception):
    """A signal asked for an end."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """For as long as the block runs, the first of `ENDINGS` only asks for an end; the next one forces it."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        if number == signal.SIGHUP:
            _leave_terminal()

    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # then the terminal may close
    before = {number: signal.signal(number, receive) for number in (ENDINGS[:2] if nohup else ENDINGS)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, note: Callable[[], str] = str) -> None:
        """Show that `done` of `total` are done. note: makes what stands behind it, asked for now and then."""


@contextmanager
def progress_bar(title: str, shown: bool = True) -> Iterator[Update]:
    """A bar on standard error for as long as the block runs, if it is `shown`; yields what moves it.

    Where that is no terminal, lines: one at most every `LINE_SECONDS`, and for every `LINE_SHARE` of the way.
    """
    if not (shown and sys.stderr.isatty()):
        yield progress_lines(title) if shown else (lambda done, total, note="": None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title_column, note_column = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (title_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note_column)
    ours = sys.stdout.isatty()  # else rich would take what is printed from the file that it goes to
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=ours) as bar:
        task, text, due = bar.add_task(title, total=None, note=""), "", 0.0

        def update(done: int, total: int, note: Callable[[], str] = str) -> None:
            nonlocal text, due
            if time.monotonic() >= due:
                text, due = note(), time.monotonic() + NOTE_SECONDS
            bar.update(task, completed=done, total=total, note=text)

        yield update


def progress_lines(title: str, clock: Callable[[], float] = time.monotonic) -> Update:
    """What says on standard error how far it is, and how long the rest will take at the speed so far."""
    start, said = (clock(), 0), (clock(), 0)

    def update(done: int, total: int, note: Callable[[], str] = str) -> None:
        nonlocal start, said
        now = clock()
        if not start[1]:  # a pass that is resumed does not begin at 0
            start = said = now, done
        if now - said[0] < LINE_SECONDS or done - said[1] < LINE_SHARE * total or done >= total:
            return
        said = now, done
        left = round((now - start[0]) * (total - done) / (done - start[1]))
        far = f"{title}: {done:,} of {total:,}, {left // 60}:{left % 60:02} left"
        _complain(", ".join(filter(None, (far, note()))))

    return update


def plain(text: str) -> str:
    """Text from a file name, with nothing in it for a terminal to interpret."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def note(text: str) -> None:
    """Say one line beside the result, on standard error; nothing where there is nothing to say."""
    if text:
        _complain(f"note: {text}")


def _complain(message: str) -> None:
    print(plain(" ".join(message.split())), file=sys.stderr)  # noqa: T201


def from_json(kind: type[Value], content: Any, source: str, partly: bool = False) -> Value:
    """`content`, parsed JSON, as the dataclass `kind`. source: named in the message. Raises ValueFormatError.

    partly: unknown fields are ignored, and defaults stand in for missing ones.
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    try:
        value = adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        own = first["type"] == "value_error"  # of the dataclass, which says what it found
        what = (
            first["msg"].removeprefix("Value error, ") if own else f"{first['msg']}, not {first['input']!r}"
        )
        raise ValueFormatError(f"{source}: {place + ': ' if place else ''}{what[:200]}") from None
    if not partly and (other := next(_other_keys(content, adapter.dump_python(value, mode="json")), "")):
        raise ValueFormatError(f"{source}: {other}, as this version of Greyhound writes it")
    return value


def _other_keys(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Every field that one side has and the other has not, in words."""
    if isinstance(expected, dict) and isinstance(found, dict):
        yield from (f"no {place}{key}; expected one" for key in expected.keys() - found.keys())
        yield from (f"unknown {place}{key}; expected none" for key in found.keys() - expected.keys())
        for key in expected.keys() & found.keys():
            yield from _other_keys(found[key], expected[key], f"{place}{key}.")
    if isinstance(expected, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _other_keys(one, other, f"{place}{index}.")
