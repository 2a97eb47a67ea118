"""Soak: trainings that are killed and resumed at random for as long as asked, and one that nobody disturbs.

    python tests/soak.py --minutes 30        (make soak)

Before it: nothing, it draws its images. After it: one JSON line, for docs/reliability.md, and exit code 0 only
if every run ended in what the undisturbed one came to, bit for bit, and the process that trained all the time
took no more memory late than early. `make test` does not run it.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from kills import bits
from pictures import packed
from processes import forked
from runs import FULL, ONE_THREAD, tinted, tiny_job

from greyhound import eval as evaluation
from greyhound import train
from greyhound.cache.cli import Stopped, read_or_exit, stop_signals
from greyhound.cache.machine import describe_machine
from greyhound.cache.options import read_options
from greyhound.cache.pack import Options
from greyhound.model.run import METRICS, Run
from greyhound.model.schedule import Phase
from greyhound.recipe import Checkpoints

GROWTH: Final = 1.03
"""How much more memory the undisturbed process may take in the last third of the time than in the first."""
EVERY: Final = 1.0
"""Seconds from one look at that memory to the next."""
IMAGES: Final = 900
STEADY: Final = "steady"
"""The run that trains all the time."""
FOREVER: Final = 1_000_000
"""Its epochs."""
RECIPE: Final = replace(FULL, name="soak", batch_size=16)


@dataclass(frozen=True)
class Soak:
    """How long, and how often."""

    minutes: float = 30.0
    """Of killing and resuming; the run to compare with comes before, and the last run is brought to its end."""
    epochs: int = 10
    """Of each run."""
    lifetime: tuple[float, float] = (2.0, 25.0)
    """Seconds after its imports at which a process is killed, at random between the two."""
    seed: int = 0
    """Of those moments."""


@dataclass(frozen=True)
class Memory:
    """Of one process that nobody disturbed, in MiB. early, late: the medians of the first and of the last third."""

    samples: int
    minutes: float
    epochs: int
    early: float
    late: float
    most: float
    growth: float
    """late / early."""


def main() -> int:
    """Run undisturbed, run disturbed, compare."""
    soak = read_or_exit(lambda: read_options(Soak, sys.argv[1:], "python tests/soak.py"))
    with tempfile.TemporaryDirectory(prefix="greyhound-soak-") as temporary:
        images = {f"class {k}": [tinted(k, 1000 * k + n) for n in range(IMAGES // 3)] for k in range(3)}
        packed(Path(temporary), images, Options(val=0.05, test=0.2))
        result = disturb(soak, Path(temporary))
    print(json.dumps(result))
    return 0 if not result["differing"] and result["memory"]["growth"] <= GROWTH else 1


def disturb(soak: Soak, folder: Path) -> dict[str, Any]:
    """The whole measurement: one run undisturbed, then one disturbed run after the other until the time is over.

    folder: where images.arrow is, and the runs go. `differing` is what was not the same, run by run.
    """
    live(folder / "whole", soak.epochs)
    generator, killed, differing, runs = random.Random(soak.seed), 0, list[str](), 0
    with beside(folder / STEADY) as samples:
        started = time.monotonic()
        while not runs or time.monotonic() - started < 60 * soak.minutes:
            out = folder / f"run {runs}"
            while not live(out, soak.epochs, generator.uniform(*soak.lifetime)):
                killed += 1
            differing += [f"{out.name}: {what}" for what in different(folder / "whole", out)]
            runs += 1
        minutes = round((time.monotonic() - started) / 60, 1)
    memory = summarise(samples, len(Run(folder / STEADY).rows(METRICS)))
    measured = {"minutes": minutes, "runs": runs, "epochs": soak.epochs, "killed": killed}
    where = {"date": str(datetime.now(UTC).date()), "machine": describe_machine(), "commit": commit()}
    return where | measured | {"differing": differing, "memory": asdict(memory)}


def commit() -> str:
    """Of this source, short; empty where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def summarise(samples: Sequence[float], epochs: int) -> Memory:
    """What samples `EVERY` so many seconds say of a process: MiB, from its first epoch's end on. Raises SystemExit."""
    third = len(samples) // 3
    if not third:
        raise SystemExit(f"{len(samples)} looks at the memory are too few; soak for longer: --minutes 2")
    early, late = statistics.median(samples[:third]), statistics.median(samples[-third:])
    minutes, growth = round(len(samples) * EVERY / 60, 1), round(late / early, 3)
    return Memory(
        len(samples), minutes, epochs, round(early, 1), round(late, 1), round(max(samples), 1), growth
    )


@contextmanager
def beside(out: Path) -> Iterator[list[float]]:
    """A process that trains undisturbed for as long as the block runs; yields the list that its memory is
    added to, MiB.

    The samples begin with its second epoch: before it memory grows by what a training needs. Raises
    SystemExit where it ends by itself.
    """
    samples: list[float] = []
    over, (process, _) = threading.Event(), forked(work, out, FOREVER)

    def look() -> None:
        watched = psutil.Process(process.pid)
        while not over.wait(EVERY) and process.is_alive():
            if (out / METRICS).exists():
                samples.append(watched.memory_info().rss / 2**20)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield samples
    finally:
        over.set()
        looking.join()
        process.terminate()
        process.join()
    if process.exitcode != 128 + signal.SIGTERM:
        raise SystemExit(f"the process that nobody disturbed ended with code {process.exitcode}")


def live(out: Path, epochs: int, lifetime: float | None = None) -> bool:
    """Train in a process that is killed after so many seconds; whether it ended before. Raises SystemExit."""
    process, _ = forked(work, out, epochs)
    process.join(lifetime)
    process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{out.name} failed with code {process.exitcode}")
    return bool(process.exitcode == 0)


def work(_: object, out: Path, epochs: int) -> None:
    """A process: train, or go on training, and evaluate; a signal ends it."""
    torch.set_num_threads(1)
    recipe = replace(RECIPE, phases=(Phase(epochs=epochs, high=1e-5, low=2e-6, cycles=2.5),))
    job = tiny_job(out.parent / "images.arrow", out, (out / "recipe.json").exists(), recipe)
    with out.with_suffix(".log").open("a") as log, redirect_stdout(log), stop_signals() as stop:
        try:
            train.train(replace(job, checkpoints=Checkpoints(steps=10)), stop)
        except Stopped:
            sys.exit(128 + signal.SIGTERM)
        evaluation.evaluate(evaluation.Job(run=out, crops=2, resources=ONE_THREAD))


def different(one: Path, other: Path) -> list[str]:
    """The names of what two runs ended in that is not the same in every bit."""
    here, there = bits(one), bits(other)
    return [name for name in here if here[name] != there.get(name)]


if __name__ == "__main__":
    sys.exit(main())
