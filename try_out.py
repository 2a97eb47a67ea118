"""What begins no run: `--dry-run`, `--find-lr` and `--verify-determinism`.

Before it: `begin` has opened a training, and train hands over its steps. After it: lines, and the range
test's curve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from greyhound.model import dry_run, lr_range
from greyhound.model.checkpoint import fingerprint
from greyhound.model.report import figures
from greyhound.model.run import FIND_LR, FIND_LR_PICTURE, RunError
from greyhound.model.run_lock import run_lock
from greyhound.pipelines.loader import Clock
from greyhound.recipe import Recipe, TrainOptions
from greyhound.session import TrainContext, open_state, open_training

TrainEpoch: TypeAlias = Callable[[TrainContext, nn.Module, int], Clock]
"""`train.train_epoch`, for some steps of it."""
FitHead: TypeAlias = Callable[[TrainContext], dict[str, Any]]
"""`train.fit_head`."""


def try_out(context: TrainContext, options: TrainOptions, fit_head: FitHead, train_epoch: TrainEpoch) -> int:
    """A dry run's lines, a range test, or the same steps twice: 1 if they came to other weights, else 0.

    Raises RunError, Stopped.
    """
    recipe, network = context.recipe, context.state.network
    described = f"{recipe.network}, {recipe.precision}"
    if not (options.dry_run or recipe.phases):
        flag = "--find-lr" if options.find_lr else "--verify-determinism"
        raise RunError(f"{flag} takes steps, and this recipe has no epochs; add --epochs 1")
    if options.find_lr:
        with run_lock(context.run):  # before the long part: `out` may be in use, or unwritable
            fit_head(context)
            find_lr(context, train_epoch)
        return 0
    if not options.dry_run:
        again = open_state(context.recipe, len(context.pack.classes), context.state.device, 0.0)
        hashes = []
        for state in (context.state, again):
            torch.manual_seed(context.recipe.seed)  # dropout draws the same numbers both times
            with open_training(context.recipe, context.pack, context.resources) as training:
                take_steps(
                    train_epoch, replace(context, state=state, training=training), dry_run.REPEATED_STEPS
                )
            hashes.append(fingerprint(state.network.state_dict()))
        same, line = dry_run.compare(hashes)
        print(line)
        return 0 if same else 1
    if recipe.linear_probe:
        counts = [len(context.pack.ids(split)) for split in ("train", "val")]
        print(dry_run.estimate_probe(network, recipe.augment.size, recipe.bf16, counts))
    if not recipe.phases:
        return 0
    training, steps = context.training, recipe.averaging.steps
    memory = dry_run.measure_memory(network, recipe.augment.size, recipe.bf16, recipe.freeze_bn)
    seconds = take_steps(train_epoch, context, dry_run.TIMED_STEPS)
    passes = steps + (not recipe.freeze_bn) if steps else 0
    extent = recipe.micro_batch or recipe.batch_size, len(training), recipe.epochs, passes
    print("\n".join([*dry_run.estimate(described, memory, seconds, *extent), training.plan.why]))
    return 0


def take_steps(train_epoch: TrainEpoch, context: TrainContext, steps: int) -> list[float]:
    """Train so many steps, across epochs, and write nothing; the seconds of each without waiting for data."""
    model, seconds = context.compiled(), []
    for _ in range(steps):
        clock = train_epoch(context, model, 1)
        seconds.append(clock.seconds() - clock.data_time)
    return seconds


@dataclass(frozen=True)
class _Ramp(Recipe):
    """A recipe whose learning rate is the range test's."""

    steps: int = 1
    """Of an epoch."""

    def lr_at(self, epoch: float, step: float = 0.0) -> float:
        """Of a step; see `lr_range.rate_at`."""
        return lr_range.rate_at(epoch * self.steps)


def find_lr(context: TrainContext, train_epoch: TrainEpoch) -> None:
    """The range test from where training would start; find-lr.json and find-lr.png, and what they suggest.

    Raises RunError, Stopped.
    """
    state, training = context.state, context.training
    ramp = _Ramp(**vars(context.recipe), steps=len(training))
    ramped, model = replace(context, recipe=ramp), context.compiled()
    rates, losses = list[float](), list[float]()
    while len(losses) < lr_range.STEPS and lr_range.usable(losses) == len(losses):
        total, seen = state.loss_sum, training.images_done
        train_epoch(ramped, model, 1)
        losses.append((state.loss_sum - total) / (training.images_done - seen))
        rates.append(state.optimizer.param_groups[0]["lr"])
    count, rate = lr_range.usable(losses), float(f"{lr_range.suggest(rates, losses):.2g}")
    rule = lr_range.RULE if count < len(losses) else lr_range.NEVER
    rates, losses, run = rates[:count], losses[:count], context.run
    if not count:
        raise RunError("the loss is not finite from the first step on, so there is no learning rate to find")
    means = lr_range.smoothed(losses)
    found = {"suggested": rate, "rates": rates, "losses": losses, "smoothed": means}
    run.write(
        FIND_LR, found | {"of": lr_range.depends_on(asdict(context.recipe), context.pack.header.digest)}
    )
    figures.loss_over_rate(run.folder / FIND_LR_PICTURE, rates, losses, means, rate)
    print(
        f"range test: {count} steps at rates from {rates[0]:.2g} to {rates[-1]:.2g}; "
        f"the smoothed loss went from {means[0]:.3g} to {min(means):.3g}, and ended at {means[-1]:.3g}\n"
        f"suggested: --lr {rate:g}, {rule}; this is a guess, and the recipe has "
        f"{max(phase.high for phase in ramp.phases):g}\n"
        f"picture: {run.folder / FIND_LR_PICTURE}\n"
        f"next: the same command with --lr {rate:g} in place of --find-lr"
    )
