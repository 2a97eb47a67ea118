"""What is written before the first step: a new run's description and pictures, or what changed in one that goes on.

Before it: `session` has opened everything. After it: train fits the linear probe, or goes on where the run stood.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict

import numpy as np

from greyhound.cache.command import note
from greyhound.model import distributed, figures
from greyhound.model.resume import clear_end, find_best, invalidate_best, record_forced, write_description
from greyhound.model.run import BEST, DAMAGED, clear_results, load_network
from greyhound.model.schedule import lr_at, total_epochs
from greyhound.model.state import drop_later_rows, score
from greyhound.pipelines.loader import Loader
from greyhound.recipe import TrainOptions
from greyhound.session import TrainContext


def start_run(context: TrainContext, used: dict[str, str]) -> None:
    """Write down what the run depends on, and draw what it will do."""
    clear_results(context.run)
    write_description(context.run, asdict(context.recipe), context.pack.summary(), used)
    with context.pack.naming_damaged(context.pack.ids("train")):  # not those of a few pictures alone
        draw_pictures(context)


def resume_run(context: TrainContext, options: TrainOptions, used: dict[str, str]) -> None:
    """Say where the run goes on, and write down what was forced to change."""
    folder, state, pack = context.run, context.state, context.pack
    drop_later_rows(folder, state)
    going = state.epoch < total_epochs(context.recipe.phases) or state.trained
    if going:
        clear_end(folder)
    if {"recipe", "pack"} & set(options.force):
        invalidate_best(folder, note)
    if options.force:
        record_forced(folder, asdict(context.recipe), pack.summary(), used, state.epoch, note)
    done, count = state.images, len(context.training.ids)
    place = f"in epoch {state.epoch}, after {done} of {count} images" if going else "after the last epoch"
    print(f"resumed {place}", flush=True)


def restore_best(context: TrainContext) -> None:
    """Go on from best.ckpt and its own score: last.ckpt may be an older one. A score of -inf is measured again."""
    state = context.state
    content = distributed.broadcast_from_main(lambda: find_best(context.run, note))
    state.best = content["score"] if content else -math.inf
    if content is None or state.best > -math.inf:
        return
    network = deepcopy(state.result)
    load_network(network, content, context.run.folder / BEST)
    result = context.validate(network, "validating best.ckpt again")
    context.saver.save_best(state, content | result | {"score": score(result, context.recipe.select)})
    context.saver.wait()


def write_damaged(context: TrainContext) -> None:
    """damaged.json: the images that were replaced in training or left out of validation; no file where there are none."""
    found = {"replaced": context.training.damage(), "left_out": context.validation.damage()}
    if any(found.values()):
        context.run.write(DAMAGED, found)
    else:
        (context.run.folder / DAMAGED).unlink(missing_ok=True)


def draw_pictures(context: TrainContext) -> None:
    """lr.png, the learning rate over the epochs, and augmented.png, what the network will see."""
    recipe, pack, folder = context.recipe, context.pack, context.run.folder
    phases, augment, epochs = recipe.phases, recipe.augment, total_epochs(recipe.phases)
    places = np.linspace(0, epochs, 1000).tolist()
    figures.learning_rate(folder / "lr.png", places, [lr_at(phases, place) for place in places])
    ids = pack.ids("train")
    ids = ids[:: max(1, len(ids) // 6)][:6]
    columns, shown = [], min(5, epochs)
    for view, count in ((augment.centre(), 1), (augment, shown)):
        with Loader(
            pack, view, ids, context.resources, batch_size=len(ids), seed=recipe.seed, epochs=count
        ) as loader:
            columns += [augment.to_pixels(batch.images.numpy(force=True)) for batch in loader]
    captions = ["evaluation", *(f"epoch {epoch}" for epoch in range(shown))]
    figures.image_sheet(folder / "augmented.png", np.stack(columns, axis=1), captions)
