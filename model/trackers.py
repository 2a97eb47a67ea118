"""Trackers: one run in TensorBoard, MLflow, trackio or Weights & Biases, behind one small interface.

Before it: `tracking` reads a run folder. After it: a tracker's own page. Each is an extra, imported when
it is used. What was logged before stands in tracking.json, or the tracker itself is asked.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Scalars: TypeAlias = dict[str, float]
Table: TypeAlias = Mapping[str, Sequence[Any]]
"""Columns of one length, by name."""

PROJECT: Final = "greyhound"
"""Where a tracker groups its runs, unless its own variable in the environment says otherwise."""


class Tracker(Protocol):
    """One run of one tracker, begun, or gone on with. Any method may raise.

    Each is made of: the run folder; what is `known` of it, see `tracking.Follower`, which it corrects; the
    configuration; how many epochs the run folder has, or -1.
    """

    def describe(self, recipe: dict[str, Any], about: dict[str, Any]) -> None:
        """Parameters by dotted name; and what the run depends on besides them."""

    def rows(self, rows: Mapping[int, Scalars]) -> None:
        """Scalars by step, in ascending order, behind all that came before."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG. As uint8: of floats every tracker guesses the range, and two guess wrong."""

    def table(self, name: str, table: Table, step: int) -> None:
        """A table of that name, in place of one before it."""

    def artefact(self, path: Path) -> None:
        """A file as it is."""

    def summary(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers and words that the run came to."""

    def close(self, ended: bool) -> None:
        """Write all. ended: the run came to its end."""


class _TensorBoard:
    """Event files in the run folder itself: of the folder above, TensorBoard shows every run by its name."""

    def __init__(self, folder: Path, known: dict[str, Any], _: dict[str, Any], last: float) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if last < known["epoch"]:  # a killed training came further than its checkpoint: all of it comes again
            known |= {"epoch": -1, "step": -1, "logged": {}}
        purged = {"purge_step": known["step"] + 1} if "id" in known else {}
        known["id"] = folder.name
        self._writer: Any = SummaryWriter(str(folder), **purged)

    def describe(self, recipe: dict[str, Any], about: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        reached = {"valid/accuracy": 0, "test/accuracy": 0}
        for each in hparams(recipe, reached):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(each)
        both = recipe | about
        self.table("recipe", {"field": list(both), "value": list(both.values())}, 0)

    def rows(self, rows: Mapping[int, Scalars]) -> None:
        for step, row in rows.items():
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        self._writer.add_image(name, _pixels(path), step, dataformats="HWC")

    def table(self, name: str, table: Table, step: int) -> None:
        lines = [tuple(table), ["---"] * len(table), *zip(*table.values(), strict=True)]
        cells = ([str(cell).replace("|", "/") for cell in line] for line in lines)
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)

    def artefact(self, path: Path) -> None:
        """TensorBoard has no files; this one lies beside its own."""

    def summary(self, values: Mapping[str, Any], step: int) -> None:
        self.rows({step: numbers(values)})

    def close(self, ended: bool) -> None:
        self._writer.close()


class _Mlflow:
    """A run in mlflow.db in the current folder, as MLflow itself does, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, known: dict[str, Any], _: dict[str, Any], last: float) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        import mlflow

        self._client = client = mlflow.MlflowClient(known.setdefault("where", mlflow.get_tracking_uri()))
        if "id" in known:
            client.update_run(known["id"], status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = client.get_experiment_by_name(name)
            group = found.experiment_id if found else client.create_experiment(name)
            known["id"] = client.create_run(group, run_name=folder.name).info.run_id
        self._id = known["id"]
        # The store itself knows best what a killed training came to log.
        rows = [(row.step, row.value) for row in client.get_metric_history(self._id, "epoch")]
        known["step"], known["epoch"] = max(rows, default=(-1, -1))

    def describe(self, recipe: dict[str, Any], about: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        before = self._client.get_run(self._id).data.params  # no parameter may change; a tag may
        new = [Param(name, str(value)) for name, value in recipe.items() if name not in before]
        forced = {name: value for name, value in recipe.items() if before.get(name, str(value)) != str(value)}
        tags = [RunTag(name, str(value)) for name, value in (about | forced).items()]
        self._client.log_batch(self._id, params=new, tags=tags)

    def rows(self, rows: Mapping[int, Scalars]) -> None:
        from mlflow.entities import Metric

        now, steps = int(1000 * time.time()), list(rows)
        for first in range(0, len(steps), 100):  # a call is a transaction, of at most 1,000 metrics
            some = steps[first : first + 100]
            metrics = [Metric(name, value, now, step) for step in some for name, value in rows[step].items()]
            self._client.log_batch(self._id, metrics=metrics)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(path), "images")

    def table(self, name: str, table: Table, step: int) -> None:
        text = io.StringIO()
        csv.writer(text).writerows([tuple(table), *zip(*table.values(), strict=True)])
        self._client.log_text(self._id, text.getvalue(), f"{name}.csv")

    def artefact(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def summary(self, values: Mapping[str, Any], step: int) -> None:
        self.rows({step: numbers(values)})
        for name in values.keys() - numbers(values).keys():
            self._client.set_tag(self._id, name, values[name])

    def close(self, ended: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if ended else "KILLED")


class _Wandb:
    """An offline run in `wandb` in the current folder, or as WANDB_MODE and WANDB_DIR say."""

    def __init__(self, folder: Path, known: dict[str, Any], config: dict[str, Any], last: float) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
        )
        # Each process writes a folder of its own, with the same id. Where they are synchronised, a step
        # that came before is refused.
        self._library, self._first = wandb, known["step"] + ("id" in known)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=known.setdefault("id", uuid.uuid4().hex[:8]),
            config=config,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=quiet,
        )

    def describe(self, recipe: dict[str, Any], about: dict[str, Any]) -> None:
        """It was given at the start."""

    def rows(self, rows: Mapping[int, Scalars]) -> None:
        for step, row in rows.items():
            self._run.log(row, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._run.log({name: self._library.Image(_pixels(path))}, step=max(step, self._first))

    def table(self, name: str, table: Table, step: int) -> None:
        data = [list(row) for row in zip(*table.values(), strict=True)]
        self._run.log(
            {name: self._library.Table(columns=list(table), data=data)}, step=max(step, self._first)
        )

    def artefact(self, path: Path) -> None:
        artefact = self._library.Artifact(f"{self._run.id}-{path.stem}", type=path.stem)
        artefact.add_file(str(path))
        self._run.log_artifact(artefact)

    def summary(self, values: Mapping[str, Any], step: int) -> None:
        self._run.summary.update(values)

    def close(self, ended: bool) -> None:
        self._run.finish(exit_code=int(not ended))


class _Trackio(_Wandb):
    """A run in trackio's own folder, or as TRACKIO_DIR and its other variables say, in wandb's words."""

    def __init__(self, folder: Path, known: dict[str, Any], config: dict[str, Any], last: float) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage as Storage

        project, name = known.setdefault("where", os.environ.get("TRACKIO_PROJECT", PROJECT)), folder.name
        if new := "id" not in known:  # a run is known by its name, so it takes one that is free
            taken = name in Storage.get_runs(project)
            known["id"] = f"{name}-{uuid.uuid4().hex[:6]}" if taken else name
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=project,
                name=known["id"],
                config=config,
                resume="never" if new else "allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self._library, self._first = trackio, -1
        if self._run.url is None:  # what a killed training had not yet written comes again
            found = Storage.get_logs(project, known["id"], scalar_only=True)
            rows = [(row["step"], row["epoch"]) for row in found if "epoch" in row]
            known["step"], known["epoch"] = max(rows, default=(-1, -1))

    def summary(self, values: Mapping[str, Any], step: int) -> None:
        self.rows({step: dict(values)})

    def close(self, ended: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._library.finish()  # and not the run's own, after which it would be finished again at exit


TRACKERS: Final[dict[str, Callable[[Path, dict[str, Any], dict[str, Any], float], Tracker]]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def numbers(values: Mapping[str, Any]) -> Scalars:
    """Those that every tracker takes: MLflow makes 1.8e308 of infinity."""
    known = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in known.items() if math.isfinite(value)}


def _pixels(path: Path) -> NDArray[np.uint8]:
    """A picture, uint8 `[height, width, 3]`."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
