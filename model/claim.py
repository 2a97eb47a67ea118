"""A run folder is one training's alone, and holds one run.

Before it: train has a folder's name. After it: the folder is there, held, and free of what killed processes left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from model.atomic import is_leftover, sweep
from model.run import AVERAGED, BEST, SOLVED, Run, RunError
from model.shapes import HEAD, INTERPOLATION, LOCK, METRICS, PACK, RECIPE, SWA, TIMES, VERSIONS


@contextmanager
def alone(folder: Run) -> Iterator[None]:
    """Make the run folder, and hold it for as long as the block runs: two trainings in one would spoil both.

    The system lets go of the lock when the process ends, however it ends, so that none is ever stale. Raises RunError.
    """
    lock = FileLock(folder.folder / LOCK)
    try:
        folder.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder.folder} is in use by another training; wait for its end, or name another folder: --out"
        ) from None
    except OSError as error:
        raise RunError(
            f"{folder.folder} cannot be made or written ({error.strerror}); name another folder: --out"
        ) from None
    try:
        sweep(folder.folder)
        yield
    finally:
        lock.release()


def refuse_live_run(folder: Run) -> None:
    """Refuse a folder that another training is using right now. Raises RunError."""
    if (folder.folder / LOCK).exists():
        with alone(folder):
            return


def refuse_other_content(out: Path) -> None:
    """Refuse a folder that holds a run, or anything but what a start leaves that was ended at once. Raises RunError."""
    if (out / RECIPE).exists():
        raise RunError(f"{out} holds a run already; name another folder, or go on with it: --resume")
    known = {LOCK, PACK, VERSIONS}
    if out.is_dir() and any(not (entry.name in known or is_leftover(entry)) for entry in out.iterdir()):
        raise RunError(f"{out} holds other files and no run; name a new or empty folder: --out")


def drop_results(folder: Run) -> None:
    """Remove what a start wrote that reached no checkpoint: it is no part of the run that starts now."""
    for name in (METRICS, TIMES, HEAD, SOLVED, INTERPOLATION, SWA, AVERAGED, BEST):
        (folder.folder / name).unlink(missing_ok=True)
