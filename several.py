"""Several trainings of one command, each in a folder of its own below the command's.

Before it: train, which hands itself over. After it: sweep and folds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from greyhound.cache.cli import Stop, Stopped
from greyhound.model.report import report
from greyhound.model.report.stages import Stage, kept
from greyhound.model.resume import differences
from greyhound.model.run import RECIPE, RecipeError, Run, RunError, completed
from greyhound.model.run_lock import refuse_other_content, run_lock
from greyhound.recipe import Recipe, TrainOptions

Train: TypeAlias = Callable[[TrainOptions, Stop], int]
"""`train.train`, as one of several."""


@contextmanager
def begun(run: Run, name: str, asked: Mapping[str, Any], resume: bool) -> Iterator[dict[str, Any]]:
    """Hold the folder; what its file `name` says, or what was asked for where nothing was trained.

    Raises RunError where it is in use, or of another command: all trainings in it must be of one.
    """
    path, described = run.folder / name, dict[str, Any](json.loads(json.dumps(asked)))
    if not path.exists():
        refuse_other_content(run.folder)  # before a lock is left there
    with run_lock(run):
        trained = any(run.folder.glob(f"*/{RECIPE}"))  # else another command may begin anew
        then: dict[str, Any] = run.read(name) if path.exists() and (trained or resume) else described
        if isinstance(then.get("recipe"), dict):
            then = then | {"recipe": completed(then["recipe"])}
        if path.exists() and trained and not resume:
            raise RunError(f"{path} is there already; name another folder: --out, or go on: --resume")
        for field, was, now in differences({key: then.get(key) for key in described}, described):
            raise RunError(f"{path} has {field} = {was}, not {now}; resume with the same command")
        yield then


def train_into(train: Train, options: TrainOptions, stop: Stop, folder: Path, recipe: Recipe) -> Stage:
    """Train a recipe into a folder, or go on there; what the weights that it keeps reached.

    Raises UserError, Stopped.
    """
    if stop():
        raise Stopped(f"before {folder.name}")
    resume = (folder / RECIPE).exists()
    force = options.force if resume else ()
    train(replace(options, out=folder, recipe=recipe, resume=resume, force=force), stop)
    if stage := kept(report.reached(folder)):
        return stage
    raise RecipeError(
        f"{folder} was trained and has no results; put them back, or name another folder: --out"
    )
