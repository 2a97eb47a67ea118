"""Trainings that are killed: each says where it is, and a real SIGKILL meets it there.

Before it: `processes`, whose server every training is forked from, past its imports. After it: the tests of
exact resume.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from runs import FULL, ONE_THREAD, never, tiny_job

from greyhound import begin, train
from greyhound import eval as evaluation
from greyhound.model import checkpoint, precision
from greyhound.model.checkpoint import fingerprint
from greyhound.model.report import report
from greyhound.model.run import (
    AVERAGED,
    BEST,
    EVALUATION,
    INTERPOLATION,
    LAST,
    LOCK,
    METRICS,
    PROBE,
    PROBE_WEIGHTS,
    RECIPE,
    SWA,
    TARGETS,
    Run,
)
from greyhound.recipe import Checkpoints
from greyhound.session import TrainContext

PATIENCE: Final = 300
"""Seconds that a training has to come to where it is killed, or to its end."""
PHASES: Final = {
    "averaging": "averaging",
    "features": "probe",
    "training": "step",
    "of the way": "interpolation",
    "validating": "validation",
}
"""A word of what a training says it is doing, and the phase that it is of."""
OVER: Final = "over"


def kill(pack: Path, out: Path, phase: str, moment: int) -> None:
    """Train and evaluate, or go on; SIGKILL at the `moment`th time, from 1, that it is in that phase."""
    process, said = start(pack, out, phase, moment)
    process.kill()
    process.join()
    assert said == phase, f"{said}; expected to be killed in {phase}, at moment {moment}"
    assert process.exitcode == -signal.SIGKILL


def finish(pack: Path, out: Path) -> None:
    """Train and evaluate, or go on, to the end."""
    process, said = start(pack, out, "", 0)
    process.join()
    assert said == OVER, said


def start(pack: Path, out: Path, phase: str, moment: int) -> tuple[Any, str]:
    """A training in a process of its own; the phase that it says it is in, `OVER`, or what went wrong."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["greyhound.train", "runs"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(theirs, pack, out, phase, moment))
    process.start()
    theirs.close()
    return process, ours.recv() if ours.poll(PATIENCE) else "no word in time"


def live(announce: Connection, pack: Path, out: Path, phase: str, moment: int) -> None:
    """The child: train, evaluate, and wait for death where it was told to."""
    import torch

    torch.set_num_threads(1)
    count = 0

    def here(where: str) -> None:
        nonlocal count
        count += where == phase
        if where == phase and count == moment:
            announce.send(phase)
            time.sleep(PATIENCE)

    watch(here)
    try:
        job = tiny_job(pack, out, (out / RECIPE).exists(), FULL)
        train.train(replace(job, checkpoints=Checkpoints(steps=2)), never)
        evaluation.evaluate(evaluation.Job(run=out, crops=2, batch_size=8, resources=ONE_THREAD))
        announce.send(OVER)
    except BaseException:  # whatever it is, the test shows it
        announce.send(traceback.format_exc())


def watch(here: Callable[[str], None]) -> None:
    """Call `here` with the phase before any batch, and in every half-written checkpoint. No pictures."""
    following, writing = TrainContext.with_progress, Path.write_bytes
    predicting = precision.forward

    def with_progress(context: TrainContext, title: str, *rest: Any) -> Iterator[Any]:
        phase = next(phase for word, phase in PHASES.items() if word in title)
        for batch in following(context, title, *rest):
            here(phase)
            yield batch

    def forward(*arguments: Any) -> Any:
        here("evaluation")
        return predicting(*arguments)

    def write_bytes(self: Path, data: Any) -> int:
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            here("checkpoint")
        return writing(self, data)

    Path.write_bytes = write_bytes  # type: ignore[method-assign]
    precision.forward = forward  # type: ignore[assignment]  # eval imports it when it predicts
    TrainContext.with_progress = with_progress  # type: ignore[assignment, method-assign]
    vars(begin)["draw_pictures"] = lambda *_: None
    report.build = lambda run: run


def bits(out: Path) -> dict[str, Any]:
    """All that a run came to but for the clock: weights, metrics, and the evaluation, if any."""
    folder, evaluated = Run(out), out / EVALUATION
    files = {name: checkpoint.load(out / name) for name in (LAST, BEST, AVERAGED, PROBE_WEIGHTS)}
    found: dict[str, Any] = {name: fingerprint(content["network"]) for name, content in files.items()}
    clock = {"elapsed": None, "seconds": None}
    found |= {
        "average": fingerprint(files[LAST]["average"]["network"]),
        "momentum": fingerprint(files[LAST]["momentum"]),
        "targets": fingerprint({"": checkpoint.load(out / TARGETS)["probabilities"]}),
        "best": (files[BEST]["after"], files[BEST]["score"]),
        "metrics": (out / METRICS).read_bytes(),
        "probe": folder.read(PROBE) | clock | {"first": folder.read(PROBE)["first"] | clock},
        "interpolation": [row | clock for row in folder.read(INTERPOLATION)],
        "averaging": folder.read(SWA) | clock | {"after": folder.read(SWA)["after"] | clock},
        "evaluation": evaluated.read_bytes() if evaluated.exists() else b"",
        "left": [file.name for file in out.iterdir() if file.name.startswith(".") and file.name != LOCK],
    }
    return found
