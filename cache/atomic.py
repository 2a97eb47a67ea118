"""A file, or the files of one pack, are replaced whole or not at all.

Before it: whoever has something to write. After it: packs, tables and pages under their names. What a process that was
killed left under a temporary name is swept by the next one that writes there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from cache.store import PackError

try:
    import fcntl
except ImportError:  # Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that takes its place when the block ends well, and is gone otherwise."""
    with replacing_all([out]) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(outs: Sequence[Path]) -> Iterator[list[Path]]:
    """A temporary file beside each of `outs`, for the block to write; when it ends well all are renamed, one by one.

    No file is renamed before all are on the disk. Raises PackError.
    """
    temporaries = [out.with_name(f".{out.name}.{os.getpid()}.tmp") for out in outs]
    renamed = 0
    with ExitStack() as held:
        try:
            for out, temporary in zip(outs, temporaries, strict=True):
                out.parent.mkdir(parents=True, exist_ok=True)
                sweep(out)
                held.enter_context(_held(temporary))
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            for out, temporary in zip(outs, temporaries, strict=True):
                temporary.replace(out)
                renamed += 1
        except OSError as error:
            changed = (
                f"{renamed} of its {len(outs)} files are new and the others are not: make it again"
                if renamed
                else "nothing was changed"
            )
            raise PackError(
                f"{outs[renamed]} cannot be written: {error.strerror or error}; {changed}"
            ) from None
        finally:
            for temporary in temporaries:
                with suppress(OSError):
                    temporary.unlink()


def sweep(out: Path) -> None:
    """Remove the temporary files for `out` that no living process holds, on this machine or another."""
    if fcntl is None:
        return
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+\.tmp")
    for file in [entry for entry in out.parent.iterdir() if ours.fullmatch(entry.name)]:
        with suppress(OSError), file.open("rb") as stream:
            _lock(stream)
            file.unlink()


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Make the file; `sweep` leaves it for as long as the block runs and the process lives. Raises OSError."""
    if fcntl is None:
        yield
        return
    with file.open("wb") as stream:
        with suppress(OSError):  # a file system without locks
            _lock(stream)
        yield


def _lock(stream: IO[bytes]) -> None:
    """Take the file until it is closed. Raises OSError where another process has it."""
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
