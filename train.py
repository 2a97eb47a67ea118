"""Train: a pack and a recipe in, a run folder out.

    greyhound train fast --pack dogs.arrow --out runs/dogs

Before it: `greyhound pack`. After it: `eval.py` and `explain.py`, which read the run folder. A recipe is a
value: another one is derived from it with `replace`, or on the command line by naming any of its fields.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback; `run` takes over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.command import Stop, Stopped, note, parse, progress_bar, run, stop_signals
from greyhound.cache.machine import describe_machine
from greyhound.cache.store import Pack, PackError
from greyhound.cache.values import ValueFormatError, from_json
from greyhound.model import divergence, head, precision, ranks, rehearsal, swa, targets
from greyhound.model.checkpoint import CheckpointError, fingerprint, in_host_memory, keep_previous, load, save
from greyhound.model.claim import alone, drop_results, refuse_live_run, refuse_other_content
from greyhound.model.divergence import Divergence, check_averaging, check_finite
from greyhound.model.ema import MovingAverage
from greyhound.model.inference import folded
from greyhound.model.interpolation import interpolated
from greyhound.model.loss import smoothed_cross_entropy
from greyhound.model.memory import COPIES, measure_memory, refusing_out_of_memory
from greyhound.model.network import (
    Linear,
    WeightsError,
    build,
    layers,
    normalisation,
    pretrained_head,
    set_training,
    synchronised,
)
from greyhound.model.precision import forward, has_bf16, use_fast_kernels
from greyhound.model.progress import (
    NEVER,
    Checkpoints,
    Losses,
    Timetable,
    Training,
    drop_later_rows,
    keep_best,
    restore,
    save_last,
    score,
    scored,
)
from greyhound.model.report import figures, report
from greyhound.model.resume import (
    Forcible,
    check_same,
    describe,
    drop_end,
    find_best,
    forget_best,
    newest,
    refuse_settled,
    write_down_forced,
)
from greyhound.model.run import (
    AVERAGED,
    BEST,
    SOLVED,
    TARGETS,
    THREADS,
    Run,
    RunError,
    load_network,
    versions,
)
from greyhound.model.schedule import PAPER_PHASES, Phase, lr_at, total_epochs
from greyhound.model.shapes import DAMAGED, HEAD, INTERPOLATION, PACK, RECIPE, SWA
from greyhound.model.step import loss_again, share_weight, train_step, validate
from greyhound.model.writer import Writer
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.clock import Clock
from greyhound.pipelines.loader import Batch, Loader, Position, Resources, choose, torch_device
from greyhound.pipelines.order import first_looks
from greyhound.pipelines.request import ResourcesError, StreamError


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
    views: int = 1
    """Augmentations of each image in a batch (Hoffer et al. 2020); each counts as one of the batch's images."""
    layer_decay: float = 1.0
    """The learning rate of each layer, as a share of the next one's: below 1 the first layers learn least."""
    momentum: float = 0.9
    """Of SGD: the share of the last step that goes into the next one."""
    weight_decay: float = 0.0
    """L2 penalty on every weight, as torch's SGD applies it."""
    label_smoothing: float = 0.1
    """1 - e on the true class, e / (K - 1) on each other one."""
    solve_head: bool = False
    """Before the first epoch, solve the last layer on the frozen features."""
    first_look: int = 0
    """With solve_head: before all images, solve it on so many of each class, so that a result is there soon; 0: not.
    Left out where it would be more than half of them."""
    distillation: float = 0.0
    """With solve_head: so much of each target is what a head says of the image that it was not solved on
    (self-distillation), the rest is the label."""
    interpolation: int = 0
    """With solve_head and frozen_statistics: after training, validate so many networks whose weights lie between the
    solved head's network and the last one (WiSE-FT), evenly spaced; 0: none."""
    clip: float = 0.0
    """A longer gradient is made so long; 0: it is taken as it is."""
    frozen_statistics: bool = False
    """Keep BatchNorm's statistics as the weights brought them; its scale and shift still learn."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, a step; what is validated and kept is then the average."""
    averaging: Averaging = field(default_factory=Averaging)
    select: Literal["accuracy", "loss"] = "accuracy"
    """What makes a checkpoint the best on the validation split; of few images the cross entropy is less noisy."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the device has instructions for it: activations of 87.8 MiB an image instead of 160.7 (B2)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: 12.4 MiB kept an image instead of 160.7 (B2, 256 px, fp32)."""
    compile: bool = False
    """torch.compile the network, on a GPU into CUDA graphs; where that fails, a line says why and it runs as it is."""
    sync_batchnorm: bool = False
    """On several GPUs: BatchNorm takes its statistics from the batches of all of them."""
    seed: int = 0
    """The order of the images, their augmentation, and the new head's first weights."""
    note: tyro.conf.Suppress[str] = ""
    """Said beside every accuracy in the report."""

    def __post_init__(self) -> None:
        """Refuse numbers that no training could have."""
        checks = {
            f"batch_size is {self.batch_size}; expected at least 1": self.batch_size >= 1,
            f"views is {self.views}; expected 1 to batch_size, {self.batch_size}": 1
            <= self.views
            <= self.batch_size,
            f"layer_decay is {self.layer_decay}; expected more than 0, at most 1": 0 < self.layer_decay <= 1,
            f"momentum is {self.momentum}; expected 0 to below 1": 0 <= self.momentum < 1,
            f"weight_decay is {self.weight_decay}; expected 0 or more": 0 <= self.weight_decay < math.inf,
            f"label_smoothing is {self.label_smoothing}; expected 0 to below 1": 0
            <= self.label_smoothing
            < 1,
            f"first_look is {self.first_look}; expected 0 or more": self.first_look >= 0,
            f"distillation is {self.distillation}; expected 0 to 1": 0 <= self.distillation <= 1,
            f"interpolation is {self.interpolation}; expected 0 or more": self.interpolation >= 0,
            "interpolation needs frozen statistics; add --frozen-statistics, or --interpolation 0": (
                self.frozen_statistics or not (self.solve_head and self.interpolation)
            ),
            f"clip is {self.clip}; expected 0 or more": 0 <= self.clip < math.inf,
            f"ema is {self.ema}; expected 0 to below 1": 0 <= self.ema < 1,
            f"averaging.steps is {self.averaging.steps}; expected 0 or more": self.averaging.steps >= 0,
            f"averaging.rate is {self.averaging.rate}; expected 0 or more": 0
            <= self.averaging.rate
            < math.inf,
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
        scale=(1.0, 1.25),
        rotation=10.0,
        shear=5.0,
        flip=0.5,
        brightness=0.15,
        contrast=0.15,
        saturation=0.15,
        hue=0.02,
    ),
    normalise=True,
    label_smoothing=0.0,
    select="loss",
    solve_head=True,
    first_look=32,
    frozen_statistics=True,
    distillation=0.3,
    interpolation=3,
    clip=5.0,
    layer_decay=0.93,
    ema=0.98,
    phases=(Phase(epochs=1, high=3e-3, low=1e-5, cycles=0.5, warm_up=0.2),),
    averaging=Averaging(steps=0),
)
DEMO: Final = replace(
    FAST,
    name="demo",
    network="tf_efficientnet_lite0",
    augment=replace(FAST.augment, size=160),
    note="The demo's dogs are drawn: this accuracy shows that the flow works, and says nothing about photographs.",
    distillation=0.0,
    interpolation=0,
    layer_decay=1.0,
    ema=0.95,
    phases=(Phase(epochs=3, high=4e-3, low=1e-5, cycles=0.5, warm_up=0.5),),
    averaging=Averaging(steps=2, rate=5e-4),
)
RECIPES: Final = {recipe.name: recipe for recipe in (PAPER, FAST, DEMO)}


@dataclass(frozen=True)
class Job:
    """A recipe, and where it runs."""

    out: Path
    """The run folder."""
    pack: Path | None = None
    """The pack to train on: greyhound pack IMAGES --out PACK. With --resume: the run's own where none is named."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    resume: bool = False
    """Go on from the run folder's last checkpoint, with the run's own recipe: a field that is named must be as the run has it."""
    force: tuple[Forcible, ...] = ()
    """Resume all the same where these differ from the run's own; the result is then no longer that of one command."""
    dry_run: bool = False
    """Train nothing and write nothing: say what memory, how many steps and how much time it would take."""
    verify_determinism: bool = False
    """Train nothing and write nothing: take 20 steps twice from the start, and compare the weights, bit for bit."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.verify_determinism and self.resume:
            raise ValueError("--verify-determinism starts from the beginning; leave out --resume")
        if self.force and not self.resume:
            raise ValueError("--force is for a run that is resumed; expected --resume beside it")

    @property
    def looks(self) -> bool:
        """Whether it writes nothing."""
        return self.dry_run or self.verify_determinism

    def again(self) -> Job:
        """The job as torchrun starts it again when a process died: from where it was, if rank 0 finds that it had begun."""
        begun = ranks.from_first((self.out / RECIPE).exists)
        return replace(self, resume=True) if begun else self


@dataclass(frozen=True)
class Session:
    """A training under way: what every stage of it works with."""

    recipe: Recipe
    """Resolved."""
    folder: Run
    state: Training
    training: Loader
    """Stands where the training stands; after the last epoch it goes on for the averaging."""
    validation: Loader
    checkpoints: Checkpoints
    stop: Stop

    def examples(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What a step learns from: every view as an image, and its label or its soft target."""
        images, labels = batch.flat()
        soft = self.state.targets
        return images, soft.of(batch.ids, labels) if soft else labels

    def validate(self, network: nn.Module, title: str) -> dict[str, Any]:
        """Loss and accuracy of a network on the validation split. Raises Stopped."""
        inference = folded(network, self.recipe.augment.size)
        return validate(inference, pairs(followed(title, self.validation, self.stop)), self.recipe.bf16)


def main() -> int:
    """Run the recipe that the command line names."""
    job = read_job(sys.argv[1:])
    size = "the run's batch size" if job.resume else f"batch size {job.recipe.batch_size}"
    remedy = "lower --batch-size, or add --activation-checkpointing; --dry-run says what fits"
    with stop_signals() as stop, refusing_out_of_memory(size, remedy):
        try:
            return train(job, stop)
        except Stopped as stopped:
            print(f"stopped {stopped}; the same command with --resume goes on", file=sys.stderr)
            return 128 + (stop() or signal.SIGTERM)


def read_job(arguments: list[str]) -> Job:
    """The command line, which follows from the types: a recipe's name, then any field of it."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in RECIPES:
        raise RunError(f"there is no recipe {arguments[0]!r}; expected one of {', '.join(RECIPES)}")
    described = {
        "paper": "The seed's recipe, number by number: 200 epochs.",
        "fast": "From pretrained weights to a good classifier, soon.",
        "demo": "Minutes on two cores, for `greyhound demo`.",
    }

    def read(recipes: dict[str, Recipe]) -> Job:
        jobs = {name: (text, Job(out=tyro.MISSING, recipe=recipes[name])) for name, text in described.items()}
        try:
            return parse(
                lambda: tyro.extras.overridable_config_cli(jobs, args=arguments, prog="greyhound train")
            )
        except ValueError as error:  # a recipe that refuses its numbers
            raise RunError(str(error)) from None

    job = read(RECIPES)
    if not job.resume or not (job.out / RECIPE).exists():
        return job
    own = open_choices(own_recipe(Run(job.out)))
    return read(RECIPES | {own.name: own})  # so that a field that was named is compared, and no other


def train(job: Job, stop: Stop) -> int:
    """The whole flow: open, prepare the run folder, solve the head, train, average, report. The exit code."""
    started = time.perf_counter()
    engine, where = choose(job.resources.engine, job.resources.device)
    device = torch_device(where)
    use_fast_kernels(device)
    with ranks.joined(device) as restarted, ExitStack() as stack:
        job = replace(job.again() if restarted else job, resources=job.resources.shared(ranks.neighbours()))
        check_ranks(job, device)
        pack = Pack(ranks.from_first(lambda: pack_path(job)), job.resources.residency)
        check_splits(pack)
        check_same_pack(pack)
        used = versions(machine=describe_machine(), engine=engine, device=where)
        if device.type == "cpu" and ranks.count() == 1:
            used[THREADS] = str(torch.get_num_threads())
        if job.resume and not job.looks and (job.out / RECIPE).exists():
            hold(stack, job)
        return train_on(job, pack, device, used, stack, started, ranks.agreed(stop))


def hold(stack: ExitStack, job: Job) -> None:
    """Hold the run folder until the stack is closed: rank 0 for all. Raises RunError."""
    ranks.from_first(lambda: stack.enter_context(alone(Run(job.out))))


def check_ranks(job: Job, device: torch.device) -> None:
    """Refuse what several processes cannot do. Raises RunError."""
    if ranks.count() > 1 and job.looks:
        raise RunError("--dry-run and --verify-determinism are for one process; start them without torchrun")
    if ranks.count() > 1 and job.recipe.sync_batchnorm and device.type != "cuda":
        raise RunError("--sync-batchnorm needs GPUs; leave it out, or add --frozen-statistics")
    if ranks.count() > 1 and job.recipe.sync_batchnorm and job.recipe.compile:
        raise RunError(
            "--compile is tried by each process alone, and --sync-batchnorm needs all; leave one out"
        )


def check_same_pack(pack: Pack) -> None:
    """Refuse a pack that is not the one that rank 0 has, on a machine of its own perhaps. Raises PackError."""
    if ranks.from_first(lambda: pack.header.digest) != pack.header.digest:
        raise PackError(
            f"{pack.path} is another pack here, on rank {ranks.rank()}, than on rank 0; copy it to every machine"
        )


def train_on(
    job: Job,
    pack: Pack,
    device: torch.device,
    used: dict[str, str],
    stack: ExitStack,
    started: float,
    stop: Stop,
) -> int:
    """The rest of `train`, once the pack is open. stack: holds the run folder where it is resumed."""
    asked = job
    job, folder, content = ranks.from_first(lambda: open_run(asked, pack, device, used))
    pretrained = content is None and not job.dry_run  # which asks what the weights take, not what they know
    state = new_state(job.recipe, len(pack.classes), device, started, pretrained)
    if content is not None:
        restore(folder, content, state)
        state.targets = recall_targets(job.recipe, folder, pack, device)
        if folder.read(PACK)["digest"] != pack.header.digest:
            state.progress.begin_again()
    ranks.part_randomness()
    start = Position(state.progress.epoch, state.progress.images)
    with (
        training_loader(job, pack, start) as training,
        evaluation_loader(job, pack, pack.ids("val")) as validation,
    ):
        ranks.first_alone(note, training.describe_damaged())
        ranks.first_alone(note, validation.describe_damaged())
        session = Session(job.recipe, folder, state, training, validation, job.checkpoints, stop)
        if job.looks:
            return rehearse(job, session, device)
        if not job.resume:
            hold(stack, job)
            # Again: another start may have come first.
            ranks.from_first(lambda: refuse_other_content(job.out))
        begin(job, session, used, fresh=content is None)
        fit(session)
        interpolate_weights(session)
        average_weights(session)
    ranks.first_alone(lambda: print(f"report: {report.build(folder.folder)}"))
    return 0


def begin(job: Job, session: Session, used: dict[str, str], fresh: bool) -> None:
    """Bring run folder and session to where the first step is next. fresh: anew, not from a checkpoint. Raises Stopped."""
    if fresh:
        ranks.from_first(lambda: start_run(job, session.training.pack, session.folder, used))
        print(session.training.plan.why, flush=True)
        solve_head(session, job)
    else:
        ranks.from_first(lambda: resume_run(job, session, used))
        take_up_best(session)
    ranks.first_alone(write_damaged, session)


def new_state(
    recipe: Recipe, classes: int, device: torch.device, started: float, pretrained: bool = True
) -> Training:
    """A training before its first step. pretrained: with the recipe's weights. Raises RunError."""
    network = new_network(recipe, classes, device, pretrained)
    check_network(recipe, network, classes)
    average = MovingAverage(network, recipe.ema) if recipe.ema else None
    return Training(network, new_optimiser(recipe, network), average, since=started)


def rehearse(job: Job, session: Session, device: torch.device) -> int:
    """Say what a dry run or a repetition finds; 1 if the same steps came to other weights, else 0."""
    if job.dry_run:
        print("\n".join(foresee(session)))
        return 0
    states = session.state, new_state(job.recipe, len(session.training.pack.classes), device, 0.0)
    hashes = []
    for state in states:
        with training_loader(job, session.training.pack, Position()) as training:
            time_steps(replace(session, state=state, training=training), rehearsal.REPEATED_STEPS)
        hashes.append(fingerprint(state.network.state_dict()))
    same, line = rehearsal.compare(hashes)
    print(line)
    return 0 if same else 1


def foresee(session: Session) -> list[str]:
    """What the training would take, in lines: counted, and timed on a few steps of its own batches."""
    recipe, training = session.recipe, session.training
    copies = COPIES + (recipe.ema > 0)
    memory = measure_memory(
        session.state.network, recipe.augment.size, recipe.bf16, recipe.frozen_statistics, copies
    )
    averaging = recipe.averaging.steps
    extent = rehearsal.Extent(
        network=recipe.network,
        precision=recipe.precision,
        batch_size=recipe.batch_size,
        steps=len(training),
        epochs=total_epochs(recipe.phases),
        passes=averaging + (not recipe.frozen_statistics) if averaging else 0,
    )
    seconds = time_steps(session, rehearsal.TIMED_STEPS)
    return [*rehearsal.forecast(extent, memory, seconds), training.plan.why]


def time_steps(session: Session, steps: int) -> list[float]:
    """Train for so many steps, whatever the epoch, at the recipe's highest rate; the seconds of each."""
    recipe, state, training = session.recipe, session.state, session.training
    loss = smoothed_cross_entropy(recipe.label_smoothing, len(training.pack.classes))
    rate = max(phase.high for phase in recipe.phases)
    set_training(state.network, recipe.frozen_statistics)
    called = compiled(recipe, state.network, training)
    batches = pairs(islice(training, steps))
    return rehearsal.take_steps(called, state.optimiser, batches, loss, rate, recipe.bf16, recipe.clip)


def resolve(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe as it is computed: the precision and the weights' mean and std chosen, and nothing that is not done."""
    if recipe.weights != "auto" and recipe.note == _PRETRAINED:
        recipe = replace(recipe, note="")
    if recipe.precision == "auto":
        recipe = replace(recipe, precision="bf16" if has_bf16(device) else "fp32")
    if recipe.normalise:
        mean, std = normalisation(recipe.network)
        recipe = replace(recipe, augment=replace(recipe.augment, mean=mean, std=std))
    return recipe if recipe.solve_head else without_head(recipe)


def without_head(recipe: Recipe) -> Recipe:
    """The recipe without what comes of a solved head; says which of it was asked for."""
    usual = RECIPES.get(recipe.name, PAPER)
    for name in ("first_look", "distillation", "interpolation"):
        if getattr(recipe, name) not in (0, getattr(usual, name)):
            note(
                f"{name} is {getattr(recipe, name)} and no head is solved, so it is taken as 0; or add --solve-head"
            )
    return replace(recipe, first_look=0, distillation=0.0, interpolation=0)


def open_choices(recipe: Recipe) -> Recipe:
    """A resolved recipe with the choice of mean and std left to `resolve` again, for one that is derived from it."""
    plain = Augment()
    augment = replace(recipe.augment, mean=plain.mean, std=plain.std)
    return replace(recipe, augment=augment) if recipe.normalise else recipe


def pack_path(job: Job) -> Path:
    """The pack that the job names, or that the run to resume was trained on. Raises RunError."""
    if job.pack is None and not job.resume:
        raise RunError("a training needs a pack: --pack PACK, made by: greyhound pack IMAGES --out PACK")
    return job.pack or Path(Run(job.out).read(PACK)["path"])


def check_splits(pack: Pack) -> None:
    """Refuse a pack that cannot be trained on and validated."""
    for split in ("train", "val"):
        if not len(pack.ids(split)):
            raise PackError(
                f"{pack.path} has no images in its split {split}; pack again, with --val 0.1 for example"
            )
    trained = np.unique(pack.labels[pack.ids("train")])
    if len(trained) < 2:
        raise PackError(
            f"{pack.path} has training images of {pack.classes[trained[0]]!r} alone; "
            "expected at least 2 classes: pack more images, or smaller --val and --test"
        )


def open_run(
    job: Job, pack: Pack, device: torch.device, used: dict[str, str]
) -> tuple[Job, Run, dict[str, Any] | None]:
    """The job, its recipe resolved; its folder; the checkpoint to go on from. A run is never overwritten.

    used: `versions` of here. Raises RunError, CheckpointError.
    """
    folder = Run(job.out)
    if not job.resume:
        refuse_live_run(folder)
        refuse_other_content(job.out)
        return replace(job, recipe=resolve(job.recipe, device)), folder, None
    then = own_recipe(folder)
    plain = job.recipe == RECIPES.get(then.name) and "recipe" not in job.force
    asked = then if plain else resolve(job.recipe, device)
    recipes = asdict(then), asdict(asked)
    check_same(folder, recipes, pack.path, pack.header.digest, used, job.force)
    pack.require_classes(folder.read(PACK)["classes"], str(job.out))
    content = newest(folder, not job.looks, note)
    if content:
        refuse_settled(folder, *recipes)
    return replace(job, recipe=asked), folder, content


def own_recipe(folder: Run) -> Recipe:
    """The recipe that a run was begun with, or last forced to. Raises RunError, ValueFormatError."""
    return from_json(Recipe, folder.read(RECIPE), str(folder.folder / RECIPE))


def recall_targets(
    recipe: Recipe, folder: Run, pack: Pack, device: torch.device
) -> targets.SoftTargets | None:
    """The soft targets of a run that is resumed, where the recipe has any. Raises RunError."""
    if not recipe.distillation:
        return None
    path, classes = folder.folder / TARGETS, len(pack.classes)
    found = ranks.from_first(lambda: targets.read(path, recipe.distillation, pack.header.digest, classes))
    if found is None:
        ranks.first_alone(note, f"{path} is of another pack: the labels alone are the targets")
        return None
    return found.to(device)


def new_network(recipe: Recipe, classes: int, device: torch.device, pretrained: bool) -> nn.Module:
    """The recipe's network on its device, with the recipe's weights if `pretrained`."""
    torch.manual_seed(recipe.seed)
    weights = recipe.weights if pretrained else "none"
    network = build(recipe.network, classes, weights, recipe.activation_checkpointing)
    return (synchronised(network) if recipe.sync_batchnorm else network).to(device)


def check_network(recipe: Recipe, network: nn.Module, classes: int) -> None:
    """Find out what does not fit together while nothing is written yet. Raises RunError."""
    try:
        smoothed_cross_entropy(recipe.label_smoothing, classes)
        if recipe.solve_head:
            head.classifier(network)
    except ValueError as error:
        raise RunError(str(error)) from None
    size = recipe.augment.size
    if reason := rehearsal.refusal(network, size, recipe.bf16):
        raise RunError(
            f"{recipe.network} does not take an image of {size} px ({reason}); choose another --augment.size or --network"
        )


def new_optimiser(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """SGD as the recipe says; every step sets its rate."""
    return torch.optim.SGD(
        layers(network, recipe.layer_decay),
        lr=0.0,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def start_run(job: Job, pack: Pack, folder: Run, used: dict[str, str]) -> None:
    """Write down what the run depends on, and draw what it will do."""
    drop_results(folder)
    describe(folder, asdict(job.recipe), pack.summary(), used)
    with pack.naming_damaged(pack.ids("train")):  # not those of a few pictures alone
        draw_pictures(job, pack, folder)


def resume_run(job: Job, session: Session, used: dict[str, str]) -> None:
    """Say where the run goes on, and write down what it depends on from here where that was forced to change."""
    folder, progress, pack = session.folder, session.state.progress, session.training.pack
    drop_later_rows(folder, progress)
    going = progress.epoch < total_epochs(job.recipe.phases) or progress.trained
    if going:
        drop_end(folder)
    if {"recipe", "pack"} & set(job.force):
        forget_best(folder, note)
    if job.force:
        write_down_forced(folder, asdict(job.recipe), pack.summary(), used, progress, note)
    done, count = progress.images, len(session.training.ids)
    place = f"in epoch {progress.epoch}, after {done} of {count} images" if going else "after the last epoch"
    print(f"resumed {place}", flush=True)


def write_damaged(session: Session) -> None:
    """damaged.json: by row and path, the images that others stand in for, and those that validation leaves out.

    Where there are none there is no such file, also where a start before found some.
    """
    found = {"replaced": session.training.damage(), "left_out": session.validation.damage()}
    if any(found.values()):
        session.folder.write(DAMAGED, found)
    else:
        (session.folder.folder / DAMAGED).unlink(missing_ok=True)


def take_up_best(session: Session) -> None:
    """Go on from best.ckpt and the score that stands in it; one that another recipe or pack scored is scored again.

    Not from what last.ckpt knew: where that is an older one, best.ckpt is still the best that there is.
    """
    state, path = session.state, session.folder.folder / BEST
    content = ranks.from_first(lambda: find_best(session.folder, note))
    state.progress.best = content["score"] if content else -math.inf
    if content is None or state.progress.best > -math.inf:
        return
    network = deepcopy(state.result)
    load_network(network, content, path)
    result = session.validate(network, "validating best.ckpt again")
    content |= result | {"score": score(result, session.recipe.select)}
    keep_best(save_alone, session.folder, state.progress, content)


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
        with Loader(
            pack, view, ids, job.resources, batch_size=len(ids), seed=job.recipe.seed, epochs=count
        ) as loader:
            columns += [augment.to_pixels(batch.images.numpy(force=True)) for batch in loader]
    captions = ["evaluation", *(f"epoch {epoch}" for epoch in range(shown))]
    figures.image_sheet(folder.folder / "augmented.png", np.stack(columns, axis=1), captions)


def solve_head(session: Session, job: Job) -> None:
    """Linear probing, then fine-tuning (Kumar et al. 2022): a random head would first spoil the features.

    The body is frozen, so that every image passes it once, also those that validate a head.
    """
    recipe, state, pack = session.recipe, session.state, session.training.pack
    network = state.network
    if not recipe.solve_head:
        return
    inference = folded(network, recipe.augment.size)

    def see(doing: str, loader: Loader) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, labels and rows of this rank's share of the images."""
        rows: list[torch.Tensor] = []
        batches = noted(followed(doing, loader, session.stop), rows)
        return *head.features(inference, pairs(batches), recipe.bf16), torch.cat(rows)

    held_out = see("looking at the validation images", session.validation)[:2]
    pretrained = pretrained_head(network, recipe.network, recipe.weights)
    seen: list[tuple[torch.Tensor, ...]] = []
    results: list[dict[str, Any]] = []
    for ids in first_looks(pack.ids("train"), pack.labels, recipe.seed, recipe.first_look):
        with evaluation_loader(job, pack, ids, epochs=1) as loader:
            seen.append(tuple(map(ranks.gathered, see("looking at the training images", loader))))
        found, rows = ranks.from_first(lambda: solve(network, seen, pretrained))
        ranks.take_from_first(head.classifier(network).parameters())
        result = validate(head.classifier(network), [held_out], recipe.bf16)
        result |= {"images": len(rows), "elapsed": state.tick()}
        print(
            f"head: solved on {len(rows)} frozen features, {found}; {say(result)}, {result['elapsed']:.0f} s after the start",
            flush=True,
        )
        results.append(result)
        content = scored(network, result, recipe.select, f"a head solved on {len(rows)} images")
        keep_best(save_alone, session.folder, state.progress, content)
    if recipe.interpolation:
        save_alone(session.folder.folder / SOLVED, content)
    if recipe.distillation:
        soft = targets.SoftTargets(rows, found.probabilities, recipe.distillation)
        ranks.first_alone(targets.write, session.folder.folder / TARGETS, soft, pack.header.digest)
        state.targets = soft.to(held_out[0].device)
    ranks.first_alone(
        session.folder.write, HEAD, results[-1] | {"first": results[0] if len(results) > 1 else None}
    )


def solve(
    network: nn.Module, seen: list[tuple[torch.Tensor, ...]], pretrained: Linear | None
) -> tuple[head.Solution, torch.Tensor]:
    """Solve the head on all that was seen so far: features, labels and rows, look by look. And its images, `[n]`.

    They are in the order of the pack: the head depends on the images, not on the order of looking.
    """
    features, labels, rows = (torch.cat(column) for column in zip(*seen, strict=True))
    rows, order = rows.sort()
    order = order.to(features.device)
    return head.solve(network, features[order], labels[order], pretrained), rows


def fit(session: Session) -> None:
    """Train through every phase; after each epoch validate, and write log, checkpoints and report beside the next."""
    recipe, state = session.recipe, session.state
    progress = state.progress
    called = ranks.parallel(compiled(recipe, state.network, session.training))
    writer = Writer()
    try:
        with writer:
            while progress.epoch < total_epochs(recipe.phases) or progress.trained:
                if progress.trained is None:
                    progress.trained = train_epoch(session, called, writer)
                row = progress.trained
                ranks.take_from_first(state.result.buffers())  # BatchNorm's statistics are each rank's own
                result = session.validate(state.result, f"validating epoch {row['epoch']}")
                end_epoch(session, row | result | {"elapsed": state.tick()}, writer)
    except Stopped:
        writer.wait()
        refuse_divergence(session)
        write = partial(save_newest, keep=session.checkpoints.keep)
        ranks.from_first(lambda: save_last(write, session.folder, state))
        raise


def end_epoch(session: Session, row: dict[str, Any], writer: Writer) -> None:
    """Say how the epoch went, and have it written: metrics, best.ckpt, last.ckpt, report.

    Waits until the epoch before is written, so that one copy of the checkpoints is in memory and no more. Raises
    RunError, CheckpointError.
    """
    recipe, folder, state = session.recipe, session.folder, session.state

    def write(path: Path, content: dict[str, Any]) -> None:
        if ranks.leads():
            writer(save, path, in_host_memory(content))  # the next epoch changes what it holds

    ranks.from_first(lambda: check_finite(row, max(phase.high for phase in recipe.phases)))
    print(epoch_line(row), flush=True)
    writer.wait()
    ranks.first_alone(writer, folder.add_epoch, row)
    content = scored(state.result, row, recipe.select, f"epoch {row['epoch']}")
    keep_best(write, folder, state.progress, content)
    state.progress.trained = None
    write_last(session, writer)
    ranks.first_alone(writer, rebuild_report, folder)


def write_last(session: Session, writer: Writer) -> None:
    """last.ckpt as the training stands now, written beside what follows. Raises RunError if the network diverged."""

    def write(path: Path, content: dict[str, Any]) -> None:
        writer(save_newest, path, in_host_memory(content), session.checkpoints.keep)

    refuse_divergence(session)
    writer.wait()
    ranks.first_alone(save_last, write, session.folder, session.state)


def save_alone(path: Path, content: dict[str, Any]) -> None:
    """`save`, of all ranks by the first. Raises CheckpointError."""
    ranks.first_alone(save, path, content)


def save_newest(path: Path, content: dict[str, Any], keep: int) -> None:
    """`save`, and keep those before it, up to `keep` in all. Raises CheckpointError."""
    keep_previous(path, keep)
    save(path, content)


def refuse_divergence(session: Session) -> None:
    """Stop where the loss of a batch was no number: say at which step and rate, and show its images. Raises RunError."""
    if session.state.progress.diverged != NEVER:
        ranks.from_first(lambda: show_divergence(session))


def show_divergence(session: Session) -> NoReturn:
    """Decode the batch again, and write down what is known of it. Raises RunError."""
    recipe, progress, training = session.recipe, session.state.progress, session.training
    with training.again(Position(progress.epoch, progress.diverged)) as loader:
        batch = next(iter(loader))
    rows = batch.ids.tolist()
    found = Divergence(
        epoch=progress.epoch,
        images=progress.diverged,
        learning_rate=lr_at(recipe.phases, progress.epoch + progress.diverged / len(training.ids)),
        rows=rows,
        paths=[training.pack.image_path(row) for row in rows],
    )
    pixels = recipe.augment.to_pixels(batch.flat()[0].numpy(force=True))
    divergence.refuse(session.folder, found, pixels, len(training.ids))


def compiled(recipe: Recipe, network: nn.Module, training: Loader) -> nn.Module:
    """The network as a step calls it: compiled where the recipe says so and every rank can. They share their parameters."""
    if not recipe.compile:
        return network
    set_training(network, recipe.frozen_statistics)
    counts = [images * recipe.views for images in training.batch_sizes()]
    called, why = precision.compiled(network, counts, recipe.augment.size, recipe.bf16)
    if not ranks.largest(bool(why)):
        return called
    ranks.first_alone(note, why or "not compiled: another process cannot; the step runs as it is")
    return network


def training_loader(job: Job, pack: Pack, start: Position) -> Loader:
    """The training split, shuffled and augmented, from `start` on."""
    recipe = job.recipe
    return Loader(
        pack,
        recipe.augment,
        pack.ids("train"),
        job.resources,
        batch_size=recipe.batch_size // recipe.views,
        shuffle=True,
        seed=recipe.seed,
        views=recipe.views,
        start=start,
        rank=ranks.rank(),
        ranks=ranks.count(),
    )


def evaluation_loader(job: Job, pack: Pack, ids: NDArray[np.int64], epochs: int | None = None) -> Loader:
    """Images as evaluation sees them: each once an epoch, its centre window. One epoch alone keeps no pixels."""
    augment, seed = job.recipe.augment.centre(), job.recipe.seed
    return Loader(
        pack,
        augment,
        ids,
        job.resources,
        batch_size=64 * ranks.count(),
        seed=seed,
        epochs=epochs,
        rank=ranks.rank(),
        ranks=ranks.count(),
    )


def train_epoch(session: Session, network: nn.Module, writer: Writer) -> dict[str, Any]:
    """Train to the end of the epoch; its row of metrics. `session.state` follows, also where a signal raises Stopped.

    network: the state's, as it is called. writer: takes the checkpoints that are due on the way. Nothing in the loop
    reads a value from the device but for these: losses add up there and are read once, at the end. Raises RunError if
    the loss becomes no number.
    """
    recipe, state, loader = session.recipe, session.state, session.training
    progress = state.progress
    set_training(network, recipe.frozen_statistics)
    loss = smoothed_cross_entropy(recipe.label_smoothing, len(loader.pack.classes))
    epoch, images, rate = progress.epoch, len(loader.ids), 0.0
    if not progress.images or not state.before:
        state.begin_epoch()
    losses = Losses(progress.loss_sum, state.before[0].device)
    clock, timetable, earlier = Clock(), Timetable(session.checkpoints), progress.seconds
    batch: Batch | None = None
    done = progress.images

    def settle() -> None:
        if batch is not None:  # what its step left must give a number too, or it is in no checkpoint
            losses.add(loss_again(state.network, *session.examples(batch), loss, recipe.bf16), 0, done)
        progress.loss_sum, progress.diverged = losses.read()
        progress.seconds = earlier + clock.seconds()

    try:
        for batch in followed(f"training epoch {epoch}", loader, session.stop, clock, done):
            done = progress.images
            rate = lr_at(recipe.phases, epoch + done / images)
            examples, weight = session.examples(batch), share_weight(len(batch.ids), batch.whole)
            value = train_step(
                network, state.optimiser, *examples, loss, rate, recipe.bf16, weight, recipe.clip
            )
            if state.average:
                state.average.update(state.network)
            losses.add(value, len(batch.ids), done)
            progress.epoch, progress.images = loader.position.epoch, loader.position.images
            if ranks.largest(timetable.due()) and progress.epoch == epoch:
                settle()
                write_last(session, writer)
    except Stopped:
        settle()
        raise
    settle()
    if progress.diverged != NEVER:
        progress.epoch = epoch  # where the batch is
    refuse_divergence(session)
    seconds = clock.seconds()
    row = {
        "epoch": epoch,
        "train_loss": progress.loss_sum / images,
        "learning_rate": rate,
        "weights_changed": state.changed(),
        "replaced": len(loader.damaged),
        "images_per_second": clock.images / seconds,
        "waiting": clock.waiting / seconds,
        "seconds": progress.seconds,
    }
    progress.loss_sum = progress.seconds = 0.0
    return row


def followed(
    doing: str, loader: Loader, stop: Stop, clock: Clock | None = None, done: int = 0
) -> Iterator[Batch]:
    """The rest of the loader's epoch under a progress bar; raises Stopped between two batches if a signal came.

    done: images of the epoch before, for the bar.
    """
    clock = clock or Clock()
    with progress_bar(doing, ranks.leads()) as update:
        for batch in clock.waits(loader.epoch()):
            if stop():
                raise Stopped(f"while {doing}")
            yield batch
            update(done + clock.images, len(loader.ids), clock.note())


def noted(batches: Iterable[Batch], rows: list[torch.Tensor]) -> Iterator[Batch]:
    """The same batches; the rows of the pack that they are of are added to `rows`."""
    for batch in batches:
        rows.append(batch.ids)
        yield batch


def pairs(batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels alone, which is all that the room `model` wants to know."""
    return (batch.flat() for batch in batches)


def interpolate_weights(session: Session) -> None:
    """Validate what lies between the solved head's network and the trained one; interpolation.json, perhaps best.ckpt."""
    recipe, folder, state = session.recipe, session.folder, session.state
    if not recipe.interpolation or ranks.from_first((folder.folder / INTERPOLATION).exists):
        return
    solved, found = deepcopy(state.result), []
    content = ranks.from_first(lambda: find_solved(folder, solved))
    if content is None:
        return
    load_network(solved, content, folder.folder / SOLVED)
    for step in range(1, recipe.interpolation + 1):
        share = step / (recipe.interpolation + 1)
        between, way = interpolated(solved, state.result, share), f"{share:.0%} of the way from the head"
        result = session.validate(between, f"validating {way}") | {"share": share}
        result["elapsed"] = state.tick()
        print(f"interpolation: {way}, {say(result)}", flush=True)
        found.append(result)
        keep_best(save_alone, folder, state.progress, scored(between, result, recipe.select, way))
    ranks.first_alone(folder.write, INTERPOLATION, found)


def find_solved(folder: Run, network: nn.Module) -> dict[str, Any] | None:
    """head.ckpt; None where it is not there or fits no network like this one: what was trained is worth having without."""
    path = folder.folder / SOLVED
    try:
        content = load(path)
        load_network(network, content, path)
        return content
    except (CheckpointError, RunError) as error:
        note(f"{error}; nothing between the solved head and the end is validated")
        return None


def average_weights(session: Session) -> None:
    """Stochastic weight averaging, from the end of training; swa.ckpt and swa.json, before and after."""
    recipe, folder = session.recipe, session.folder
    network = session.state.result
    if not recipe.averaging.steps or ranks.from_first((folder.folder / SWA).exists):
        return
    started = time.perf_counter()
    before = session.validate(network, "validating before averaging")

    def on_step(step: int, loss: float) -> None:
        check(loss)
        print(f"averaging: step {step}, train loss = {loss:.9f}", flush=True)

    def check(loss: float) -> None:
        ranks.from_first(lambda: check_averaging(loss, recipe.averaging.rate))

    averaged = swa.average(
        network,
        lambda: map(session.examples, followed("averaging", session.training, session.stop)),
        len(session.training.ids) * recipe.views,
        smoothed_cross_entropy(recipe.label_smoothing, len(session.training.pack.classes)),
        recipe.averaging.rate,
        recipe.averaging.steps,
        forward=lambda network, images: forward(network, images, recipe.bf16),
        frozen_statistics=recipe.frozen_statistics,
        on_step=on_step,
    )
    after = session.validate(averaged, "validating after averaging")
    check(after["valid_loss"])
    after["elapsed"] = session.state.tick()
    seconds = time.perf_counter() - started
    written = asdict(recipe.averaging) | {"seconds": seconds, "before": before, "after": after}
    save_alone(folder.folder / AVERAGED, scored(averaged, after, recipe.select, "averaging"))
    ranks.first_alone(folder.write, SWA, written)
    print(f"averaging: before, {say(before)}\naveraging: after, {say(after)}")


def say(result: dict[str, Any]) -> str:
    """A validation in the seed's words."""
    return f"valid loss = {result['valid_loss']:.9f}, acc = {result['accuracy']:.3f}"


def epoch_line(row: dict[str, Any]) -> str:
    """The epoch in the seed's form."""
    return (
        f"epoch: {row['epoch']}, train loss = {row['train_loss']:.9f}, {say(row)}, "
        f"time: {row['seconds']:.6f} sec"
    )


def rebuild_report(folder: Run) -> None:
    """The report so far. It is a by-product: what keeps it from being built must not end a training."""
    try:
        report.build(folder.folder)
    except report.ReportError as error:
        note(f"no report yet: {error}")


if __name__ == "__main__":
    run(
        ranks.reporting(main),
        PackError,
        RunError,
        ranks.RanksError,
        ResourcesError,
        WeightsError,
        CheckpointError,
        StreamError,
        ValueFormatError,
    )
