"""Trainings that are killed: each says where it is, and a real SIGKILL meets it there.

Before it: `processes`, whose server every training is forked from, past its imports. After it: the tests of
exact resume, and the soak.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from processes import forked
from runs import FULL, ONE_THREAD, batches_seen, never, tiny_job

from greyhound import begin, train
from greyhound import eval as evaluation
from greyhound.model import checkpoint, precision, run
from greyhound.model.checkpoint import fingerprint
from greyhound.model.report import report
from greyhound.recipe import Checkpoints

PATIENCE: Final = 300
"""Seconds that a training has to come to where it is killed, or to its end."""
PHASES: Final = {
    "averaging": "averaging",
    "features": "probe",
    "training": "step",
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
    if said != OVER:
        process.kill()  # it may hang
    process.join()
    assert said == OVER, said


def start(pack: Path, out: Path, phase: str, moment: int) -> tuple[Any, str]:
    """A training in a process of its own; the phase that it says it is in, `OVER`, or what went wrong."""
    process, ours = forked(live, pack, out, phase, moment)
    return process, ours.recv() if ours.poll(PATIENCE) else "no word in time"


def live(announce: Connection, pack: Path, out: Path, phase: str, moment: int) -> None:
    """The child: train, evaluate, and wait for death where it was told to."""
    torch.set_num_threads(1)
    count = 0

    def here(where: str) -> None:
        nonlocal count
        count += where == phase
        if where == phase and count == moment:
            announce.send(phase)
            time.sleep(PATIENCE)

    def look(title: str, *_: object) -> None:
        here(next(phase for word, phase in PHASES.items() if word in title))

    watch(here)
    try:
        job = tiny_job(pack, out, (out / run.RECIPE).exists(), FULL)
        with batches_seen(look):
            train.train(replace(job, checkpoints=Checkpoints(steps=2)), never)
        evaluation.evaluate(evaluation.Job(run=out, crops=2, batch_size=8, resources=ONE_THREAD))
        announce.send(OVER)
    except BaseException:  # whatever it is, the test shows it
        announce.send(traceback.format_exc())


def watch(here: Callable[[str], None]) -> None:
    """Call `here` before any batch is predicted, and in every half-written checkpoint. No pictures."""
    writing, predicting = Path.write_bytes, precision.forward

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
    vars(begin)["draw_pictures"] = lambda *_: None
    report.build = lambda run: run


def bits(out: Path) -> dict[str, Any]:
    """All that a run came to but for the clock, by name: weights, metrics, steps, and the evaluation, if any."""
    files = {name: checkpoint.load(out / name) for name in (run.LAST, run.BEST, run.AVERAGED)}
    found: dict[str, Any] = {name: fingerprint(content["network"]) for name, content in files.items()}
    found |= {name: unclocked(run.Run(out).read(name)) for name in (run.PROBE, run.SWA)}
    written = [name for name in (run.METRICS, run.STEPS, run.EVALUATION) if (out / name).exists()]
    found |= {name: (out / name).read_bytes() for name in written}
    found["momentum"] = fingerprint(files[run.LAST]["momentum"])
    found["best"] = (files[run.BEST]["after"], files[run.BEST]["score"])
    found["left"] = [
        file.name for file in out.iterdir() if file.name.startswith(".") and file.name != run.LOCK
    ]
    return found


def unclocked(content: Any) -> Any:
    """JSON without the fields that depend on the clock, however deep."""
    if isinstance(content, dict):
        return {key: unclocked(value) for key, value in content.items() if key not in run.CLOCKED}
    return [unclocked(item) for item in content] if isinstance(content, list) else content
