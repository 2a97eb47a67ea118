"""What every command line of the house shares: one line for bad input, one look for progress and tables.

Before it: nothing. After it: `python -m cache`, `python -m pipelines.benchmark`, train, eval and explain.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

BAD_INPUT = 2
"""Exit code when what the user gave is not what was expected."""


def run(main: Callable[[], int | None], *expected: type[Exception]) -> NoReturn:
    """Run a program's `main` and leave with its exit code.

    Errors of the `expected` types are the user's to mend: one line on standard error, exit code 2. Ctrl-C: 130. Any
    other error is ours: one line that says where its traceback was written, exit code 1.
    """
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output, `head` for example, has seen enough
        sys.exit(141)
    except expected as error:
        _complain(f"error: {error}")
        sys.exit(BAD_INPUT)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="greyhound-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        _complain(f"unexpected {type(error).__name__}: {error} -- please report it with {file.name}")
        sys.exit(1)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for as long as the block runs; yields `update(done, total)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _complain(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)  # noqa: T201
