"""Greyhound from Python: pack, look, load batches, train, evaluate.

Before it: a script or a notebook, which says `import greyhound`. After it: the functions behind the commands;
each of these is a few lines over them. Errors that a user can mend derive from `UserError`.
"""

from __future__ import annotations

import difflib
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.cli import from_json, progress_bar
from greyhound.cache.errors import UserError
from greyhound.cache.options import SYNONYMS
from greyhound.cache.pack import Options as PackOptions
from greyhound.cache.pack import pack as write_pack
from greyhound.cache.source import SourceOptions
from greyhound.cache.store import Pack
from greyhound.model.run import METRICS, PACK, RECIPE, CheckpointName
from greyhound.model.run import Run as RunFolder
from greyhound.pipelines import threads
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader, Position
from greyhound.prediction import columns, expand, find, say_uncalibrated, to_row
from greyhound.recipe import RECIPES, Recipe, TrainOptions, note_idle, stretched
from greyhound.session import normalised, open_device
from greyhound.trained import Crops, open_calibrated, predict

__all__ = [
    "Augment",
    "Batches",
    "Pack",
    "PackOptions",
    "Resources",
    "Run",
    "SourceOptions",
    "UserError",
    "fit",
    "loader",
    "open_run",
    "pack_images",
    "show",
]

DEFAULT: Final = Resources()
PACKING: Final = PackOptions()
SHORT: Final = ("epochs", "lr", "size")
"""Names for what lies deeper in a recipe, as on the command line."""
ONE_IMAGE: Final = Resources(engine="threads", device="cpu", threads=1, image_cache="encoded")
"""What a single picture is made on."""


class ApiError(UserError):
    """A function was asked for what is not there; the message is one line."""


def pack_images(source: Path | str, out: Path | str, options: PackOptions = PACKING) -> Pack:
    """Pack a folder, or what else `greyhound pack` takes, into `out`, and open it. Raises PackError."""
    with progress_bar("looking at every image") as update:
        write_pack(Path(source), Path(out), options, update)
    return Pack(out)


class Batches:
    """Batches of a split, for a loop of your own. One pass over it is one epoch; the next pass is the next.

    Each batch is images, float32 `[B, 3, S, S]`, channels_last, normalised, and labels, int64 `[B]`, both on
    the device. With `views` above 1 the views of an image follow each other, `[B * views, 3, S, S]`, each
    with its label. Threads of the loader's own read ahead. They end with `close`, with the `with` block, or
    when nothing refers to this object or to a pass over it any more.
    """

    def __init__(self, source: Loader) -> None:
        """source: at the start of an epoch; this owns it."""
        self._source, self._last = source, weakref.finalize(self, source.close)

    def __enter__(self) -> Batches:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the threads. Batches that were handed out stay valid."""
        self._last()

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self._source)

    @property
    def epoch(self) -> int:
        """The epoch that the next pass begins, or, within a pass, its own, from 0."""
        return self._source.position.epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch. A pass that was left early is not taken up again: the next one is the next epoch.

        Raises ApiError where this is closed, before or meanwhile, and where another pass began; StreamError,
        PackError.
        """
        if not self._last.alive:
            raise ApiError("this loader is closed; make another one: greyhound.loader")
        if self._source.position.images:
            self._reopen(Position(self._source.position.epoch + 1))
        source = self._source
        for batch in source.epoch():
            yield batch.flat()
            if source is not self._source:
                raise ApiError("another pass over this loader has begun; for two at once make two loaders")
        if source.position.images:
            raise ApiError("this loader was closed during a pass, which ends before its epoch does")

    def _reopen(self, start: Position) -> None:
        self._last()
        self._source = self._source.again(start)
        self._last = weakref.finalize(self, self._source.close)


def loader(
    pack: Pack | Path | str,
    split: str = "train",
    batch_size: int = 32,
    *,
    recipe: str = "fast",
    augment: Augment | None = None,
    size: int | None = None,
    training: bool | None = None,
    seed: int = 0,
    views: int = 1,
    resources: Resources = DEFAULT,
) -> Batches:
    """A split's batches, with the pixels that a training of ours gets.

    training: shuffled, and under random augmentation; otherwise in the pack's order, the centre window. By
    default only the split train. augment: what may happen to an image, instead of the recipe's. size: S, the
    side of the square images, instead of the augmentation's. views: augmentations of each image of a batch.
    Raises UserError, and ValueError for a number that cannot be.
    """
    opened = pack if isinstance(pack, Pack) else Pack(pack, resources.originals)
    rows, trains = opened.ids(split), split == "train" if training is None else training
    if not len(rows):
        why = opened.header.empty.get(split) or f"pack again, with PackOptions({split}=0.2) for example"
        raise ApiError(f"{opened.path} has no images in its split {split}; {why}")
    chosen = _augment(recipe, augment, size)
    chosen = chosen if trains else chosen.centre()
    if chosen.mixes:
        raise ApiError("mixup and cutmix give an image two labels, and a loader yields one; set both to 0")
    return Batches(
        Loader(opened, chosen, rows, resources, batch_size=batch_size, shuffle=trains, seed=seed, views=views)
    )


def show(
    pack: Pack | Path | str,
    epoch: int | None,
    id: int,
    *,
    recipe: str = "fast",
    augment: Augment | None = None,
    size: int | None = None,
    seed: int = 0,
    view: int = 0,
) -> NDArray[np.uint8]:
    """Image `id`, a row of the pack, as a training sees it in `epoch`: uint8 `[S, S, 3]`.

    epoch: from 0; None: as evaluation sees it, its centre window. The others: as `loader` has them. The
    picture is a function of these alone. The engine threads makes it, as on a CPU. Raises UserError.
    """
    opened = pack if isinstance(pack, Pack) else Pack(pack)
    if not 0 <= id < len(opened):
        raise ApiError(f"{opened.path} has no row {id}; expected 0 to {len(opened) - 1}")
    chosen = _augment(recipe, augment, size)
    chosen = chosen if epoch is not None else chosen.centre()
    start, rows = Position(epoch or 0), np.array([id])
    with Loader(
        opened, chosen, rows, ONE_IMAGE, batch_size=1, seed=seed, views=view + 1, epochs=1, start=start
    ) as source:
        images, _ = next(source).flat()
    picture: NDArray[np.uint8] = chosen.to_pixels(images[view:].numpy())[0]
    return picture


def _augment(recipe: str, augment: Augment | None, size: int | None) -> Augment:
    """What a loader does to its images. Raises UserError."""
    chosen = augment or normalised(_find_recipe(recipe)).augment
    return replace(chosen, size=size) if size is not None else chosen


def _find_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ApiError(f"there is no recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name][0]


def fit(
    recipe: str | Recipe,
    pack: Pack | Path | str,
    out: Path | str,
    *,
    resources: Resources = DEFAULT,
    resume: bool = False,
    **changes: Any,
) -> Run:
    """Train a recipe, by its name or a value, as `greyhound train` does; the run folder is `out`.

    changes: fields of the recipe, as in `dataclasses.replace`; also epochs, lr and size, as on the command
    line. resume: go on from the last checkpoint of `out`. Raises UserError.
    """
    from greyhound.train import train

    chosen = _find_recipe(recipe) if isinstance(recipe, str) else recipe
    options = TrainOptions(
        out=Path(out),
        pack=pack.path if isinstance(pack, Pack) else Path(pack),
        recipe=_changed(chosen, changes),
        resources=resources,
        resume=resume,
    )
    note_idle(options, changes)
    train(options, lambda: None)
    return Run(options.out)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values of some fields, by name; also epochs, lr and size. Raises UserError."""
    known = [field.name for field in fields(recipe)]
    for name in changes:
        if name not in known and name not in SHORT:
            near = (
                [SYNONYMS[dashed].replace("-", "_")] if (dashed := name.replace("_", "-")) in SYNONYMS else []
            )
            near = near or difflib.get_close_matches(name, [*known, *SHORT], n=3)
            meant = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
            raise ApiError(f"a recipe has no field {name!r}; {meant}")
    content = asdict(recipe) | {name: _plain(value) for name, value in changes.items() if name in known}
    if "size" in changes:
        content["augment"] = content["augment"] | {"size": changes["size"]}
    try:
        read = from_json(Recipe, content, f"recipe {recipe.name}")
        return stretched(read, changes.get("epochs"), changes.get("lr"))
    except (TypeError, ValueError) as error:
        raise ApiError(f"recipe {recipe.name}: {error}") from None


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, also in a tuple."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [*map(_plain, value)] if isinstance(value, tuple | list) else value


def open_run(folder: Path | str) -> Run:
    """A run that was trained before. Raises RunError where there is none."""
    run = Run(Path(folder))
    _ = run.recipe, run.classes
    return run


@dataclass(frozen=True)
class Run:
    """A trained run."""

    folder: Path

    @property
    def recipe(self) -> Recipe:
        """What it was trained with. Raises RunError."""
        return from_json(Recipe, RunFolder(self.folder).read(RECIPE), str(self.folder / RECIPE))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label. Raises RunError."""
        return tuple(RunFolder(self.folder).read(PACK)["classes"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row of every epoch: its number, losses, accuracy. Raises RunError."""
        return RunFolder(self.folder).rows(METRICS)

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.folder / "report.html"

    def network(self, checkpoint: CheckpointName = "auto", resources: Resources = DEFAULT) -> nn.Module:
        """The trained network, in evaluation mode, on the device: logits `[B, K]` of images `[B, 3, S, S]`.

        Its images are those of `loader(pack, split, augment=run.recipe.augment)`. Raises UserError.
        """
        *_, device = open_device(resources)
        return RunFolder(self.folder).network(checkpoint, device)[1]

    def transform(self) -> Callable[[NDArray[np.uint8]], torch.Tensor]:
        """What makes one image for `network`: upright RGB, uint8 `[H, W, 3]`, to float32 `[3, S, S]`.

        See `threads.centre_window`. Raises RunError.
        """
        augment = self.recipe.augment
        return lambda pixels: torch.from_numpy(threads.centre_window(pixels, augment)).permute(2, 0, 1)

    def predict(
        self,
        files: Path | str | Sequence[Path | str],
        *,
        crops: int = 1,
        top: int = 1,
        probabilities: bool = False,
        pack: Path | str | None = None,
        checkpoint: CheckpointName = "auto",
        seed: int = 0,
        resources: Resources = DEFAULT,
    ) -> Iterator[dict[str, Any]]:
        """A row for each file, in order, as soon as it is known, as `greyhound predict` writes them.

        files: files, folders, patterns. A row has path, class and probability; class_2, probability_2 and so
        on, up to `top`; true_class and right, where a folder is named as a class; error, why a file could not
        be read, else None. probabilities: also "probability of CLASS" of every class. pack: where the run's
        pack is now, for the calibration. Raises UserError, ValueError.
        """
        words = [files] if isinstance(files, str | Path) else files
        images = list(find(expand([*map(str, words)]), self.classes))
        where = Path(pack) if pack else None
        trained, fitted = open_calibrated(self.folder, checkpoint, resources, where, crops)
        say_uncalibrated(fitted.why)
        names = columns(self.classes, top, probabilities, any(each.true_class for each in images))
        found = predict(trained, images, resources, Crops(crops, seed=seed), fitted.temperature)
        return (to_row(each, trained.classes, names) for each in found)

    def evaluate(
        self,
        split: Literal["test", "val", "train"] = "test",
        crops: int = 10,
        *,
        pack: Path | str | None = None,
        checkpoint: CheckpointName = "auto",
        seed: int = 0,
        resources: Resources = DEFAULT,
    ) -> dict[str, Any]:
        """What `greyhound eval` measures and writes: eval.json's content. Raises UserError, ValueError."""
        from greyhound.eval import Job, evaluate

        return evaluate(
            Job(
                self.folder,
                crops,
                split=split,
                pack=Path(pack) if pack else None,
                checkpoint=checkpoint,
                seed=seed,
                resources=resources,
            )
        )
