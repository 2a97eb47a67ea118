"""Before the first step: open everything, and describe a new run or restore one that is resumed.

Before it: a command line, as `TrainOptions`. After it: train, or `try_out`, where no run begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from greyhound.cache.cli import Stop, from_json, note
from greyhound.cache.folds import Fold
from greyhound.cache.store import Pack
from greyhound.model import distributed, dry_run, resume, tracking
from greyhound.model.precision import has_bf16
from greyhound.model.report import figures
from greyhound.model.run import BEST, CORRUPT, PACK, RECIPE, SWA, Run, RunError, grid_of, load_network
from greyhound.model.run_lock import clear_results, refuse_locked_run, refuse_other_content, run_lock
from greyhound.model.state import CheckpointSaver, drop_later_rows, restore, score
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Loader, Position
from greyhound.recipe import AUTO, PRETRAINED_NOTE, RECIPES, Checkpoints, Recipe, TrainOptions, refuse_run
from greyhound.session import (
    TrainContext,
    fold_of,
    is_own,
    normalised,
    open_device,
    open_loaders,
    open_pack,
    open_state,
    open_versions,
    trained_pack_path,
)


@contextmanager
def opened(options: TrainOptions, stop: Stop) -> Iterator[tuple[TrainContext, bool]]:
    """A training at its next step, for as long as the block runs; and whether that is its first one.

    The run folder is locked and described, if a run begins. Raises UserError, Stopped.
    """
    started = time.perf_counter()
    engine, name, device = open_device(options.resources)
    size = "the run's batch size" if options.resume else f"batch size {options.recipe.batch_size}"
    remedy = (
        "lower --batch-size or --micro-batch, or add --activation-checkpointing; --dry-run says what fits"
    )
    with (
        dry_run.refusing_out_of_memory(size, remedy),
        distributed.process_group(device) as restarted,
        ExitStack() as stack,
    ):
        options = on_this_rank(options, restarted, device)
        distributed.broadcast_from_main(lambda: tracking.require(options.log))
        path, fold = distributed.broadcast_from_main(lambda: (pack_path(options), fold_asked(options)))
        pack = open_pack(path, options.resources, fold)
        used = open_versions(engine, name, device)

        def lock() -> None:
            stack.enter_context(run_lock(Run(options.out)))

        if options.resume and not options.starts_no_run and (options.out / RECIPE).exists():
            distributed.broadcast_from_main(lock)
        recipe, folder, content = distributed.broadcast_from_main(
            lambda: open_run(options, pack, device, used)
        )
        distributed.broadcast_from_main(lambda: refuse_idle(recipe, pack))
        # A dry run asks how much the weights take, not what they are.
        pretrained = content is None and not options.dry_run
        grid = grid_of(content or {})
        state = open_state(recipe, len(pack.classes), device, started, pretrained, grid)
        if content is not None:
            restore(folder, content, state)
            if distributed.broadcast_from_main(lambda: own_recipe(options.out).epochs) < recipe.epochs:
                state.bad_epochs = 0
            if not is_own(pack, folder):
                state.restart_epoch()
        distributed.seed_per_rank()
        start = Position(state.epoch, state.images)
        training, validation = stack.enter_context(open_loaders(recipe, pack, options.resources, start))
        kept = Checkpoints() if options.starts_no_run else options.checkpoints
        saver = stack.enter_context(CheckpointSaver(folder, **asdict(kept)))
        stop = distributed.any_rank(stop)
        context = TrainContext(recipe, options.resources, folder, state, training, validation, saver, stop)
        fewest = min(training.batch_sizes(), default=0) * recipe.views
        if fewest == 1 and recipe.trains and not (recipe.freeze_bn or recipe.sync_batchnorm):
            dry_run.check_single_image(state.network, recipe.augment.size, recipe.bf16)
        if not options.starts_no_run:
            if not options.resume:
                distributed.broadcast_from_main(lock)
                # Another start may have come first.
                distributed.broadcast_from_main(lambda: refuse_used(options.out))
            begin(context, options, used, content is None)
            if distributed.is_main():
                follower = tracking.Follower(folder, note, options.log)
                context = replace(context, follow=stack.enter_context(follower))
        yield context, content is None


def on_this_rank(options: TrainOptions, restarted: bool, device: torch.device) -> TrainOptions:
    """The options with this rank's share. restarted: torchrun starts a run again that had begun.

    Raises RunError where several processes cannot do what is asked.
    """
    several = distributed.world_size() > 1
    if several and options.starts_no_run:
        tries = "--dry-run, --verify-determinism and --find-lr"
        raise RunError(f"{tries} are for one process; start them without torchrun")
    if several and options.recipe.sync_batchnorm and device.type != "cuda":
        raise RunError("--sync-batchnorm needs GPUs; leave it out, or add --freeze-bn")
    if several and options.recipe.sync_batchnorm and options.recipe.compile:
        raise RunError(
            "--compile is tried by each process alone, and --sync-batchnorm needs all; leave one out"
        )
    if restarted and distributed.broadcast_from_main((options.out / RECIPE).exists):
        options = replace(options, resume=True)
    return replace(options, resources=options.resources.shared(distributed.local_world_size()))


def refuse_idle(recipe: Recipe, pack: Pack) -> None:
    """Refuse more processes than a batch, or the validation, has images for. Raises RunError.

    Without an image in any batch, a process would read ahead for ever.
    """
    count, size = distributed.world_size(), recipe.batch_size // recipe.views
    train, validation = (len(pack.ids(split)) for split in ("train", "val"))
    most = -(-train // -(-train // size))  # of nearly equal batches, see `order.even_bounds`
    if most < count or validation < count:
        few = f"batches of {most} images" if most < count else f"{validation} images to validate on"
        raise RunError(f"{count} processes have {few}, so some would have none; start fewer")


def pack_path(options: TrainOptions) -> Path:
    """The pack that is named, or that the run to resume was trained on. Raises RunError."""
    if options.pack is None and not options.resume:
        raise RunError("a training needs a pack: --pack PACK, made by: greyhound pack IMAGES --out PACK")
    return options.pack or trained_pack_path(Run(options.out))


def fold_asked(options: TrainOptions) -> Fold | None:
    """The fold to train on, or that the run to resume was trained on. Raises RunError."""
    if not (options.resume and (options.out / PACK).exists()):
        return options.fold
    own = fold_of(Run(options.out))
    if options.fold not in (None, own):
        raise RunError(
            f"{options.out} is {own or 'no fold'}, not {options.fold}; resume with the same --folds"
        )
    return own


def open_run(
    options: TrainOptions, pack: Pack, device: torch.device, used: dict[str, str]
) -> tuple[Recipe, Run, dict[str, Any] | None]:
    """The resolved recipe, the run folder, and the checkpoint to go on from. Only a repair is written.

    used: `open_versions`. With --resume a preset under the run's own name stands for the run's recipe. Raises
    RunError, CheckpointError.
    """
    run, recipe, out = Run(options.out), options.recipe, options.out
    if not options.resume:
        refuse_locked_run(run)
        refuse_used(out)
        return resolve(recipe, device), run, None
    own = own_recipe(out)
    preset, _ = RECIPES.get(own.name, (None, ""))
    plain = recipe == preset and "recipe" not in options.force
    asked = own if plain else resolve(recipe, device)
    recipes = asdict(own), asdict(asked)
    resume.check_same(run, recipes, pack.path, pack.header.digest, used, options.force)
    pack.require_classes(run.read(PACK)["classes"], str(out))
    content = resume.latest_checkpoint(run, not options.starts_no_run, note)
    if content:
        resume.refuse_settled(run, *recipes)
    return asked, run, content


def refuse_used(out: Path) -> None:
    """Refuse a folder that holds a run or other files. Raises OptionError, RunError."""
    refuse_run(out)
    refuse_other_content(out)


def own_recipe(out: Path) -> Recipe:
    """The recipe that a run was begun with, or last forced to. Raises RunError, ValueFormatError."""
    return from_json(Recipe, Run(out).read(RECIPE), str(out / RECIPE))


def resolve(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe as computed on `device`: precision, micro-batch, mean and std chosen; no untrue note."""
    if recipe.weights != "auto" and recipe.note == PRETRAINED_NOTE:
        recipe = replace(recipe, note="")
    if recipe.precision == "auto":
        recipe = replace(recipe, precision="bf16" if has_bf16(device) else "fp32")
    if recipe.micro_batch == AUTO:
        small = device.type == "cpu" and recipe.freeze_bn and not recipe.compile
        recipe = replace(recipe, micro_batch=8 if small else 0)
    return normalised(recipe)


def unresolved(recipe: Recipe) -> Recipe:
    """A resolved recipe with mean and std left to `resolve` again, for one that is derived from it."""
    plain = Augment()
    augment = replace(recipe.augment, mean=plain.mean, std=plain.std)
    return replace(recipe, augment=augment) if recipe.normalise else recipe


def begin(context: TrainContext, options: TrainOptions, used: dict[str, str], fresh: bool) -> None:
    """Write down what the run depends on, or what changed. fresh: it does not go on from a checkpoint."""
    if fresh:
        distributed.broadcast_from_main(lambda: start_run(context, used))
        if context.recipe.phases:
            print(context.training.plan.why, flush=True)
    else:
        distributed.broadcast_from_main(lambda: resume_run(context, options, used))
        restore_best(context)
    distributed.on_main(write_corrupt, context)


def start_run(context: TrainContext, used: dict[str, str]) -> None:
    """Write down what the run depends on, and draw what it will do."""
    clear_results(context.run)
    resume.write_description(context.run, asdict(context.recipe), context.pack.summary(), used)
    with context.pack.naming_corrupt(context.pack.ids("train")):  # not those of a few pictures alone
        draw_pictures(context)


def resume_run(context: TrainContext, options: TrainOptions, used: dict[str, str]) -> None:
    """Say where the run goes on, and write down what was forced to change."""
    folder, state, pack = context.run, context.state, context.pack
    drop_later_rows(folder, state)
    going = not state.is_over(context.recipe.epochs, context.recipe.patience)
    if going:
        resume.clear_end(folder)
    if {"recipe", "pack"} & set(options.force):
        resume.invalidate_best(folder, note)
    longer = own_recipe(folder.folder).epochs < context.recipe.epochs
    if longer or not is_own(pack, folder):
        # Before pack.json and recipe.json are replaced: last.ckpt counts images and epochs of theirs.
        context.saver.save_last(state)
        context.saver.wait()
    if options.force:
        resume.record_forced(folder, asdict(context.recipe), pack.summary(), used, state.epoch, note)
    done, count = state.images, len(context.training.ids)
    place = f"in epoch {state.epoch}, after {done} of {count} images" if going else "after the last epoch"
    averages = context.recipe.averaging.steps and not (folder.folder / SWA).exists()
    print(f"resumed {place}" if going or averages else "this run is finished: nothing is left", flush=True)


def restore_best(context: TrainContext) -> None:
    """Go on from best.ckpt's own score: last.ckpt may be older. A score of -inf is measured again."""
    state = context.state
    content = distributed.broadcast_from_main(lambda: resume.find_best(context.run, note))
    state.best = content["score"] if content else -math.inf
    if state.best > -math.inf:
        return
    state.top = -math.inf  # which may be a score of the recipe before
    if content is None:
        return
    network = deepcopy(state.network)
    load_network(network, content, context.run.folder / BEST)
    result = context.validate(network, "validating best.ckpt again")
    state.top = score(result, context.recipe.select)
    context.saver.save_last(state)  # before best.ckpt: until that has a score, it is measured again
    context.saver.save_best(state, content | result | {"score": state.top})
    context.saver.wait()


def write_corrupt(context: TrainContext) -> None:
    """corrupt.json: images replaced in training or left out of validation; no file where there are none."""
    found = {"replaced": context.training.corrupt_rows(), "left_out": context.validation.corrupt_rows()}
    if any(found.values()):
        context.run.write(CORRUPT, found)
    else:
        (context.run.folder / CORRUPT).unlink(missing_ok=True)


def draw_pictures(context: TrainContext) -> None:
    """lr.png, the learning rate over the epochs, and augmented.png, what the network will see."""
    recipe, pack, folder = context.recipe, context.pack, context.run.folder
    augment, epochs = recipe.augment, recipe.epochs
    if epochs:
        places = np.linspace(0, epochs, 1000).tolist()
        rates = [recipe.lr_at(place, 1 / len(context.training)) for place in places]
        figures.learning_rate(folder / "lr.png", places, rates)
    ids = pack.ids("train")
    ids = ids[:: max(1, len(ids) // 6)][:6]
    columns, shown = [], min(5, epochs)
    for view, count in ((augment.centre(), 1), (augment, shown))[: 1 + (shown > 0)]:
        with Loader(
            pack, view, ids, context.resources, batch_size=len(ids), seed=recipe.seed, epochs=count
        ) as loader:
            columns += [augment.to_pixels(batch.images.numpy(force=True)) for batch in loader]
    captions = ["evaluation", *(f"epoch {epoch}" for epoch in range(shown))] if shown else [""] * len(ids)
    figures.image_sheet(folder / "augmented.png", np.stack(columns, axis=1 if shown else 0), captions)
