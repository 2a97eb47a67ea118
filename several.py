"""Several trainings of one command, each in a folder of its own below the command's.

Before it: train, which hands itself over. After it: sweep, and whatever else trains more than once.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from greyhound.cache.cli import Stop, Stopped
from greyhound.model.report import report
from greyhound.model.report.stages import Stage
from greyhound.model.run import RECIPE
from greyhound.recipe import Recipe, TrainOptions

Train: TypeAlias = Callable[[TrainOptions, Stop], int]
"""`train.train`, as one of several."""


def train_into(train: Train, options: TrainOptions, stop: Stop, folder: Path, recipe: Recipe) -> Stage:
    """Train a recipe into a folder, or go on there; what the weights that it keeps reached.

    Raises UserError, Stopped.
    """
    if stop():
        raise Stopped(f"before {folder.name}")
    begun = (folder / RECIPE).exists()
    force = options.force if begun else ()
    train(replace(options, out=folder, recipe=recipe, resume=begun, force=force, sweep=()), stop)
    return next(stage for stage in report.reached(folder) if stage.best)


def evaluate_command(run: Path, tested: bool) -> str:
    """The command that tests a run. tested: its pack has test images."""
    return f"greyhound eval --run {shlex.quote(str(run))} --crops 10{'' if tested else ' --split val'}"
