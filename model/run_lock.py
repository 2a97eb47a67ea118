"""Who may write into a run folder: its lock, which files are ours, and what stands in the way of a new run.

Before it: a folder that `--out` names. After it: train, sweep and folds write into it, and nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from greyhound.cache.files import intended, sweep
from greyhound.model.run import (
    AVERAGED,
    BEST,
    CORRUPT,
    DIVERGED,
    DIVERGED_PICTURE,
    FIND_LR,
    FIND_LR_PICTURE,
    FOLDS,
    LOCK,
    METRICS,
    PACK,
    PROBE,
    RECIPE,
    STEPS,
    SWA,
    SWEEP,
    TIMES,
    VERSIONS,
    Run,
    RunError,
)

_OURS: Final = re.compile(
    r"(last(\.\d+)?|best|swa)\.ckpt"
    r"|(recipe|pack|versions|find-lr|probe|swa|saliency|calibration|corrupt|diverged|mistakes|tracking)\.json"
    r"|(metrics|times|steps)\.jsonl|(lr|find-lr|augmented|diverged|saliency|confusion(-[\w-]+)?)\.png"
    r"|eval(-[\w-]+)?\.json|predictions(-[\w-]+)?\.csv|report\.html|neighbours\.npz"
    r"|events\.out\.tfevents\..+|(sweep|folds)\.(json|html)"
)
"""The files of a run folder, and of a folder of runs: a sweep's, or that of folds."""


@contextmanager
def run_lock(folder: Run, clean: bool = True) -> Iterator[None]:
    """Make the run folder, and hold it for as long as the block runs: two trainings in one would spoil both.

    The system lets go of the lock when the process ends, however it ends, so that none is ever stale. clean:
    remove what a killed process had half written; eval and explain write there without the lock. Raises
    RunError.
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
        if clean and any((folder.folder / name).exists() for name in (RECIPE, SWEEP, FOLDS)):
            sweep(folder.folder, is_ours)
        yield
    finally:
        lock.release()


def is_ours(name: str) -> bool:
    """Whether train, eval or explain write a file of that name into a run folder."""
    return _OURS.fullmatch(name) is not None


def refuse_locked_run(folder: Run) -> None:
    """Refuse a folder that another training is using right now. Raises RunError."""
    if (folder.folder / LOCK).exists():
        with run_lock(folder):
            return


def refuse_other_content(out: Path) -> None:
    """Refuse a folder that holds other files; what an ended start left is none. Raises RunError."""
    known = {LOCK, PACK, VERSIONS, FIND_LR, FIND_LR_PICTURE}
    if out.is_dir() and any(
        not (entry.name in known or is_ours(intended(entry) or "")) for entry in out.iterdir()
    ):
        if Run(out).inside():
            raise RunError(f"{out} is a folder of runs; name a new folder in it: --out {out / 'NAME'}")
        raise RunError(f"{out} holds other files and no run; name a new or empty folder: --out")


def clear_results(folder: Run) -> None:
    """Remove what a start wrote that reached no checkpoint: it is no part of the run that starts now."""
    sweep(folder.folder, is_ours)
    results = (METRICS, TIMES, STEPS, PROBE, SWA, AVERAGED, BEST)
    for name in (*results, CORRUPT, DIVERGED, DIVERGED_PICTURE):
        (folder.folder / name).unlink(missing_ok=True)
