"""Soak: trainings that are killed and resumed at random for as long as asked, beside one that nobody disturbs.

    python tests/soak.py --minutes 30        (make soak)

Before it: nothing, it draws its images. After it: one JSON line, and exit code 0 only if every run ended in the same
weights and metrics, bit for bit, and no process took more memory late than early. Not a test that `make test` runs.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
import tyro
from pictures import packed
from runs import TINY, never, tinted, tiny_job

import train
from cache.machine import describe_machine
from cache.pack import Options
from model import checkpoint
from model.checkpoint import fingerprint
from model.progress import Checkpoints
from model.run import AVERAGED, BEST, LAST
from model.schedule import Phase
from model.shapes import METRICS

GROWTH: Final = 1.1
"""How much more memory the last third of the processes may take than the first third."""
IMAGES: Final = 900


@dataclass(frozen=True)
class Soak:
    """How long, and what each process trains."""

    minutes: float = 30.0
    """Of killing and resuming; the undisturbed run comes on top, and the last run is brought to its end."""
    epochs: int = 60
    """Of each run."""
    lifetime: tuple[float, float] = (2.0, 25.0)
    """Seconds after its imports at which a process is killed, at random between the two."""
    seed: int = 0
    """Of those moments."""
    child: bool = False
    """What a process under soak is started with."""
    folder: Path = Path()
    """Of the child: where images.arrow is."""
    name: str = ""
    """Of the child: its run."""


def main() -> int:
    """Run undisturbed, run disturbed, compare."""
    soak = tyro.cli(Soak)
    if soak.child:
        return work(soak)
    with tempfile.TemporaryDirectory(prefix="greyhound-soak-") as temporary:
        folder = Path(temporary)
        images = {f"class {k}": [tinted(k, 1000 * k + n) for n in range(IMAGES // 3)] for k in range(3)}
        packed(folder, images, Options(val=0.05, test=0.2))
        result = disturb(replace(soak, folder=folder))
    print(json.dumps(asdict(result)))
    return 0 if result.same and result.growth <= GROWTH else 1


@dataclass(frozen=True)
class Result:
    """What came of it. peak_mib: lowest, median and highest of the processes' peaks. growth: of late to early peaks."""

    date: str
    machine: str
    minutes: float
    runs: int
    epochs: int
    killed: int
    peak_mib: tuple[int, int, int]
    growth: float
    same: bool


def disturb(soak: Soak) -> Result:
    """The whole measurement: one run undisturbed, then one disturbed run after the other until the time is over."""
    undisturbed = start(soak, "whole")
    if undisturbed.wait():
        raise SystemExit("the undisturbed run failed")
    generator, peaks, equal = random.Random(soak.seed), list[float](), list[bool]()
    started = time.monotonic()
    while not equal or time.monotonic() - started < 60 * soak.minutes:
        name = f"run {len(equal)}"
        peaks += harass(soak, name, generator)
        equal.append(same(soak.folder / "whole", soak.folder / name))
    third = max(1, len(peaks) // 3)
    return Result(
        date=datetime.now(UTC).date().isoformat(),
        machine=describe_machine(),
        minutes=round((time.monotonic() - started) / 60, 1),
        runs=len(equal),
        epochs=soak.epochs,
        killed=len(peaks) - len(equal),
        peak_mib=(round(min(peaks)), round(statistics.median(peaks)), round(max(peaks))),
        growth=round(statistics.median(peaks[-third:]) / statistics.median(peaks[:third]), 3),
        same=all(equal),
    )


def harass(soak: Soak, name: str, generator: random.Random) -> list[float]:
    """Start a run, kill it and resume it until it ends by itself; the memory that each process took at most, in MiB."""
    peaks = []
    while True:
        process = start(soak, name)
        ended, peak = watch(process, generator.uniform(*soak.lifetime))
        peaks.append(peak)
        if ended:
            break
    if process.returncode:
        raise SystemExit(f"a resumed run failed after {len(peaks) - 1} kills")
    return peaks


def start(soak: Soak, name: str) -> subprocess.Popen[str]:
    """A training in a process of its own, past its imports; it resumes where there is something to resume."""
    command = [sys.executable, __file__, "--child", "--folder", str(soak.folder)]
    command += ["--name", name, "--epochs", str(soak.epochs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "started\n"
    return process


def work(soak: Soak) -> int:
    """The child: train, or go on training."""
    print("started", flush=True)
    sys.stdout = (soak.folder / f"{soak.name}.log").open("a")
    out = soak.folder / soak.name
    phase = Phase(epochs=soak.epochs, high=0.01, low=0.002, cycles=2.5)
    recipe = replace(TINY, ema=0.9, phases=(phase,), batch_size=16)
    job = tiny_job(soak.folder / "images.arrow", out, (out / "recipe.json").exists(), recipe)
    return train.train(replace(job, checkpoints=Checkpoints(steps=10)), never)


def watch(process: subprocess.Popen[str], lifetime: float) -> tuple[bool, float]:
    """Wait for the end, or kill it when its time is over; whether it ended, and the memory it took at most, in MiB."""
    started, peak = time.monotonic(), 0.0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if time.monotonic() - started > lifetime:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False, peak
        try:
            peak = max(peak, watched.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    process.wait()
    return True, peak


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same bits."""

    def bits(folder: Path) -> list[object]:
        contents = [checkpoint.load(folder / name) for name in (LAST, BEST, AVERAGED)]
        weights = [contents[0]["average"]["network"], *(content["network"] for content in contents)]
        return [(folder / METRICS).read_bytes(), *map(fingerprint, weights)]

    return bits(one) == bits(other)


if __name__ == "__main__":
    sys.exit(main())
