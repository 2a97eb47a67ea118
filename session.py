"""What the scripts work with, opened once: device, pack, run folder, network, loaders.

Before it: a recipe and resources. After it: train, eval, explain and review use what was opened. Each
function here takes values and not a script's options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.cli import Stop, Stopped, from_json, note, progress_bar
from greyhound.cache.folds import Fold
from greyhound.cache.machine import describe_machine
from greyhound.cache.shards import find
from greyhound.cache.store import Pack, PackError
from greyhound.model import distributed, linear_probe, precision
from greyhound.model.dry_run import check_input_size
from greyhound.model.imports import without_compiler
from greyhound.model.network import GridFeatures, build, convert_sync_batchnorm, normalisation, set_train_mode
from greyhound.model.precision import fuse_conv_bn, use_fast_kernels
from greyhound.model.run import PACK, THREADS, RecipeError, Run, RunError, versions
from greyhound.model.state import CheckpointSaver, TrainState
from greyhound.model.step import Loss, image_weights, smoothed_cross_entropy, validate, weighted
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Batch, Clock, Loader, Position, choose, torch_device
from greyhound.recipe import Recipe

EVALUATED: Final = {"gpu": 64, "cpu": 16}
"""Images in a batch of evaluation, by device. On a CPU more take more memory, and no less time."""
START: Final = Position()
"""The beginning of a training."""


@dataclass(frozen=True)
class TrainContext:
    """A training under way: what every stage of it works with."""

    recipe: Recipe
    """Resolved."""
    resources: Resources
    run: Run
    state: TrainState
    training: Loader
    """Stands where the training stands; after the last epoch it goes on for the averaging."""
    validation: Loader
    saver: CheckpointSaver
    stop: Stop
    follow: Callable[[], None] = lambda: None
    """Gives trackers what is new in the run folder."""

    @property
    def pack(self) -> Pack:
        """What is trained on."""
        return self.training.pack

    def validate(self, network: nn.Module, title: str) -> dict[str, Any]:
        """Loss and accuracy of a network on the validation split. Raises Stopped."""
        inference = fuse_conv_bn(network, self.recipe.augment.size)
        batches = (batch.flat() for batch in self.with_progress(title, self.validation))
        return validate(inference, batches, self.recipe.bf16)

    def with_progress(
        self,
        title: str,
        loader: Loader,
        clock: Clock | None = None,
        done: int = 0,
        say_more: Callable[[], str] = str,
    ) -> Iterator[Batch]:
        """The rest of the loader's epoch, under a progress bar. Raises Stopped on a signal.

        clock: measures it. done: images of the epoch that came before, for the bar. say_more: see `Update`.
        """
        clock = clock or Clock(loader)

        def say() -> str:
            return ", ".join(filter(None, (clock.note(), say_more())))

        with progress_bar(title, distributed.is_main()) as update:
            for batch in loader.epoch():
                if self.stop():
                    raise Stopped(f"while {title}")
                yield batch
                update(done + clock.images, len(loader.ids), say)

    def loss(self) -> Loss:
        """The recipe's, over this rank's images of a batch."""
        return weighted(smoothed_cross_entropy(self.recipe.label_smoothing, len(self.pack.classes)))

    def compiled(self) -> nn.Module:
        """The network as a step calls it: compiled where the recipe says so and every rank can."""
        recipe, network = self.recipe, self.state.network
        if not recipe.compile:
            return network
        set_train_mode(network, recipe.freeze_bn)
        counts = [images * recipe.views for images in self.training.batch_sizes()]
        called, why = precision.compiled(network, counts, recipe.augment.size, recipe.bf16)
        if not distributed.all_reduce_max(bool(why)):
            return called
        distributed.on_main(note, why or "not compiled: another process cannot; the step runs as it is")
        return network


def open_device(resources: Resources) -> tuple[str, str, torch.device]:
    """The engine, and the device by our name and by torch's, set up for speed. Raises ResourcesError."""
    engine, name = choose(resources.engine, resources.device)
    device = torch_device(name)
    use_fast_kernels(device)
    return engine, name, device


def open_pack(path: Path, resources: Resources, fold: Fold | None = None) -> Pack:
    """The pack to train on, the same on every rank, as a fold sees it. Raises PackError."""
    pack = Pack(path, resources.originals, fold)
    digest = distributed.broadcast_from_main(lambda: pack.header.digest)
    if digest != pack.header.digest:
        found = f"{pack.path} is another pack here, on rank {distributed.rank()}, than on rank 0"
        raise PackError(f"{found}; copy it to every machine")
    for split in ("train", "val"):
        if not len(pack.ids(split)):
            why = pack.header.empty.get(split) or f"pack again, with --{split} 0.2 for example"
            raise PackError(f"{pack.path} has no images in its split {split}; {why}")
    ids = pack.ids("train")
    trained = np.unique(pack.labels[ids[pack.weights[ids] > 0]])
    of = [pack.classes[label] for label in trained]
    if len(of) < 2:
        heavy = "" if pack.weights[ids].all() else ", of a weight above 0,"
        raise PackError(
            f"{pack.path} has training images{heavy} of {', '.join(map(repr, of)) or 'no class'} alone; "
            "expected at least 2 classes: pack more images, or smaller --val and --test"
        )
    return pack


def open_trained_pack(run: Run, path: Path | None, resources: Resources) -> Pack:
    """The pack that a run was trained on, or another one of the same classes. Raises RunError, PackError."""
    pack = Pack(path or trained_pack_path(run), resources.originals)
    if (fold := fold_of(run)) and is_own(pack, run):
        pack = Pack(pack.path, resources.originals, fold)
    pack.require_classes(run.read(PACK)["classes"], str(run.folder))
    return pack


def is_own(pack: Pack, run: Run) -> bool:
    """Whether it is the pack that a run was trained on, or a copy of it. Raises RunError."""
    return bool(pack.header.digest == run.read(PACK)["digest"])


def open_own_pack(run: Run, path: Path | None, resources: Resources) -> Pack:
    """The pack that a run was trained on, and no other. Raises RunError, PackError."""
    pack = open_trained_pack(run, path, resources)
    if not is_own(pack, run):
        raise RunError(f"{pack.path} is not the pack that {run.folder} was trained on")
    return pack


def fold_of(run: Run) -> Fold | None:
    """The fold that a run was trained on; None where its pack was taken as it is. Raises RunError."""
    found = run.read(PACK).get("fold")
    return from_json(Fold, found, f"{run.folder / PACK}, fold", partly=True) if found else None


def trained_pack_path(run: Run) -> Path:
    """Where the pack of a run is: where it was, or, of the same digest, at the same place beside the run.

    Raises RunError, PackError.
    """
    known = run.read(PACK)
    was, beside = Path(known["path"]), str(known["beside"])
    if _is_there(was):
        return was
    there = run.folder / beside
    if beside and _is_there(there) and is_own(Pack(there), run):
        return there
    raise RunError(f"the pack of {run.folder} cannot be found at {was}; name it: --pack PACK")


def _is_there(pack: Path) -> bool:
    """Whether a pack lies there, in a folder that may be entered."""
    try:
        return any(file.exists() for file in find(pack))
    except PermissionError:
        return False


def open_versions(engine: str, name: str, device: torch.device) -> dict[str, str]:
    """What a result depends on here, for versions.json."""
    used = versions(machine=describe_machine(), engine=engine, device=name)
    if device.type == "cpu" and distributed.world_size() == 1:
        used[THREADS] = str(torch.get_num_threads())
    return used


def open_state(
    recipe: Recipe, classes: int, device: torch.device, started: float, pretrained: bool = True, grid: int = 0
) -> TrainState:
    """A training before its first step. pretrained: with weights. grid: of its head, see `network.build`.

    Raises RunError, WeightsError.
    """
    torch.manual_seed(recipe.seed)
    weights = recipe.weights if pretrained else "none"
    network = build(recipe.network, classes, weights, recipe.activation_checkpointing, grid)
    network = (convert_sync_batchnorm(network) if recipe.sync_batchnorm else network).to(device)
    try:
        smoothed_cross_entropy(recipe.label_smoothing, classes)
        if recipe.linear_probe:
            linear_probe.classifier(network)
            if not grid:
                GridFeatures(network, recipe.probe_grids)  # refuses a network that gives no stages
    except ValueError as error:
        raise RecipeError(str(error)) from None
    check_input_size(network, recipe.network, recipe.augment.size, recipe.bf16)
    return TrainState(network=network, optimizer=open_optimizer(recipe, network), since=started)


def normalised(recipe: Recipe) -> Recipe:
    """The recipe with the mean and std that its network's weights expect, where it normalises by them.

    Raises WeightsError.
    """
    if not recipe.normalise:
        return recipe
    mean, std = normalisation(recipe.network)
    return replace(recipe, augment=replace(recipe.augment, mean=mean, std=std))


def open_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.SGD:
    """The recipe's optimizer; each step sets its learning rate."""
    with without_compiler():
        return torch.optim.SGD(
            network.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )


@contextmanager
def open_loaders(
    recipe: Recipe, pack: Pack, resources: Resources, start: Position
) -> Iterator[tuple[Loader, Loader]]:
    """Training and validation, for as long as the block runs: they share the memory of the image cache."""
    with open_training(recipe, pack, resources, start) as training:
        if training.plan.left is not None:
            resources = replace(resources, cache_bytes=f"{training.plan.left}B")
        with open_evaluation(recipe, pack, resources, pack.ids("val")) as validation:
            for loader in (training, validation):
                distributed.on_main(note, loader.describe_corrupt())
            yield training, validation


def open_training(recipe: Recipe, pack: Pack, resources: Resources, start: Position = START) -> Loader:
    """The training split, shuffled and augmented, from `start` on."""
    return Loader(
        pack,
        recipe.augment,
        pack.ids("train"),
        resources,
        batch_size=recipe.batch_size // recipe.views,
        shuffle=True,
        seed=recipe.seed,
        views=recipe.views,
        start=start,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        weights=open_weights(recipe, pack),
    )


def open_weights(recipe: Recipe, pack: Pack) -> NDArray[np.float32] | None:
    """What each row of the pack weighs in training, see `step.image_weights`; None: all the same."""
    ids, balanced = pack.ids("train"), recipe.class_weights == "balanced"
    if not (balanced or np.ptp(pack.weights[ids])):
        return None
    weights = pack.weights.copy()
    weights[ids] = image_weights(pack.labels[ids], weights[ids], balanced)
    return weights


def open_evaluation(
    recipe: Recipe, pack: Pack, resources: Resources, ids: NDArray[np.int64], epochs: int | None = None
) -> Loader:
    """Images as evaluation sees them: each once an epoch, its centre window. One epoch keeps no pixels."""
    return Loader(
        pack,
        recipe.augment.centre(),
        ids,
        resources,
        batch_size=EVALUATED[choose(resources.engine, resources.device)[1]] * distributed.world_size(),
        seed=recipe.seed,
        epochs=epochs,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
