"""Train: a pack and a recipe in, a run folder out.

    greyhound train fast --pack dogs.arrow --out runs/dogs

Before it: `greyhound pack`. After it: eval and explain, which read the run folder. From top to bottom: open,
fit the linear probe, train epoch by epoch, average weights, report.
"""

from __future__ import annotations

import os
import signal
import sys

from greyhound.cache.cli import Stop, Stopped, end_quietly, note, read_or_exit, run, stop_signals
from greyhound.recipe import TrainOptions, read_options

if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback; `run` takes over. --help is answered before them.
    end_quietly()
    OPTIONS = read_or_exit(lambda: read_options(sys.argv[1:]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import time
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from greyhound.begin import opened
from greyhound.divergence import raise_if_diverged
from greyhound.model import averaging, distributed, linear_probe, metrics, step
from greyhound.model.network import GridFeatures, GridNetwork, pretrained_head, set_train_mode
from greyhound.model.precision import forward, fuse_conv_bn
from greyhound.model.report import report, stages
from greyhound.model.run import AVERAGED, EVALUATION, METRICS, PACK, PROBE, SWA, Run, RunError
from greyhound.model.state import NEVER, score, scored
from greyhound.model.step import ddp_loss_weight, mean_loss, micro_batches, set_lr
from greyhound.pipelines.loader import Clock
from greyhound.session import TrainContext, open_evaluation, open_optimizer
from greyhound.try_out import try_out


def main(options: TrainOptions) -> int:
    """Train, and say how to go on where a signal ended it. The exit code."""
    with stop_signals() as stop:
        try:
            if options.sweep:
                from greyhound.sweep import sweep

                return sweep(options, stop, partial(train, several=True))
            if options.folds:
                from greyhound.folds import cross_validate

                return cross_validate(options, stop, partial(train, several=True))
            return train(options, stop)
        except Stopped as stopped:
            more = "" if options.starts_no_run else "; the same command with --resume goes on"
            print(f"stopped {stopped}{more}", file=sys.stderr)
            return 128 + (stop() or signal.SIGTERM)


def train(options: TrainOptions, stop: Stop, several: bool = False) -> int:
    """The whole flow. The exit code. several: other trainings of the same command decide what comes next."""
    with opened(options, stop) as (context, fresh):
        if options.starts_no_run:
            return try_out(context, options, fit_head, train_epoch)
        if fresh:
            probe(context)
        fit(context)
        average_weights(context)
        distributed.broadcast_from_main(context.saver.wait)  # it may be writing the report of the last epoch
        distributed.on_main(conclude, context, several)
    return 0


def conclude(context: TrainContext, several: bool) -> None:
    """What each stage brought, what the kept weights reach, the report, and the command that comes next."""
    folder, classes, recipe = context.run.folder, len(context.pack.classes), context.recipe
    reached, rows = report.reached(folder), context.run.rows(METRICS)
    stopped = stages.say_stopped(rows, recipe.patience, recipe.epochs, recipe.select)
    for said in filter(None, (stopped, stages.say_stages(reached, recipe.select))):
        print(said)
    if kept := stages.with_interval(reached):
        print(f"validation: acc = {kept['accuracy']:.3f} ({metrics.say_interval(kept, classes)})")
    print(f"report: {report.build(folder)}")
    if not several:
        print(f"next: {report.command(folder, EVALUATION, pack=report.read(folder, PACK))}")


def probe(context: TrainContext) -> None:
    """Fit the head where the recipe does so, and write down what it reaches."""
    if result := fit_head(context):
        state, after = context.state, f"a linear probe of {result['images']} images"
        context.run.write(PROBE, result)
        context.saver.save_best(state, scored(state.network, result, context.recipe.select, after))
        state.top = state.best
        context.saver.save_last(state)
        context.saver.later(context.follow)


def fit_head(context: TrainContext) -> dict[str, Any]:
    """Fit the head to the features of the frozen network. It may become a wider one, with a new optimizer.

    What it reaches on the validation split; nothing where the recipe has no linear probe. Raises Stopped.
    """
    recipe, state, pack, network = context.recipe, context.state, context.pack, context.state.network
    if not recipe.linear_probe:
        return {}
    feature_network, weights = GridFeatures(network, recipe.probe_grids), context.training.weights
    started = time.perf_counter()
    features, labels, ids = training_features(context, feature_network)
    computed = time.perf_counter()
    solution, head = distributed.broadcast_from_main(
        lambda: linear_probe.solve(
            features,
            labels,
            ids,
            len(pack.classes),
            feature_network.columns(),
            pretrained_head(network, recipe.network, recipe.weights),
            None if weights is None else torch.from_numpy(weights)[ids],
        )
    )
    if solution.grid:
        state.network = GridNetwork(network, solution.grid, len(pack.classes)).to(state.device)
        state.optimizer = open_optimizer(recipe, state.network)
    linear_probe.set_head(state.network, head)
    fitted = time.perf_counter()
    result = context.validate(state.network, "validating the linear probe")
    result |= {"images": len(ids), "elapsed": state.tick(), "grid": solution.grid}
    result |= {"penalty": solution.penalty, "from_pretrained": solution.from_pretrained}
    spent = {"features": computed - started, "fit": fitted - computed}
    result["seconds"] = spent | {"validation": time.perf_counter() - fitted}
    line = f"linear probe: {len(ids)} images, {solution}; {say(result)}"
    print(f"{line}, {result['elapsed']:.0f} s after the start", flush=True)
    return result


def training_features(context: TrainContext, network: nn.Module) -> tuple[torch.Tensor, ...]:
    """`linear_probe.features` of the training images of all ranks. Raises Stopped."""
    recipe, ids = context.recipe, context.pack.ids("train")
    inference = fuse_conv_bn(network, recipe.augment.size)
    with open_evaluation(recipe, context.pack, context.resources, ids, epochs=1) as loader:
        batches = context.with_progress("computing features of the training images", loader)
        examples = ((*batch.flat(), batch.ids) for batch in batches)
        return tuple(map(distributed.gather, linear_probe.features(inference, examples, recipe.bf16)))


def fit(context: TrainContext) -> None:
    """Train through every phase. After each epoch validate, and write log, checkpoints and report."""
    recipe, state = context.recipe, context.state
    if state.is_over(recipe.epochs, recipe.patience):
        return
    model = distributed.data_parallel(context.compiled())
    try:
        while not state.is_over(recipe.epochs, recipe.patience):
            if state.trained is None:
                epoch = state.epoch  # training moves it on
                state.trained = epoch_row(context, epoch, train_epoch(context, model))
            distributed.broadcast(state.network.buffers())  # BatchNorm's statistics are each rank's own
            result = context.validate(state.network, f"validating epoch {state.trained['epoch']}")
            end_epoch(context, state.trained | result | {"elapsed": state.tick()})
    except Stopped:
        if state.trained is None:
            state.flush()
        save_midway(context)
        distributed.broadcast_from_main(context.saver.wait)
        raise


def train_epoch(context: TrainContext, model: nn.Module, steps: int | None = None) -> Clock:
    """Train to the end of the epoch, or for at most `steps` steps. `context.state` follows after every step.

    model: the state's network as it is called, compiled or wrapped for several ranks. Nothing here reads a
    value from the device, except `flush`: losses add up there. Returns what measured the time. Raises
    Stopped, RunError.
    """
    recipe, state, loader, clock = context.recipe, context.state, context.training, Clock(context.training)
    set_train_mode(state.network, recipe.freeze_bn)
    loss_fn = context.loss()
    state.begin_epoch(len(loader.ids), recipe.epochs)
    title = f"training epoch {state.epoch}"
    batches = context.with_progress(title, loader, clock, state.images, state.say_loss)
    for batch in islice(batches, steps):
        done, part = state.images / len(loader.ids), batch.global_batch_size / len(loader.ids)
        set_lr(state.optimizer, recipe.lr_at(state.epoch + done, part))
        # Before the forward pass: a CUDA graph's gradients are memory that the next call writes to.
        state.optimizer.zero_grad(set_to_none=True)
        total, examples = batch.global_batch_size, batch.examples()
        for images, labels, *rest in micro_batches(examples, recipe.micro_batch, total, recipe.views):
            loss = mean_loss(loss_fn, forward(model, images, recipe.bf16), labels, *rest)
            shared = loss * ddp_loss_weight(len(labels), total * recipe.views)
            shared.backward()  # type: ignore[no-untyped-call]
            state.record(loss.detach(), len(labels) / recipe.views)  # several views count as one image
        state.clip_gradients(recipe.max_grad_norm)
        state.optimizer.step()
        state.advance(loader.position.epoch, loader.position.images)
        if context.saver.should_save() and state.images:  # every rank asks; an epoch's end saves by itself
            state.flush()
            save_midway(context)
    state.flush()
    return clock


def save_midway(context: TrainContext) -> None:
    """steps.jsonl up to here, and then last.ckpt: a resumed training drops rows that come again."""
    raise_if_diverged(context)
    if context.state.images:
        context.saver.later(context.run.write_steps, context.state.epoch, context.state.steps())
    context.saver.save_last(context.state)
    context.saver.later(context.follow)


def epoch_row(context: TrainContext, epoch: int, clock: Clock) -> dict[str, Any]:
    """The row of metrics of an epoch that is trained. Raises RunError if a loss or gradient was no number."""
    state, images = context.state, len(context.training.ids)
    if state.diverged != NEVER:
        state.epoch = epoch  # where the batch is
    raise_if_diverged(context)
    seconds = clock.seconds()
    row = {
        "epoch": epoch,
        "train_loss": state.loss_sum / images,
        "learning_rate": max(group["lr"] for group in state.optimizer.param_groups),
        "weights_changed": state.changed(),
        "replaced": len(context.training.corrupt),
        "images_per_second": clock.images / seconds,
        "waiting": clock.data_time / seconds,
        "seconds": state.seconds,
    }
    state.loss_sum = state.seconds = 0.0
    return row


def end_epoch(context: TrainContext, row: dict[str, Any]) -> None:
    """Say how the epoch went; last.ckpt and the report are written beside the next one.

    Raises RunError, CheckpointError.
    """
    recipe, state, saver = context.recipe, context.state, context.saver
    distributed.broadcast_from_main(
        lambda: step.check_finite(row, max(phase.high for phase in recipe.phases), recipe.max_grad_norm)
    )
    print(epoch_line(row), flush=True)
    state.judge(score(row, recipe.select))
    row |= {"bad_epochs": state.bad_epochs} if recipe.patience else {}
    saver.wait()  # one copy of the checkpoints is in memory and no more
    saver.later(context.run.write_steps, row["epoch"], state.steps())
    saver.later(context.run.add_epoch, row)
    saver.save_best(state, scored(state.network, row, recipe.select, f"epoch {row['epoch']}"))
    state.trained, state.curve = None, []
    saver.save_last(state)
    saver.later(rebuild_report, context.run)
    saver.later(context.follow)


def average_weights(context: TrainContext) -> None:
    """Stochastic weight averaging, from the end of training; swa.ckpt and swa.json, before and after."""
    recipe, folder, network = context.recipe, context.run, context.state.network
    if not recipe.averaging.steps or distributed.broadcast_from_main((folder.folder / SWA).exists):
        return
    started = time.perf_counter()
    before = context.validate(network, "validating before averaging")

    def on_step(done: int, loss: float) -> None:
        distributed.broadcast_from_main(lambda: step.check_averaging(loss, recipe.averaging.rate))
        print(f"averaging: step {done}, train loss = {loss:.9f}", flush=True)

    averaged = averaging.average(
        network,
        lambda: (batch.examples() for batch in context.with_progress("averaging", context.training)),
        len(context.training.ids) * recipe.views,
        context.loss(),
        recipe.averaging.rate,
        recipe.averaging.steps,
        forward=lambda network, images: forward(network, images, recipe.bf16),
        freeze_bn=recipe.freeze_bn,
        on_step=on_step,
    )
    after = context.validate(averaged, "validating after averaging")
    distributed.broadcast_from_main(lambda: step.check_averaging(after["valid_loss"], recipe.averaging.rate))
    after["elapsed"] = context.state.tick()
    written = asdict(recipe.averaging) | {
        "seconds": time.perf_counter() - started,
        "before": before,
        "after": after,
    }
    folder.save(AVERAGED, scored(averaged, after, recipe.select, "averaging"))
    folder.write(SWA, written)
    print(f"averaging: before, {say(before)}\naveraging: after, {say(after)}")


def say(result: dict[str, Any]) -> str:
    """A validation in the original program's words."""
    return f"valid loss = {result['valid_loss']:.9f}, acc = {result['accuracy']:.3f}"


def epoch_line(row: dict[str, Any]) -> str:
    """The epoch in the original program's form."""
    losses = f"train loss = {row['train_loss']:.9f}, {say(row)}"
    return f"epoch: {row['epoch']}, {losses}, time: {row['seconds']:.6f} sec"


def rebuild_report(folder: Run) -> None:
    """The report so far. A report that cannot be built must not end a training."""
    try:
        report.build(folder.folder)
    except RunError as error:
        note(f"no report yet: {error}")


if __name__ == "__main__":
    run(lambda: main(OPTIONS))
