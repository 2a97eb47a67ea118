"""Train: a pack and a recipe in, a run folder out.

    python train.py fast --pack dogs.arrow --out runs/dogs

Before it: `python -m cache pack`. After it: `eval.py` and `explain.py`, which read the run folder. A recipe is a
value: another one is derived from it with `replace`, or on the command line by naming any of its fields.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cache.command import parse, progress_bar, run
from cache.store import Pack, PackError, Residency
from model import figures, head, report, swa
from model.checkpoint import CheckpointError, save
from model.loss import smoothed_cross_entropy
from model.network import WeightsError, build, normalisation, set_training
from model.precision import forward, has_bf16, use_fast_kernels
from model.run import AVERAGED, BEST, LAST, PACK, RECIPE, SWA, VERSIONS, Run, RunError, versions
from model.schedule import PAPER_PHASES, Phase, lr_at, total_epochs
from pipelines.augment import Augment
from pipelines.loader import (
    Batch,
    DeviceError,
    DeviceName,
    EngineName,
    Loader,
    Position,
    choose,
    torch_device,
)
from pipelines.request import BadImageError


@dataclass(frozen=True)
class Averaging:
    """Stochastic weight averaging after training: full-batch gradient steps at a fixed rate."""

    steps: int = 5
    """Steps; each needs the gradient of the whole training set. 0: no averaging."""
    rate: float = 1e-4
    """The fixed learning rate."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training computes; the defaults are the seed's, number by number."""

    name: tyro.conf.Suppress[str] = "paper"
    """Which recipe this started from."""
    network: str = "efficientnet_b2"
    """Any timm name."""
    weights: str = "auto"
    """auto: an installed package of weights, then timm's hub; none: random; or a file."""
    augment: Augment = field(default_factory=Augment)
    normalise: bool = False
    """Subtract and divide by what the pretrained weights expect (augment.mean and augment.std are then set)."""
    batch_size: int = 32
    """Images a step."""
    phases: tuple[Phase, ...] = PAPER_PHASES
    """The learning rate, phase by phase."""
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.1
    """1 - e on the true class, e / (K - 1) on each other one."""
    solve_head: bool = False
    """Before the first epoch, solve the last layer on the frozen features."""
    frozen_statistics: bool = False
    """Keep BatchNorm's statistics as the weights brought them; its scale and shift still learn."""
    averaging: Averaging = field(default_factory=Averaging)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the device has instructions for it: activations of 87.8 MiB an image instead of 160.7 (B2)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: 12.4 MiB kept an image instead of 160.7 (B2, 256 px, fp32)."""
    compile: bool = False
    """torch.compile the network."""
    seed: int = 0
    """The order of the images, their augmentation, and the new head's first weights."""
    note: tyro.conf.Suppress[str] = ""
    """Said beside every accuracy in the report."""

    def __post_init__(self) -> None:
        """Refuse numbers that no training could have."""
        checks = {
            f"batch_size is {self.batch_size}; expected at least 1": self.batch_size >= 1,
            f"momentum is {self.momentum}; expected 0 to below 1": 0 <= self.momentum < 1,
            f"weight_decay is {self.weight_decay}; expected 0 or more": self.weight_decay >= 0,
            f"label_smoothing is {self.label_smoothing}; expected 0 to below 1": 0
            <= self.label_smoothing
            < 1,
            f"averaging.steps is {self.averaging.steps}; expected 0 or more": self.averaging.steps >= 0,
            f"seed is {self.seed}; expected 0 to 2**63 - 1": 0 <= self.seed < 2**63,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16, once `resolve` has made the choice."""
        return self.precision == "bf16"


_PRETRAINED: Final = (
    "The network starts from ImageNet weights; where the images, or images like them, are part of ImageNet "
    "(Stanford Dogs is), it has seen them before."
)
PAPER: Final = Recipe(note=_PRETRAINED)
FAST: Final = replace(
    PAPER,
    name="fast",
    network="tf_efficientnet_lite2",
    augment=Augment(
        size=224,
        scale=(0.9, 1.3),
        rotation=10.0,
        shear=5.0,
        flip=0.5,
        brightness=0.15,
        contrast=0.15,
        saturation=0.15,
        hue=0.02,
    ),
    normalise=True,
    solve_head=True,
    frozen_statistics=True,
    phases=(Phase(epochs=2, high=5e-4, low=1e-5, cycles=0.5, warm_up=0.5),),
    averaging=Averaging(steps=2, rate=5e-4),
)
DEMO: Final = replace(
    FAST,
    name="demo",
    network="tf_efficientnet_lite0",
    augment=replace(FAST.augment, size=160),
    phases=(Phase(epochs=4, high=2e-3, low=1e-5, cycles=0.5, warm_up=0.5),),
    averaging=Averaging(steps=1, rate=5e-4),
)


@dataclass(frozen=True)
class Job:
    """A recipe, and where it runs."""

    pack: Path
    """The pack to train on: python -m cache pack IMAGES --out PACK."""
    out: Path
    """The run folder."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    engine: EngineName = "auto"
    """auto: DALI on a GPU, threads without one."""
    device: DeviceName = "auto"
    """gpu, cpu, or whichever is there."""
    threads: int | None = None
    """Loader threads; default one a core."""
    prefetch: int = 2
    """Batches prepared ahead."""
    residency: Residency = "mmap"
    """mmap: the page cache; ram: a private copy."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""

    def __post_init__(self) -> None:
        """Refuse what no loader could do."""
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
        if self.prefetch < 1:
            raise ValueError(f"prefetch is {self.prefetch}; expected at least 1")


Stop = Callable[[], int | None]
"""The signal that asked for an end, if any did."""


@dataclass
class Progressed:
    """How far a training has come; with weights and momentum, all that a checkpoint holds."""

    position: Position = field(default_factory=Position)
    loss_sum: float = 0.0
    """Of the images of this epoch so far; likewise seconds."""
    seconds: float = 0.0
    best: float = -1.0
    """Validation accuracy of best.ckpt."""


class Stopped(Exception):
    """A signal asked for an end, and what there was to save is saved."""


def main() -> int:
    """Run the recipe that the command line names."""
    job = read_job(sys.argv[1:])
    with stop_signals() as stop:
        try:
            train(job, stop)
        except Stopped as stopped:
            print(f"stopped {stopped}; the same command with --resume goes on", file=sys.stderr)
            return 128 + (stop() or signal.SIGTERM)
    return 0


def read_job(arguments: list[str]) -> Job:
    """The command line, which follows from the types: a recipe's name, then any field of it."""
    described = {
        "paper": ("The seed's recipe, number by number: 200 epochs.", PAPER),
        "fast": ("From pretrained weights to a good classifier, soon.", FAST),
        "demo": ("Minutes on two cores, for `python -m cache demo`.", DEMO),
    }
    jobs = {
        name: (text, Job(pack=tyro.MISSING, out=tyro.MISSING, recipe=recipe))
        for name, (text, recipe) in described.items()
    }
    try:
        return parse(lambda: tyro.extras.overridable_config_cli(jobs, args=arguments, prog="python train.py"))
    except ValueError as error:  # a recipe that refuses its numbers
        raise RunError(str(error)) from None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """For as long as the block runs, the first SIGINT or SIGTERM only asks for an end; the next one forces it."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(job: Job, stop: Stop) -> None:
    """The whole flow: open, prepare the run folder, solve the head, train, average, report."""
    engine, where = choose(job.engine, job.device)
    device = torch_device(where)
    use_fast_kernels()
    pack = Pack(job.pack, job.residency)
    check_splits(pack)
    job = replace(job, recipe=resolve(job.recipe, device))
    folder, state = open_run(job, pack)
    network = new_network(job.recipe, len(pack.classes), device, fresh=state is None)
    if state is None:
        start_run(job, pack, folder, versions(engine=engine, device=where))
        draw_pictures(job, pack, folder)
        solve_head(job, pack, network)
    fit(job, pack, network, folder, state, stop)
    average(job, pack, network, folder, stop)
    print(f"report: {report.build(folder.folder)}")


def resolve(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with every choice that it left open made: the precision, and the weights' mean and std."""
    if recipe.precision == "auto":
        recipe = replace(recipe, precision="bf16" if has_bf16(device) else "fp32")
    if recipe.normalise:
        mean, std = normalisation(recipe.network)
        recipe = replace(recipe, augment=replace(recipe.augment, mean=mean, std=std))
    return recipe


def check_splits(pack: Pack) -> None:
    """Refuse a pack that cannot be trained on and validated."""
    for split in ("train", "val"):
        if not len(pack.ids(split)):
            raise PackError(
                f"{pack.path} has no images in its split {split}; pack again, with --val 0.1 for example"
            )


def open_run(job: Job, pack: Pack) -> tuple[Run, dict[str, Any] | None]:
    """The run folder, and the checkpoint to go on from. A folder that holds a run is never overwritten."""
    folder = Run(job.out)
    if not job.resume:
        if (job.out / RECIPE).exists():
            raise RunError(f"{job.out} holds a run already; name another folder, or go on with it: --resume")
        return folder, None
    check_same(folder, job.recipe, pack)
    return folder, folder.load("last")[1] if (job.out / LAST).exists() else None


def check_same(folder: Run, recipe: Recipe, pack: Pack) -> None:
    """A resumed run must be the run: refuse another recipe or another pack. Raises RunError."""
    then, now = folder.read(RECIPE), json.loads(json.dumps(asdict(recipe)))
    for name, value in now.items():
        if value != then.get(name):
            raise RunError(
                f"{folder.folder} has {name} = {then.get(name)}, not {value}; resume with the same recipe"
            )
    if folder.read(PACK)["digest"] != pack.header.digest:
        raise RunError(f"{folder.folder} was trained on another pack than {pack.path}; give it the same one")


def start_run(job: Job, pack: Pack, folder: Run, used: dict[str, str]) -> None:
    """Make the run folder and write down what the run depends on."""
    try:
        folder.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder.folder} cannot be made ({error.strerror}); name another folder: --out"
        ) from None
    folder.write(PACK, pack.summary())
    folder.write(VERSIONS, used)
    folder.write(RECIPE, asdict(job.recipe))


def new_network(recipe: Recipe, classes: int, device: torch.device, fresh: bool) -> nn.Module:
    """The recipe's network on its device, with its pretrained weights if `fresh`."""
    torch.manual_seed(recipe.seed)
    weights = recipe.weights if fresh else "none"
    network = build(recipe.network, classes, weights, recipe.activation_checkpointing)
    return network.to(device)


def open_loader(job: Job, pack: Pack, ids: NDArray[np.int64], augment: Augment, **options: Any) -> Loader:
    """A loader over `ids` with the job's engine, device and threads; `options` are Loader's own."""
    return Loader(
        pack,
        augment,
        ids,
        seed=job.recipe.seed,
        engine=job.engine,
        device=job.device,
        thread_count=job.threads,
        prefetch=job.prefetch,
        **options,
    )


def draw_pictures(job: Job, pack: Pack, folder: Run) -> None:
    """lr.png, the learning rate over the epochs, and augmented.png, what the network will see."""
    phases, augment = job.recipe.phases, job.recipe.augment
    epochs = np.linspace(0, total_epochs(phases), 1000).tolist()
    figures.learning_rate(folder.folder / "lr.png", epochs, [lr_at(phases, epoch) for epoch in epochs])
    ids = pack.ids("train")
    ids = ids[:: max(1, len(ids) // 6)][:6]
    columns = []
    shown = min(5, total_epochs(phases))
    for view, count in ((augment.centre(), 1), (augment, shown)):
        with open_loader(job, pack, ids, view, batch_size=len(ids), epochs=count) as loader:
            columns += [augment.to_pixels(batch.images) for batch in loader]
    captions = ["evaluation", *(f"epoch {epoch}" for epoch in range(shown))]
    figures.image_sheet(folder.folder / "augmented.png", np.stack(columns, axis=1), captions)


def solve_head(job: Job, pack: Pack, network: nn.Module) -> None:
    """Linear probing, then fine-tuning (Kumar et al. 2022): a random head would first spoil the features."""
    if not job.recipe.solve_head:
        return
    started = time.perf_counter()
    centre = job.recipe.augment.centre()
    with open_loader(job, pack, pack.ids("train"), centre, batch_size=64, epochs=1) as loader:
        features, labels = head.features(network, pairs(loader), job.recipe.bf16)
    head.solve(network, features, labels)
    print(
        f"head: solved on {len(labels)} frozen features, time: {time.perf_counter() - started:.6f} sec",
        flush=True,
    )


def fit(
    job: Job, pack: Pack, network: nn.Module, folder: Run, state: dict[str, Any] | None, stop: Stop
) -> None:
    """Train through every phase; after each epoch validate, log, and write the checkpoints."""
    recipe = job.recipe
    optimiser = torch.optim.SGD(
        network.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    progress = restore(state, network, optimiser, folder) if state else Progressed()
    compiled: nn.Module = torch.compile(network) if recipe.compile else network  # type: ignore[assignment]
    with (
        training_loader(job, pack, progress.position) as training,
        validation_loader(job, pack) as validation,
    ):
        if state is None and recipe.solve_head:
            result = validate(compiled, validation.epoch(), recipe.bf16)
            print(
                f"head: valid loss = {result['valid_loss']:.9f}, acc = {result['accuracy']:.3f}", flush=True
            )
            keep_best(folder, network, progress, result["accuracy"])
        while progress.position.epoch < total_epochs(recipe.phases):
            row = train_epoch(compiled, optimiser, training, recipe, progress, stop)
            if row is None:
                save_last(folder, network, optimiser, progress)
                raise Stopped(f"in epoch {progress.position.epoch} after {progress.position.images} images")
            row |= validate(compiled, validation.epoch(), recipe.bf16)
            log_epoch(folder, row)
            keep_best(folder, network, progress, row["accuracy"])
            save_last(folder, network, optimiser, progress)
            rebuild_report(folder)


def training_loader(job: Job, pack: Pack, start: Position) -> Loader:
    """The training split, shuffled and augmented, from `start` on."""
    ids, augment = pack.ids("train"), job.recipe.augment
    return open_loader(job, pack, ids, augment, batch_size=job.recipe.batch_size, shuffle=True, start=start)


def validation_loader(job: Job, pack: Pack) -> Loader:
    """The validation split as evaluation sees it."""
    return open_loader(job, pack, pack.ids("val"), job.recipe.augment.centre(), batch_size=64)


def train_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loader: Loader,
    recipe: Recipe,
    progress: Progressed,
    stop: Stop,
) -> dict[str, Any] | None:
    """Train to the end of the epoch; its row of metrics, or None if a signal came first. `progress` follows.

    Nothing in the loop reads a value from the device: losses add up there and are read once, at the end.
    """
    set_training(network, recipe.frozen_statistics)
    loss = smoothed_cross_entropy(recipe.label_smoothing, len(loader.pack.classes))
    epoch, images, rate = progress.position.epoch, len(loader.ids), 0.0
    device = next(network.parameters()).device
    total = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
    clock = Clock()
    with progress_bar(f"epoch {epoch}") as update:
        for batch in clock.waits(loader.epoch()):
            rate = lr_at(recipe.phases, epoch + progress.position.images / images)
            total += train_step(network, optimiser, batch, loss, rate, recipe.bf16) * len(batch.ids)
            progress.position = loader.position
            update(progress.position.images or images, images, clock.note())
            if stop() and progress.position.images:
                break
    progress.loss_sum, progress.seconds = float(total), progress.seconds + clock.seconds()
    if progress.position.images:
        return None
    row = {
        "epoch": epoch,
        "train_loss": progress.loss_sum / images,
        "learning_rate": rate,
        "images_per_second": clock.images / clock.seconds(),
        "waiting": clock.waiting / clock.seconds(),
        "seconds": progress.seconds,
    }
    progress.loss_sum = progress.seconds = 0.0
    return row


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    loss: nn.Module,
    rate: float,
    bf16: bool,
) -> torch.Tensor:
    """One step of SGD at `rate`; the batch's mean loss, still on the device."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    value: torch.Tensor = loss(forward(network, batch.images, bf16), batch.labels)
    optimiser.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value.detach()


@torch.no_grad()
def validate(network: nn.Module, batches: Iterable[Batch], bf16: bool) -> dict[str, Any]:
    """Plain cross entropy and accuracy over one pass; read from the device once, at the end."""
    network.eval()
    sums: torch.Tensor | float = 0.0
    count = 0
    for batch in batches:
        logits = forward(network, batch.images, bf16)
        losses = functional.cross_entropy(logits, batch.labels, reduction="sum")
        right = (logits.argmax(1) == batch.labels).sum()
        sums, count = sums + torch.stack([losses.double(), right.double()]), count + len(batch.ids)
    assert isinstance(sums, torch.Tensor), "check_splits refuses an empty validation split"
    loss, right_sum = (sums / count).tolist()
    return {"valid_loss": loss, "accuracy": right_sum, "n": count}


def average(job: Job, pack: Pack, network: nn.Module, folder: Run, stop: Stop) -> None:
    """Stochastic weight averaging, from the end of training; swa.ckpt and swa.json, before and after."""
    recipe = job.recipe
    if not recipe.averaging.steps or (folder.folder / SWA).exists():
        return
    started = time.perf_counter()
    start = Position(total_epochs(recipe.phases))
    with training_loader(job, pack, start) as training, validation_loader(job, pack) as validation:
        before = validate(network, validation.epoch(), recipe.bf16)

        def after_step(step: int, loss: float) -> None:
            print(f"averaging: step {step}, train loss = {loss:.9f}")
            if stop():
                raise Stopped("while averaging; the training before it is complete")

        averaged = swa.average(
            network,
            lambda: pairs(training.epoch()),
            len(training.ids),
            smoothed_cross_entropy(recipe.label_smoothing, len(pack.classes)),
            recipe.averaging.rate,
            recipe.averaging.steps,
            forward=lambda network, images: forward(network, images, recipe.bf16),
            frozen_statistics=recipe.frozen_statistics,
            on_step=after_step,
        )
        after = validate(averaged, validation.epoch(), recipe.bf16)
    seconds = time.perf_counter() - started
    save(folder.folder / AVERAGED, {"network": averaged.state_dict(), "accuracy": after["accuracy"]})
    folder.write(SWA, asdict(recipe.averaging) | {"seconds": seconds, "before": before, "after": after})
    for name, result in (("before", before), ("after", after)):
        print(f"averaging: {name}, valid loss = {result['valid_loss']:.9f}, acc = {result['accuracy']:.3f}")


def pairs(batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels alone, which is all that the room `model` wants to know."""
    return ((batch.images, batch.labels) for batch in batches)


def log_epoch(folder: Run, row: dict[str, Any]) -> None:
    """The epoch's line in the seed's form, and its row in metrics.jsonl."""
    print(
        f"epoch: {row['epoch']}, train loss = {row['train_loss']:.9f}, valid loss = {row['valid_loss']:.9f}, "
        f"acc = {row['accuracy']:.3f}, time: {row['seconds']:.6f} sec",
        flush=True,
    )
    folder.write_metrics([*folder.metrics(), row])


def rebuild_report(folder: Run) -> None:
    """The report so far. It is a by-product: what keeps it from being built must not end a training."""
    try:
        report.build(folder.folder)
    except (report.ReportError, OSError) as error:
        print(f"note: no report yet: {error}", file=sys.stderr)


def keep_best(folder: Run, network: nn.Module, progress: Progressed, accuracy: float) -> None:
    """best.ckpt, if no validation before was as accurate."""
    if accuracy > progress.best:
        progress.best = accuracy
        save(folder.folder / BEST, {"network": network.state_dict(), "accuracy": accuracy})


def save_last(
    folder: Run, network: nn.Module, optimiser: torch.optim.Optimizer, progress: Progressed
) -> None:
    """last.ckpt: everything that going on needs."""
    content = asdict(progress) | {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
    }
    save(folder.folder / LAST, content)


def restore(
    state: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer, folder: Run
) -> Progressed:
    """Put weights, momentum and random state back, and drop metrics of epochs that are trained again."""
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    position = Position(**state["position"])
    folder.write_metrics([row for row in folder.metrics() if row["epoch"] < position.epoch])
    return Progressed(position, state["loss_sum"], state["seconds"], state["best"])


class Clock:
    """Measures a pass over batches: seconds in all, seconds spent waiting for data, images."""

    def __init__(self) -> None:
        """Start it."""
        self.started = time.perf_counter()
        self.waiting = 0.0
        self.images = 0

    def seconds(self) -> float:
        """Since the clock was made."""
        return time.perf_counter() - self.started

    def note(self) -> str:
        """Images a second, and the share of the time that went into waiting."""
        seconds = self.seconds()
        return f"{self.images / seconds:.0f} img/s, {self.waiting / seconds:.1%} waiting for data"

    def waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each takes to come is waiting."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waiting += time.perf_counter() - asked
            if batch is None:
                return
            self.images += len(batch.ids)
            yield batch


if __name__ == "__main__":
    run(main, PackError, RunError, DeviceError, WeightsError, CheckpointError, BadImageError)
