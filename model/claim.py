"""A run folder is one training's alone, and holds one run.

Before it: train has a folder's name. After it: the folder is there, held, and free of what killed processes left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from greyhound.cache.files import intended, sweep
from greyhound.model.run import AVERAGED, BEST, SOLVED, TARGETS, Run, RunError
from greyhound.model.shapes import (
    DAMAGED,
    DIVERGED,
    DIVERGED_PICTURE,
    HEAD,
    INTERPOLATION,
    LOCK,
    METRICS,
    PACK,
    RECIPE,
    SWA,
    TIMES,
    VERSIONS,
)

_OURS: Final = re.compile(
    r"(last(\.\d+)?|best|swa|head|targets)\.ckpt"
    r"|(recipe|pack|versions|head|interpolation|swa|saliency|damaged|diverged|eval(-[\w-]+)?)\.json"
    r"|(metrics|times)\.jsonl|(lr|augmented|diverged|saliency|confusion(-[\w-]+)?)\.png"
    r"|report\.html|predictions\.csv"
)
"""The files of a run folder."""


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
        if (folder.folder / RECIPE).exists():
            sweep(folder.folder, is_ours)
        yield
    finally:
        lock.release()


def is_ours(name: str) -> bool:
    """Whether train, eval or explain write a file of that name into a run folder."""
    return _OURS.fullmatch(name) is not None


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
    if out.is_dir() and any(
        not (entry.name in known or is_ours(intended(entry) or "")) for entry in out.iterdir()
    ):
        raise RunError(f"{out} holds other files and no run; name a new or empty folder: --out")


def drop_results(folder: Run) -> None:
    """Remove what a start wrote that reached no checkpoint: it is no part of the run that starts now."""
    sweep(folder.folder, is_ours)
    results = (METRICS, TIMES, HEAD, SOLVED, TARGETS, INTERPOLATION, SWA, AVERAGED, BEST)
    for name in (*results, DAMAGED, DIVERGED, DIVERGED_PICTURE):
        (folder.folder / name).unlink(missing_ok=True)
