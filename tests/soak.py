"""Soak: trainings that are killed and resumed at random for as long as asked, and one beside them that nobody
disturbs.

    python tests/soak.py --minutes 30        (make soak)

Before it: nothing, it draws its images. After it: the words that docs/reliability.md wants, then one JSON
line, and exit code 0 only if every run ended in what the undisturbed one came to, bit for bit, and the
process that trained all the time took no more memory late than early. Not a test that `make test` runs.
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
from pictures import packed
from runs import FULL, ONE_THREAD, never, tinted, tiny_job

from greyhound import eval as evaluation
from greyhound import train
from greyhound.cache.cli import Stopped, read_or_exit, stop_signals
from greyhound.cache.machine import describe_machine
from greyhound.cache.options import read_options
from greyhound.cache.pack import Options
from greyhound.model import checkpoint
from greyhound.model.checkpoint import fingerprint
from greyhound.model.run import (
    AVERAGED,
    BEST,
    CLOCKED,
    EVALUATION,
    INTERPOLATION,
    LAST,
    METRICS,
    PROBE,
    PROBE_WEIGHTS,
    SWA,
    Run,
)
from greyhound.model.schedule import Phase
from greyhound.recipe import Checkpoints

GROWTH: Final = 1.03
"""How much more memory the undisturbed process may take in the last third of the time than in the first."""
EVERY: Final = 1.0
"""Seconds from one look at that memory to the next."""
IMAGES: Final = 900
STEADY: Final = "steady"
"""The run that trains all the time."""
RECIPE: Final = replace(FULL, name="soak", batch_size=16, probe_shots=20)
"""All that a recipe can ask for, in small; `work` says for how long."""


@dataclass(frozen=True)
class Soak:
    """How long, and what each process trains."""

    minutes: float = 30.0
    """Of killing and resuming; the run to compare with comes before, and the last run is brought to its end."""
    epochs: int = 10
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


@dataclass(frozen=True)
class Result:
    """What came of it. differing: what was not the same, run by run. peaks: of the killed processes, MiB, least and most."""

    date: str
    machine: str
    commit: str
    minutes: float
    runs: int
    epochs: int
    killed: int
    differing: tuple[str, ...]
    peaks: tuple[int, int]
    memory: Memory

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return not self.differing and self.memory.growth <= GROWTH

    def describe(self) -> str:
        """For docs/reliability.md."""
        memory = self.memory
        same = (
            "Each ended in the bytes of the run that nobody disturbed"
            if not self.differing
            else "NOT the same"
        )
        return (
            f"`python tests/soak.py`, {self.date}, {self.machine}, commit {self.commit}: {self.runs} runs of {self.epochs} epochs with all that "
            f"a recipe can ask for, a checkpoint every 10 steps, in {self.minutes:.1f} minutes killed {self.killed} times "
            f"at random. {same} (every weight of {', '.join(WEIGHTS)}, the moving average, {METRICS}, and {PROBE}, "
            f"{INTERPOLATION}, {SWA} and {EVALUATION} but for the clock){': ' if self.differing else ''}"
            f"{', '.join(self.differing)}. Beside them one process trained {memory.epochs} epochs in {memory.minutes:.1f} "
            f"minutes undisturbed; its memory, looked at {memory.samples} times: median {memory.early:.0f} MiB in the "
            f"first third, {memory.late:.0f} in the last, {memory.growth:.3f} times as much (at most {GROWTH} is flat), "
            f"at most {memory.most:.0f}. The killed ones took {self.peaks[0]} to {self.peaks[1]} MiB at most."
        )


WEIGHTS: Final = (LAST, BEST, AVERAGED, PROBE_WEIGHTS)


def main() -> int:
    """Run undisturbed, run disturbed, compare."""
    soak = read_or_exit(lambda: read_options(Soak, sys.argv[1:], "python tests/soak.py"))
    if soak.child:
        print("started", flush=True)
        with (soak.folder / f"{soak.name}.log").open("a") as log, redirect_stdout(log):
            return work(soak)
    with tempfile.TemporaryDirectory(prefix="greyhound-soak-") as temporary:
        folder = Path(temporary)
        images = {f"class {k}": [tinted(k, 1000 * k + n) for n in range(IMAGES // 3)] for k in range(3)}
        packed(folder, images, Options(val=0.05, test=0.2))
        result = disturb(replace(soak, folder=folder))
    print(result.describe())
    print(json.dumps(asdict(result)))
    return 0 if result.good else 1


def disturb(soak: Soak) -> Result:
    """The whole measurement: one run undisturbed, then one disturbed run after the other until the time is over."""
    undisturbed = start(soak, "whole")
    if undisturbed.wait():
        raise SystemExit("the undisturbed run failed")
    generator, peaks, differing, runs = random.Random(soak.seed), list[float](), list[str](), 0
    with beside(soak) as samples:
        started = time.monotonic()
        while not runs or time.monotonic() - started < 60 * soak.minutes:
            name = f"run {runs}"
            peaks += harass(soak, name, generator)
            found = different(soak.folder / "whole", soak.folder / name)
            differing += [f"{name}: {what}" for what in found]
            runs += 1
        minutes = (time.monotonic() - started) / 60
    epochs = len(Run(soak.folder / STEADY).rows(METRICS))
    return Result(
        date=datetime.now(UTC).date().isoformat(),
        machine=describe_machine(),
        commit=commit(),
        minutes=round(minutes, 1),
        runs=runs,
        epochs=soak.epochs,
        killed=len(peaks) - runs,
        differing=tuple(differing),
        peaks=(round(min(peaks)), round(max(peaks))),
        memory=summarise(samples, epochs),
    )


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
    return Memory(
        samples=len(samples),
        minutes=round(len(samples) * EVERY / 60, 1),
        epochs=epochs,
        early=round(early, 1),
        late=round(late, 1),
        most=round(max(samples), 1),
        growth=round(late / early, 3),
    )


@contextmanager
def beside(soak: Soak) -> Iterator[list[float]]:
    """A process that trains undisturbed for as long as the block runs; yields the list that its memory is
    added to, MiB.

    The samples begin with its second epoch: before it memory grows by what a training needs. Raises
    SystemExit where it ends by itself.
    """
    samples: list[float] = []
    process, over = start(soak, STEADY), threading.Event()

    def look() -> None:
        watched = psutil.Process(process.pid)
        while not over.wait(EVERY) and process.poll() is None:
            if (soak.folder / STEADY / METRICS).exists():
                samples.append(watched.memory_info().rss / 2**20)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield samples
    finally:
        over.set()
        looking.join()
        process.terminate()
        code = process.wait()
    if code != 128 + signal.SIGTERM:
        raise SystemExit(f"the process that nobody disturbed ended with code {code}")


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
    """The child: train, or go on training, and evaluate; the one that nobody disturbs until it is asked to end."""
    torch.set_num_threads(1)
    out = soak.folder / soak.name
    phase = Phase(epochs=soak.epochs, high=0.01, low=0.002, cycles=2.5)
    if soak.name == STEADY:
        phase = replace(phase, epochs=1_000_000)
    recipe = replace(RECIPE, phases=(phase,))
    job = tiny_job(soak.folder / "images.arrow", out, (out / "recipe.json").exists(), recipe)
    job = replace(job, checkpoints=Checkpoints(steps=10))
    if soak.name == STEADY:
        with stop_signals() as stop:
            try:
                return train.train(job, stop)
            except Stopped:
                return 128 + signal.SIGTERM
    code = train.train(job, never)
    evaluation.evaluate(evaluation.Job(run=out, crops=2, resources=ONE_THREAD))
    return code


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


def different(one: Path, other: Path) -> list[str]:
    """The names of what two runs ended in that is not the same in every bit."""
    here, there = contents(one), contents(other)
    return [name for name in here if here[name] != there.get(name)]


def contents(folder: Path) -> dict[str, object]:
    """All that a run ends in, by name: checkpoints as a hash of their weights, JSON but for what the clock says."""
    found: dict[str, object] = {METRICS: (folder / METRICS).read_bytes()}
    for name in WEIGHTS:
        content = checkpoint.load(folder / name)
        found[name] = fingerprint(content["network"])
        if name == LAST:
            found["the moving average"] = fingerprint(content["average"]["network"])
    for name in (PROBE, INTERPOLATION, SWA, EVALUATION):
        found[name] = unclocked(json.loads((folder / name).read_text()))
    return found


def unclocked(content: Any) -> Any:
    """JSON without the fields that depend on the clock, however deep."""
    if isinstance(content, dict):
        return {key: unclocked(value) for key, value in content.items() if key not in CLOCKED}
    return [unclocked(item) for item in content] if isinstance(content, list) else content


if __name__ == "__main__":
    sys.exit(main())
