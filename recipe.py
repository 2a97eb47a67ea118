"""A recipe: all that decides what a training computes, as a value; and those that come with Greyhound.

Before it: nothing. After it: train follows it, `session` opens what it names, eval and explain read its
augmentation. Another recipe is derived from one of these with `replace`, or on the command line by naming any
field. No torch here.
"""

from __future__ import annotations

import math
import os
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from greyhound.cache.cli import note
from greyhound.cache.folds import Fold
from greyhound.cache.options import (
    Option,
    OptionError,
    Parser,
    apply_named,
    check_counts,
    check_field,
    check_seed,
    options,
)
from greyhound.model.schedule import PAPER_PHASES, Phase, lr_at, total_epochs, with_epochs, with_lr
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources

Forcible = Literal["recipe", "pack", "versions"]
"""What may differ from the run's own where it is forced."""
Tracker = Literal["tensorboard", "mlflow", "trackio", "wandb"]
"""Where a run can be logged besides its folder."""


AUTO: Final = -1
"""Of `micro_batch`: chosen by device."""


def hidden(default: str) -> str:
    """A field that is recorded and no flag."""
    return field(default=default, metadata={"hidden": True})


@dataclass(frozen=True)
class Averaging:
    """Stochastic weight averaging after training: full-batch gradient steps at a fixed learning rate."""

    steps: int = 5
    """Steps; each needs the gradient of the whole training set. 0: none."""
    rate: float = 1e-4
    """Learning rate of these steps."""


@dataclass(frozen=True)
class Recipe:
    """What a training computes. The defaults are those of `paper`, the original recipe."""

    name: str = hidden("paper")
    """Which recipe this was derived from."""
    network: str = "efficientnet_b2"
    """Any timm name."""
    weights: str = "auto"
    """auto: an installed package of weights, then timm's hub; none: random; or a file."""
    augment: Augment = field(default_factory=Augment)
    normalise: bool = False
    """Normalise by the mean and std that the pretrained weights expect; sets augment.mean and augment.std."""
    batch_size: int = 32
    """Images a step."""
    micro_batch: int = 0
    """Images of a step that a process computes at once; their gradients add up. 0: all. Above 0 it needs
    frozen statistics. -1: 8 where it can be on a CPU, for less memory; all on a GPU."""
    phases: tuple[Phase, ...] = PAPER_PHASES
    """The learning rate, phase by phase."""
    views: int = 1
    """Augmentations of each image in a batch (Hoffer et al. 2020). Each counts as an image of the batch."""
    momentum: float = 0.9
    """Momentum of SGD."""
    max_grad_norm: float = 0.0
    """In epochs, a step's gradient is scaled down to this L2 norm, over all weights together; 0: never."""
    weight_decay: float = 0.0
    """L2 penalty on every weight, as in torch's SGD."""
    label_smoothing: float = 0.1
    """e: the target is 1 - e on the true class and e / (K - 1) on each other one."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every class weighs as much in the loss, and in the probe, however many images it has."""
    linear_probe: bool = False
    """Before the first epoch, fit the last layer to the frozen features."""
    probe_grids: tuple[int, ...] = (0,)
    """Grids that the linear probe tries. g: the features of the last two stages, averaged on g x g cells,
    beside the last layer's. 0: the last layer's alone."""
    freeze_bn: bool = False
    """Keep BatchNorm's running statistics as pretrained. Its scale and shift are still trained."""
    averaging: Averaging = field(default_factory=Averaging)
    select: Literal["accuracy", "loss"] = "accuracy"
    """Which validation result makes a checkpoint the best. The cross entropy is less noisy on few images."""
    patience: int = 0
    """Training ends after so many epochs in a row without a better validation, by `select`. 0: never."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the device has it. Saved activations of B2: 92.1 MB an image, 168.5 in fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: 13.0 MB an image instead of 168.5 (B2, 256 px, fp32)."""
    compile: bool = False
    """torch.compile the network, on a GPU with CUDA graphs; or say why not, and run eagerly."""
    sync_batchnorm: bool = False
    """On several GPUs, compute BatchNorm's statistics over all of them."""
    seed: int = 0
    """Seed of the images' order, their augmentation, and a new head's first weights."""
    note: str = hidden("")
    """Printed beside every accuracy in the report."""

    def __post_init__(self) -> None:
        """Refuse numbers that no training could have. Raises ValueError."""
        least = {"batch_size": 1, "micro_batch": AUTO, "weight_decay": 0, "max_grad_norm": 0}
        for name, low in least.items():
            check_field(name, getattr(self, name), low <= getattr(self, name) < math.inf, f"{low} or more")
        for name in ("momentum", "label_smoothing"):
            check_field(name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 to below 1")
        check_field(
            "views", self.views, 1 <= self.views <= self.batch_size, f"1 to --batch-size, {self.batch_size}"
        )
        check_field("patience", self.patience, self.patience >= 0, "0 or more")
        check_field("averaging.steps", self.averaging.steps, self.averaging.steps >= 0, "0 or more")
        check_field("averaging.rate", self.averaging.rate, 0 <= self.averaging.rate < math.inf, "0 or more")
        check_seed(self.seed)
        known = self.probe_grids and all(0 <= grid <= 7 for grid in self.probe_grids)
        check_field("probe_grids", " ".join(map(str, self.probe_grids)), bool(known), "one or more of 0 to 7")
        if self.micro_batch > 0 and not self.freeze_bn:
            raise ValueError("--micro-batch needs frozen statistics; add --freeze-bn, or --micro-batch 0")
        if self.micro_batch > 0 and self.compile:
            raise ValueError("--compile needs a whole batch in one call; add --micro-batch 0")
        if not (self.phases or self.linear_probe):
            raise ValueError("nothing is trained: no phases, and no linear probe")

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return total_epochs(self.phases)

    def lr_at(self, epoch: float, step: float = 0.0) -> float:
        """The learning rate of a step, see `schedule.lr_at`."""
        return lr_at(self.phases, epoch, step)

    @property
    def trains(self) -> bool:
        """Whether there are steps: epochs, or averaging."""
        return bool(self.phases or self.averaging.steps)

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16, once the precision is resolved."""
        return self.precision == "bf16"


PRETRAINED_NOTE: Final = (
    "The network starts from ImageNet weights; where the images, or images like them, are part of ImageNet "
    "(Stanford Dogs is), it has seen them before."
)
PAPER: Final = Recipe(note=PRETRAINED_NOTE)
FAST: Final = replace(
    PAPER,
    name="fast",
    network="tf_efficientnet_lite2",
    augment=Augment(
        size=256,
        scale=(1.0, 1.25),
        crop_scale=(1.0, 1.0),
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
    linear_probe=True,
    probe_grids=(0, 1, 4),
    freeze_bn=True,
    micro_batch=AUTO,
    max_grad_norm=1.0,
    phases=(),
    averaging=Averaging(steps=0),
)
FINE: Final = replace(
    FAST, name="fine", phases=(Phase(epochs=1, high=3e-3, low=1e-5, cycles=0.5, warm_up=0.2),)
)
DEMO: Final = replace(
    FINE,
    name="demo",
    network="tf_efficientnet_lite0",
    augment=replace(FAST.augment, size=160, crop_scale=None),
    probe_grids=(0, 1, 3),
    phases=(Phase(epochs=2, high=4e-3, low=1e-5, cycles=0.5, warm_up=0.5),),
    averaging=Averaging(steps=2, rate=5e-4),
)
RECIPES: Final = {
    "paper": (PAPER, "the original recipe, number by number: 200 epochs"),
    "fast": (FAST, "a linear probe of pretrained features, in one pass"),
    "fine": (FINE, "fast, and then an epoch of the whole network"),
    "demo": (DEMO, "minutes on two cores, for the images of greyhound demo"),
}


_NO_EPOCHS: Final = "this recipe has no epochs; --epochs 1 would add one"
_OF_EPOCHS: Final = ("momentum", "max-grad-norm", "weight-decay", "micro-batch", "compile", "patience")
"""Flags that only epochs look at."""
_OF_STEPS: Final = (
    "views", "batch-size", "label-smoothing", "freeze-bn", "select", "activation-checkpointing",
    "sync-batchnorm", "seed",
    *(f"augment.{name}" for name in (
        "rotation", "shear", "flip", "brightness", "contrast", "saturation", "hue", "randaugment",
        "magnitude", "mixup", "cutmix",
    )),
)  # fmt: skip
"""Flags that only epochs and averaging look at."""
_OF_CHECKPOINTS: Final = ("checkpoints.minutes", "checkpoints.steps", "checkpoints.keep")
"""Flags that only epochs look at: without them last.ckpt is written once."""


def idle(recipe: Recipe, crops: bool = True) -> dict[str, str]:
    """Flags of this recipe that change no result of it, and why not.

    crops: whether eval's random crops count as a result; else validation alone does.
    """
    augment, found, of_crops = recipe.augment, dict[str, str](), "only eval's crops use it"
    if not recipe.phases:
        found |= dict.fromkeys(_OF_EPOCHS, _NO_EPOCHS)
    if not recipe.trains:
        found |= dict.fromkeys(_OF_STEPS, _NO_EPOCHS)
    if recipe.weights == "none":
        found.pop("seed", None)  # it draws the weights
    if not crops:
        of_eval = ("crop-scale",) if recipe.trains else ("crop-scale", "scale", "placement")
        found |= dict.fromkeys((f"augment.{name}" for name in of_eval), of_crops)
    elif augment.fit != "crop":
        found["augment.crop-scale"] = f"with --augment.fit {augment.fit} crops use --augment.scale"
    elif augment.crop_scale and not recipe.trains:
        found["augment.scale"] = "there are no epochs, and eval's crops use --augment.crop-scale"
    if not augment.randaugment:
        found["augment.magnitude"] = "it is RandAugment's; add --augment.randaugment 2"
    if not recipe.averaging.steps:
        found["averaging.rate"] = "nothing is averaged; add --averaging.steps 5"
    if not recipe.linear_probe:
        found["probe-grids"] = "there is no linear probe; add --linear-probe"
    if recipe.normalise:
        found |= dict.fromkeys(("augment.mean", "augment.std"), "--normalise sets it; add --no-normalise")
    return found


@dataclass(frozen=True)
class Checkpoints:
    """When last.ckpt is written besides the end of each epoch and a signal, and how many are kept."""

    minutes: float = 0.0
    """Write last.ckpt also every so many minutes; 0: only after each epoch."""
    steps: int = 0
    """Write last.ckpt also every so many steps; 0: only after each epoch."""
    keep: int = 2
    """How many to keep: last.ckpt, last.1.ckpt before it, and so on."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense. Raises ValueError."""
        check_field("checkpoints.minutes", self.minutes, 0 <= self.minutes < math.inf, "0 or more")
        check_field("checkpoints.steps", self.steps, self.steps >= 0, "0 or more")
        check_field("checkpoints.keep", self.keep, self.keep >= 1, "at least 1")


@dataclass(frozen=True)
class TrainOptions:
    """A recipe, and where it runs."""

    out: Path = Path()
    """Run folder to write: new, empty, or with --resume the run's."""
    pack: Path | None = None
    """Pack to train on, made by greyhound pack. With --resume: the run's own by default."""
    recipe: Recipe = FAST
    resources: Resources = field(default_factory=Resources)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    resume: bool = False
    """Go on from the run folder's last checkpoint, with the run's own recipe and pack."""
    force: tuple[Forcible, ...] = ()
    """With --resume: go on although these differ from the run's own."""
    sweep: tuple[str, ...] = ()
    """Train many times, each time with other values of these fields: lr=1e-4..1e-2 batch-size=16,32."""
    trials: int = 20
    """Of `--sweep`, in all."""
    log: tuple[Tracker, ...] = ()
    """Trackers that get the run as well, from its folder; --resume, eval and explain go on in them."""
    dry_run: bool = False
    """Write nothing; say how much memory, how many steps and how much time the training would take."""
    verify_determinism: bool = False
    """Write nothing; train 20 steps twice from the start, and compare the weights bit for bit."""
    folds: int = 0
    """Cross-validation: train so many times, each image of train and val being validated once. 0: no."""
    fold: Fold | None = field(default=None, metadata={"hidden": True})
    """Of these, the one that is trained."""
    find_lr: bool = False
    """Train up to 100 steps while the learning rate grows; write the curve into `out`, and suggest a rate."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself. Raises ValueError."""
        names = ("dry_run", "verify_determinism", "find_lr")
        flags = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if len(flags) > 1:
            raise ValueError(f"{' and '.join(flags)} do different things; leave out all but one")
        if (self.verify_determinism or self.find_lr) and self.resume:
            raise ValueError(f"{flags[0]} starts from the beginning; leave out --resume")
        if (self.sweep or self.folds) and self.starts_no_run:
            flag = "--sweep" if self.sweep else "--folds"
            raise ValueError(f"{flag} trains; leave out --dry-run, --verify-determinism and --find-lr")
        if self.sweep and self.folds:
            raise ValueError("--sweep and --folds both train several times; leave out one")
        check_counts(trials=self.trials)
        if self.force and not self.resume:
            raise ValueError("--force is for a run that is resumed; expected --resume beside it")

    @property
    def starts_no_run(self) -> bool:
        """Whether no run begins."""
        return self.dry_run or self.verify_determinism or self.find_lr


COMMON: Final = (
    "pack", "out", "epochs", "lr", "augment.size", "batch-size", "network", "weights", "seed", "resume",
)  # fmt: skip
"""The flags of `greyhound train` that people use first."""
ALIASES: Final = {"augment.size": ("--size",)}
GROUPS: Final = {
    "data": ("image-cache", "cache-bytes", "originals", "on-corrupt"),
    "network": ("linear-probe", "probe-grids", "freeze-bn", "normalise"),
    "augmentation": ("augment", "views"),
    "optimisation": (
        "phases", "momentum", "max-grad-norm", "weight-decay", "label-smoothing", "class-weights",
        "micro-batch", "averaging",
    ),
    "evaluation": ("select", "patience"),
    "checkpoints": ("checkpoints", "force", "dry-run", "verify-determinism", "find-lr"),
    "several trainings": ("sweep", "trials", "folds"),
    "tracking": ("log",),
    "hardware": (
        "device", "engine", "threads", "prefetch", "timeout",
        "precision", "compile", "activation-checkpointing", "sync-batchnorm",
    ),
}  # fmt: skip
"""The other flags, by the heading under which --help lists them; a name stands for all that begin with it."""
_INLINE: Final = ("recipe", "resources")


def read_options(arguments: Sequence[str]) -> TrainOptions:
    """The command line of train: a recipe's name, then any field of it. Raises OptionError, RunError."""
    recipes = {name: recipe for name, (recipe, _) in RECIPES.items()}
    first = Parser("greyhound train", "")
    first.add_argument("--out", type=Path, default=Path())
    first.add_argument("--resume", action=BooleanOptionalAction)
    found, _ = first.parse_known_args([word for word in arguments if word not in ("-h", "--help")])
    if not (found.resume and (found.out / "recipe.json").exists()):
        read = _read(arguments, recipes)
        if not read.resume and "RANK" not in os.environ:  # torchrun starts again what has begun
            refuse_run(read.out)
        return read
    from greyhound.begin import own_recipe, unresolved  # where torch is needed anyway

    own = unresolved(own_recipe(found.out))
    return _read(arguments, recipes | {own.name: own}, own.name)


def refuse_run(out: Path) -> None:
    """Refuse a folder that holds a run. Raises OptionError."""
    if (out / "recipe.json").exists():
        raise OptionError(f"{out} holds a run already; name another folder, or go on with it: --resume")


def _read(arguments: Sequence[str], recipes: dict[str, Recipe], usual: str = "") -> TrainOptions:
    """As `read_options`. usual: the recipe where none is named."""
    first = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if first and first not in recipes:
        raise OptionError(f"there is no recipe {first!r}; expected one of {', '.join(recipes)}")
    asked = {"--help", "-h"} & set(arguments)
    if not (first or asked or "--resume" in arguments):
        raise OptionError(
            f"no recipe is named; expected: greyhound train {'|'.join(RECIPES)} --pack PACK --out RUN"
        )
    base = TrainOptions(recipe=recipes[first or usual or "fast"])
    parser = _parser(base, first)
    named = vars(parser.read(arguments[1:] if first else arguments))
    epochs, lr = named.pop("epochs", None), named.pop("lr", None)
    read = apply_named(base, named, _INLINE, ("out",), "greyhound train")
    try:
        read = replace(read, recipe=stretched(read.recipe, epochs, lr))
    except ValueError as error:
        raise OptionError(str(error)) from None
    note_idle(read, named)
    return read


def note_idle(options: TrainOptions, named: Mapping[str, object]) -> None:
    """Say which of the named flags change nothing; of several processes one says it. named: their values."""
    if options.sweep or os.environ.get("RANK", "0") != "0":  # what a sweep changes may use them
        return
    found = idle(options.recipe) | {"trials": "only --sweep uses it"}
    if not options.recipe.phases:
        found |= dict.fromkeys(_OF_CHECKPOINTS, _NO_EPOCHS)
    if options.folds:
        found.pop("seed", None)  # it deals out the folds
    for why in dict.fromkeys(found.values()):
        flags = {name.replace("_", "-"): "--no-" if value is False else "--" for name, value in named.items()}
        of_it = [f"{start}{flag}" for flag, start in flags.items() if found.get(flag) == why]
        if of_it:
            note(f"{', '.join(of_it)}: no effect here, {why}")


def stretched(recipe: Recipe, epochs: int | None = None, lr: float | None = None) -> Recipe:
    """The recipe with so many epochs in all, and with this highest learning rate. Raises ValueError."""
    phases = recipe.phases or (FINE.phases if epochs is not None else ())
    phases = phases if epochs is None else with_epochs(phases, epochs)
    return replace(recipe, phases=phases if lr is None else with_lr(phases, lr))


def _parser(base: TrainOptions, first: str) -> Parser:
    recipes = "; ".join(f"{name}: {about}" for name, (_, about) in RECIPES.items())
    parser = Parser(
        "greyhound train", f"Train a recipe on a pack. {recipes}. Defaults are those of {base.recipe.name}."
    )
    parser.usage = f"greyhound train {first or '|'.join(RECIPES)} --pack PACK --out RUN [flags]"
    found = {option.name: option for option in options(base, _INLINE)}
    common = parser.add_argument_group("most used")
    found["epochs"] = Option(("epochs",), int, None, "Epochs in all; every phase keeps its share.")
    found["lr"] = Option(("lr",), float, None, "Highest learning rate; all others keep their ratio to it.")
    for name in COMMON:
        parser.add(found.pop(name), common, ALIASES.get(name, ()))
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in [name for name in found if name in names or name.partition(".")[0] in names]:
            parser.add(found.pop(name), group)
    assert not found, f"flags without a heading: {', '.join(found)}"
    return parser
