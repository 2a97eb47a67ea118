"""Train: a pack and a recipe in, a run folder out.

    greyhound train fast --pack dogs.arrow --out runs/dogs

Before it: `greyhound pack`. After it: eval and explain, which read the run folder. From top to bottom: open, fit the
linear probe, train epoch by epoch, interpolate and average weights, report.
"""

from __future__ import annotations

import os
import signal
import sys

from greyhound.cache.options import read_or_exit
from greyhound.recipe import TrainOptions, read_options

if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback; `run` takes over. --help and a slip are answered before them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    OPTIONS = read_or_exit(lambda: read_options(sys.argv[1:]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from greyhound.begin import restore_best, resume_run, start_run, write_damaged
from greyhound.cache.command import Stop, Stopped, note, run, stop_signals
from greyhound.cache.store import Pack
from greyhound.model import averaging, distributed, dry_run, linear_probe, precision, report
from greyhound.model.checkpoint import CheckpointError, fingerprint, load, save
from greyhound.model.linear_probe import SoftTargets
from greyhound.model.network import pretrained_head, set_train_mode
from greyhound.model.precision import forward, fuse_conv_bn
from greyhound.model.run import (
    AVERAGED,
    INTERPOLATION,
    PACK,
    PROBE,
    PROBE_WEIGHTS,
    RECIPE,
    SWA,
    TARGETS,
    Run,
    RunError,
    load_network,
    refuse_other_content,
    run_lock,
)
from greyhound.model.schedule import lr_at, total_epochs
from greyhound.model.state import NEVER, CheckpointSaver, restore, scored
from greyhound.model.step import (
    Divergence,
    check_averaging,
    check_finite,
    clip_gradient,
    ddp_loss_weight,
    mean_loss,
    refuse,
    set_lr,
    smoothed_cross_entropy,
    validate,
)
from greyhound.pipelines.clock import Clock
from greyhound.pipelines.loader import Loader, Position
from greyhound.pipelines.order import first_looks
from greyhound.session import (
    TrainContext,
    open_device,
    open_evaluation,
    open_loaders,
    open_new_run,
    open_old_run,
    open_pack,
    open_state,
    open_targets,
    open_training,
    open_versions,
)


def main(options: TrainOptions) -> int:
    """Train, and say how to go on where a signal ended it. The exit code."""
    size = "the run's batch size" if options.resume else f"batch size {options.recipe.batch_size}"
    remedy = "lower --batch-size, or add --activation-checkpointing; --dry-run says what fits"
    with stop_signals() as stop, dry_run.refusing_out_of_memory(size, remedy):
        try:
            return train(options, stop)
        except Stopped as stopped:
            print(f"stopped {stopped}; the same command with --resume goes on", file=sys.stderr)
            return 128 + (stop() or signal.SIGTERM)


def train(options: TrainOptions, stop: Stop) -> int:
    """The whole flow. The exit code."""
    started = time.perf_counter()
    engine, name, device = open_device(options.resources)
    with distributed.process_group(device) as restarted, ExitStack() as stack:
        options = on_this_rank(options, restarted, device)
        pack = open_pack(distributed.broadcast_from_main(lambda: pack_path(options)), options.resources)
        used = open_versions(engine, name, device)
        if options.resume and not options.writes_nothing and (options.out / RECIPE).exists():
            distributed.broadcast_from_main(lambda: stack.enter_context(run_lock(Run(options.out))))
        recipe, folder, content = distributed.broadcast_from_main(
            lambda: open_run(options, pack, device, used)
        )
        # A dry run asks how much the weights take, not what they are.
        pretrained = content is None and not options.dry_run
        state = open_state(recipe, len(pack.classes), device, started, pretrained)
        if content is not None:
            restore(folder, content, state)
            state.targets = open_targets(recipe, folder, pack, device)
            if folder.read(PACK)["digest"] != pack.header.digest:
                state.restart_epoch()
        distributed.seed_per_rank()
        start = Position(state.epoch, state.images)
        with (
            open_loaders(recipe, pack, options.resources, start) as (training, validation),
            CheckpointSaver(folder, **asdict(options.checkpoints)) as saver,
        ):
            context = TrainContext(
                recipe,
                options.resources,
                folder,
                state,
                training,
                validation,
                saver,
                distributed.any_rank(stop),
            )
            if options.writes_nothing:
                return try_out(context, options.dry_run)
            if not options.resume:
                distributed.broadcast_from_main(lambda: stack.enter_context(run_lock(folder)))
                distributed.broadcast_from_main(
                    lambda: refuse_other_content(options.out)
                )  # another start may have come first
            if content is None:
                distributed.broadcast_from_main(lambda: start_run(context, used))
                print(training.plan.why, flush=True)
                probe(context)
            else:
                distributed.broadcast_from_main(lambda: resume_run(context, options, used))
                restore_best(context)
            distributed.on_main(write_damaged, context)
            fit(context)
            interpolate_weights(context)
            average_weights(context)
    distributed.on_main(lambda: print(f"report: {report.build(folder.folder)}"))
    return 0


def on_this_rank(options: TrainOptions, restarted: bool, device: torch.device) -> TrainOptions:
    """The options with this rank's share of the machine. restarted: torchrun starts a run again that had begun.

    Raises RunError where several processes cannot do what is asked.
    """
    several = distributed.world_size() > 1
    if several and options.writes_nothing:
        raise RunError("--dry-run and --verify-determinism are for one process; start them without torchrun")
    if several and options.recipe.sync_batchnorm and device.type != "cuda":
        raise RunError("--sync-batchnorm needs GPUs; leave it out, or add --freeze-bn")
    if several and options.recipe.sync_batchnorm and options.recipe.compile:
        raise RunError(
            "--compile is tried by each process alone, and --sync-batchnorm needs all; leave one out"
        )
    if restarted and distributed.broadcast_from_main((options.out / RECIPE).exists):
        options = replace(options, resume=True)
    return replace(options, resources=options.resources.shared(distributed.local_world_size()))


def pack_path(options: TrainOptions) -> Path:
    """The pack that is named, or that the run to resume was trained on. Raises RunError."""
    if options.pack is None and not options.resume:
        raise RunError("a training needs a pack: --pack PACK, made by: greyhound pack IMAGES --out PACK")
    return options.pack or Path(Run(options.out).read(PACK)["path"])


def open_run(
    options: TrainOptions, pack: Pack, device: torch.device, used: dict[str, str]
) -> tuple[Any, Run, dict[str, Any] | None]:
    """The resolved recipe, the run folder, and the checkpoint to go on from. Raises RunError, CheckpointError."""
    if not options.resume:
        return *open_new_run(options.out, options.recipe, device), None
    repair = not options.writes_nothing
    return open_old_run(options.out, options.recipe, pack, device, used, options.force, repair)


def probe(context: TrainContext) -> None:
    """Linear probing, then fine-tuning (Kumar et al. 2022): a random head would first spoil the features.

    The body is frozen, so every image passes it once, also those that validate a head.
    """
    recipe, state, pack, network = context.recipe, context.state, context.pack, context.state.network
    if not recipe.linear_probe:
        return
    inference = fuse_conv_bn(network, recipe.augment.size)
    held_out = features(context, inference, context.validation, "features of the validation images")[:2]
    pretrained = pretrained_head(network, recipe.network, recipe.weights)
    seen: list[tuple[torch.Tensor, ...]] = []
    results: list[dict[str, Any]] = []
    for ids in first_looks(pack.ids("train"), pack.labels, recipe.seed, recipe.probe_shots):
        with open_evaluation(recipe, pack, context.resources, ids, epochs=1) as loader:
            parts = features(context, inference, loader, "features of the training images")
            seen.append(tuple(map(distributed.gather, parts)))
        found, rows = distributed.broadcast_from_main(
            lambda: linear_probe.solve_all(network, seen, pretrained)
        )
        distributed.broadcast(linear_probe.classifier(network).parameters())
        result = validate(linear_probe.classifier(network), [held_out], recipe.bf16)
        result |= {"images": len(rows), "elapsed": state.tick()}
        print(
            f"linear probe: {len(rows)} images, {found}; {say(result)}, {result['elapsed']:.0f} s after the start",
            flush=True,
        )
        results.append(result)
    if recipe.interpolation:
        distributed.on_main(save, context.run.folder / PROBE_WEIGHTS, {"network": network.state_dict()})
    context.saver.save_best(state, scored(state.result, results[-1], recipe.select, "the linear probe"))
    context.saver.wait()
    if recipe.distillation:
        soft = SoftTargets(rows, found.probabilities, recipe.distillation)
        distributed.on_main(
            linear_probe.write_targets, context.run.folder / TARGETS, soft, pack.header.digest
        )
        state.targets = soft.to(held_out[0].device)
    context.run.write(PROBE, results[-1] | {"first": results[0] if len(results) > 1 else None})


def features(
    context: TrainContext, inference: nn.Module, loader: Loader, title: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, labels and rows of this rank's share of the images. Raises Stopped."""
    rows: list[torch.Tensor] = []
    batches = record_ids(context.with_progress(title, loader), rows)
    found = linear_probe.features(inference, batches, context.recipe.bf16)
    return *found, torch.cat(rows)


def record_ids(
    batches: Iterable[Batch], rows: list[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of the batches; the rows of the pack that they are of are added to `rows`."""
    for batch in batches:
        rows.append(batch.ids)
        yield batch.flat()


def fit(context: TrainContext) -> None:
    """Train through every phase. After each epoch validate, and write log, checkpoints and report beside the next."""
    recipe, state = context.recipe, context.state
    model = distributed.data_parallel(compiled(context))
    try:
        while state.epoch < total_epochs(recipe.phases) or state.trained:
            if state.trained is None:
                epoch = state.epoch
                state.trained = epoch_row(context, epoch, train_epoch(context, model))
            distributed.broadcast(state.result.buffers())  # BatchNorm's statistics are each rank's own
            result = context.validate(state.result, f"validating epoch {state.trained['epoch']}")
            end_epoch(context, state.trained | result | {"elapsed": state.tick()})
    except Stopped:
        if state.trained is None:
            state.flush()
        raise_if_diverged(context)
        context.saver.save_last(state)
        distributed.broadcast_from_main(context.saver.wait)
        raise


def train_epoch(context: TrainContext, model: nn.Module, steps: int | None = None) -> Clock:
    """Train to the end of the epoch, or for at most `steps` steps. `context.state` follows after every step.

    model: the state's network as it is called, compiled or wrapped for several ranks. Nothing here reads a value from
    the device, except `flush`: losses add up there. Returns what measured the time. Raises Stopped, RunError.
    """
    recipe, state, loader, clock = context.recipe, context.state, context.training, Clock()
    set_train_mode(state.network, recipe.freeze_bn)
    loss_fn = smoothed_cross_entropy(recipe.label_smoothing, len(loader.pack.classes))
    state.begin_epoch()
    batches = context.with_progress(f"training epoch {state.epoch}", loader, clock, state.images)
    for batch in islice(batches, steps):
        images, targets = context.examples(batch)
        set_lr(state.optimizer, lr_at(recipe.phases, state.epoch + state.images / len(loader.ids)))
        # Before the forward pass: a CUDA graph's gradients are memory that the next call writes to.
        state.optimizer.zero_grad(set_to_none=True)
        loss = mean_loss(loss_fn, forward(model, images, recipe.bf16), targets)
        (loss * ddp_loss_weight(len(batch.ids), batch.whole)).backward()  # type: ignore[no-untyped-call]
        clip_gradient(model, recipe.clip_norm)
        state.optimizer.step()
        if state.ema:
            state.ema.update(state.network)
        state.record(loss.detach(), len(batch.ids), loader.position.epoch, loader.position.images)
        if context.saver.should_save() and state.images:
            state.flush()
            raise_if_diverged(context)
            context.saver.save_last(state)
    state.flush()
    return clock


def epoch_row(context: TrainContext, epoch: int, clock: Clock) -> dict[str, Any]:
    """The row of metrics of an epoch that is trained. Raises RunError if its loss was not finite."""
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
        "replaced": len(context.training.damaged),
        "images_per_second": clock.images / seconds,
        "waiting": clock.waiting / seconds,
        "seconds": state.seconds,
    }
    state.loss_sum = state.seconds = 0.0
    return row


def end_epoch(context: TrainContext, row: dict[str, Any]) -> None:
    """Say how the epoch went, and have it written beside the next one. Raises RunError, CheckpointError."""
    recipe, state, saver = context.recipe, context.state, context.saver
    distributed.broadcast_from_main(lambda: check_finite(row, max(phase.high for phase in recipe.phases)))
    print(epoch_line(row), flush=True)
    saver.wait()  # one copy of the checkpoints is in memory and no more
    saver.later(context.run.add_epoch, row)
    saver.save_best(state, scored(state.result, row, recipe.select, f"epoch {row['epoch']}"))
    state.trained = None
    raise_if_diverged(context)
    saver.save_last(state)
    saver.later(rebuild_report, context.run)


def raise_if_diverged(context: TrainContext) -> None:
    """Stop where the loss of a batch was not finite: at which step and rate, and on which images. Raises RunError."""
    if context.state.diverged != NEVER:
        distributed.broadcast_from_main(lambda: explain_divergence(context))


def explain_divergence(context: TrainContext) -> None:
    """Decode the batch again, and write down what is known of it. Raises RunError."""
    recipe, state, training = context.recipe, context.state, context.training
    with training.again(Position(state.epoch, state.diverged)) as loader:
        batch = next(iter(loader))
    rows = batch.ids.tolist()
    found = Divergence(
        epoch=state.epoch,
        images=state.diverged,
        learning_rate=lr_at(recipe.phases, state.epoch + state.diverged / len(training.ids)),
        rows=rows,
        paths=[training.pack.image_path(row) for row in rows],
    )
    pixels = recipe.augment.to_pixels(batch.flat()[0].numpy(force=True))
    refuse(context.run, found, pixels, len(training.ids))


def compiled(context: TrainContext) -> nn.Module:
    """The network as a step calls it: compiled where the recipe says so and every rank can."""
    recipe, network = context.recipe, context.state.network
    if not recipe.compile:
        return network
    set_train_mode(network, recipe.freeze_bn)
    counts = [images * recipe.views for images in context.training.batch_sizes()]
    called, why = precision.compiled(network, counts, recipe.augment.size, recipe.bf16)
    if not distributed.all_reduce_max(bool(why)):
        return called
    distributed.on_main(note, why or "not compiled: another process cannot; the step runs as it is")
    return network


def interpolate_weights(context: TrainContext) -> None:
    """Validate networks between the linear probe's and the trained one; interpolation.json, perhaps best.ckpt."""
    recipe, folder, state = context.recipe, context.run, context.state
    if not recipe.interpolation or distributed.broadcast_from_main((folder.folder / INTERPOLATION).exists):
        return
    probed, found = deepcopy(state.result), []
    content = distributed.broadcast_from_main(lambda: find_probe(folder, probed))
    if content is None:
        return
    load_network(probed, content, folder.folder / PROBE_WEIGHTS)
    for step in range(1, recipe.interpolation + 1):
        share = step / (recipe.interpolation + 1)
        between, way = (
            averaging.interpolated(probed, state.result, share),
            f"{share:.0%} of the way from the linear probe",
        )
        result = context.validate(between, f"validating {way}") | {"share": share}
        result["elapsed"] = state.tick()
        print(f"interpolation: {way}, {say(result)}", flush=True)
        found.append(result)
        context.saver.save_best(state, scored(between, result, recipe.select, way))
        context.saver.wait()
    folder.write(INTERPOLATION, found)


def find_probe(folder: Run, network: nn.Module) -> dict[str, Any] | None:
    """probe.ckpt; None, and a note, where it cannot be used: what was trained is worth having without it."""
    path = folder.folder / PROBE_WEIGHTS
    try:
        content = load(path)
        load_network(network, content, path)
        return content
    except (CheckpointError, RunError) as error:
        note(f"{error}; nothing between the linear probe and the end is validated")
        return None


def average_weights(context: TrainContext) -> None:
    """Stochastic weight averaging, from the end of training; swa.ckpt and swa.json, before and after."""
    recipe, folder, network = context.recipe, context.run, context.state.result
    if not recipe.averaging.steps or distributed.broadcast_from_main((folder.folder / SWA).exists):
        return
    started = time.perf_counter()
    before = context.validate(network, "validating before averaging")

    def on_step(step: int, loss: float) -> None:
        distributed.broadcast_from_main(lambda: check_averaging(loss, recipe.averaging.rate))
        print(f"averaging: step {step}, train loss = {loss:.9f}", flush=True)

    averaged = averaging.average(
        network,
        lambda: map(context.examples, context.with_progress("averaging", context.training)),
        len(context.training.ids) * recipe.views,
        smoothed_cross_entropy(recipe.label_smoothing, len(context.pack.classes)),
        recipe.averaging.rate,
        recipe.averaging.steps,
        forward=lambda network, images: forward(network, images, recipe.bf16),
        freeze_bn=recipe.freeze_bn,
        on_step=on_step,
    )
    after = context.validate(averaged, "validating after averaging")
    distributed.broadcast_from_main(lambda: check_averaging(after["valid_loss"], recipe.averaging.rate))
    after["elapsed"] = context.state.tick()
    written = asdict(recipe.averaging) | {
        "seconds": time.perf_counter() - started,
        "before": before,
        "after": after,
    }
    distributed.on_main(save, folder.folder / AVERAGED, scored(averaged, after, recipe.select, "averaging"))
    folder.write(SWA, written)
    print(f"averaging: before, {say(before)}\naveraging: after, {say(after)}")


def try_out(context: TrainContext, dry: bool) -> int:
    """A dry run's lines; or the same steps twice, and 1 if they came to other weights, else 0."""
    if not dry:
        again = open_state(context.recipe, len(context.pack.classes), context.state.device, 0.0)
        hashes = []
        for state in (context.state, again):
            with open_training(context.recipe, context.pack, context.resources) as training:
                take_steps(replace(context, state=state, training=training), dry_run.REPEATED_STEPS)
            hashes.append(fingerprint(state.network.state_dict()))
        same, line = dry_run.compare(hashes)
        print(line)
        return 0 if same else 1
    recipe, training, steps = context.recipe, context.training, context.recipe.averaging.steps
    copies = dry_run.COPIES + (recipe.ema > 0)
    memory = dry_run.measure_memory(
        context.state.network, recipe.augment.size, recipe.bf16, recipe.freeze_bn, copies
    )
    extent = dry_run.Extent(
        network=recipe.network,
        precision=recipe.precision,
        batch_size=recipe.batch_size,
        steps=len(training),
        epochs=total_epochs(recipe.phases),
        passes=steps + (not recipe.freeze_bn) if steps else 0,
    )
    seconds = take_steps(context, dry_run.TIMED_STEPS)
    print("\n".join([*dry_run.estimate(extent, memory, seconds), training.plan.why]))
    return 0


def take_steps(context: TrainContext, steps: int) -> list[float]:
    """Train for so many steps, across epochs, and write nothing; the seconds of each, waiting for data left out."""
    model, seconds = compiled(context), []
    for _ in range(steps):
        clock = train_epoch(context, model, 1)
        seconds.append(clock.seconds() - clock.waiting)
    return seconds


def say(result: dict[str, Any]) -> str:
    """A validation in the seed's words."""
    return f"valid loss = {result['valid_loss']:.9f}, acc = {result['accuracy']:.3f}"


def epoch_line(row: dict[str, Any]) -> str:
    """The epoch in the seed's form."""
    return f"epoch: {row['epoch']}, train loss = {row['train_loss']:.9f}, {say(row)}, time: {row['seconds']:.6f} sec"


def rebuild_report(folder: Run) -> None:
    """The report so far. A report that cannot be built must not end a training."""
    try:
        report.build(folder.folder)
    except report.ReportError as error:
        note(f"no report yet: {error}")


if __name__ == "__main__":
    run(distributed.reporting(lambda: main(OPTIONS)))
