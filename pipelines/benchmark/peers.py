"""The loaders that people use instead: the same augmentation as far as each can express it.

Before it: a resident pack. After it: `benchmark` times each of them beside our engines. Every peer reads its
originals from memory, and each is written the way its own documentation would have it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from greyhound.cache.decode import decode
from greyhound.cache.store import Pack
from greyhound.pipelines.augment import Augment

BATCH_SIZE: Final = 64
AUGMENT: Final = Augment()
"""What every row does to an image: the original recipe."""
_SIDES: Final = tuple(round(side * AUGMENT.size) for side in AUGMENT.scale)
"""The short side lies between these."""
_AREA: Final = (1 / AUGMENT.scale[1] ** 2, 1.0)
"""Share of a photograph in the window. A crop cannot reach past the edge: scales below 1 are missing."""

Finish = Callable[[Any], Any]
"""Encoded bytes -> what is made of them, for the network float32 `[3, S, S]`."""


@dataclass(frozen=True)
class Originals(torch.utils.data.Dataset[tuple[Any, int]]):
    """Endless rows of a pack for torch's DataLoader, and for FFCV's writer."""

    pack: Pack
    finish: Finish

    def __len__(self) -> int:
        """As good as endless."""
        return 2**40

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image and its label."""
        row = index % len(self.pack)
        return self.finish(self.pack.encoded(row)), int(self.pack.labels[row])


def in_workers(finish: Callable[[], Finish], pack: Pack, workers: int) -> Iterator[int]:
    """Batches from torch's DataLoader with worker processes: how many images each had."""
    loader = torch.utils.data.DataLoader(
        Originals(pack, finish()), BATCH_SIZE, num_workers=workers, multiprocessing_context="fork"
    )
    for pixels, _ in loader:
        yield len(pixels)


def torchvision_pil() -> Finish:
    """The original way: Pillow decodes, torchvision augments PIL images one step after the other."""
    from PIL import Image
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    bilinear = v2.InterpolationMode.BILINEAR
    rest = v2.Compose(
        [
            v2.RandomCrop(AUGMENT.size, pad_if_needed=True),
            v2.RandomAffine(AUGMENT.rotation, shear=AUGMENT.shear, interpolation=bilinear),
            v2.ColorJitter(AUGMENT.brightness, AUGMENT.contrast, AUGMENT.saturation, AUGMENT.hue),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def finish(encoded: Any) -> torch.Tensor:
        image = Image.open(io.BytesIO(encoded.data)).convert("RGB")
        side = int(torch.randint(_SIDES[0], _SIDES[1] + 1, ()))
        pixels: torch.Tensor = rest(functional.resize(image, [side]))
        return pixels

    return finish


def albumentations() -> Finish:
    """libjpeg-turbo decodes, albumentations augments arrays with OpenCV; its fastest documented way."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for news otherwise
    import albumentations as library
    import cv2
    import simplejpeg
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(0)
    low, high = (1 - AUGMENT.brightness, 1 + AUGMENT.brightness)
    turn, lean = (-AUGMENT.rotation, AUGMENT.rotation), (-AUGMENT.shear, AUGMENT.shear)
    compose = library.Compose(
        [
            library.SmallestMaxSize(max_size=list(range(_SIDES[0], _SIDES[1] + 1))),
            library.RandomCrop(AUGMENT.size, AUGMENT.size, pad_if_needed=True),
            library.Affine(rotate=turn, shear={"x": lean}, p=1),
            library.ColorJitter((low, high), (low, high), (low, high), (-AUGMENT.hue, AUGMENT.hue), p=1),
            library.ToFloat(max_value=255),
            ToTensorV2(),
        ]
    )

    return lambda encoded: compose(image=simplejpeg.decode_jpeg(encoded, "RGB"))["image"]


def webdataset_writer(pack: Pack, threads: int) -> Iterator[int]:
    """A tar file of all originals, written by WebDataset. It copies them and looks at none."""
    from webdataset import TarWriter

    rows = range(len(pack))
    with tempfile.TemporaryDirectory(prefix="greyhound-") as folder:
        while True:
            with TarWriter(str(Path(folder) / "images.tar")) as writer:
                for row in rows:
                    data, label = pack.encoded(row).tobytes(), int(pack.labels[row])
                    writer.write({"__key__": f"{row:08}", "jpg": data, "cls": label})
            yield len(rows)


def ffcv_writer(pack: Pack, threads: int) -> Iterator[int]:
    """A file of all originals, written by FFCV: decoded, and encoded again."""
    with tempfile.TemporaryDirectory(prefix="greyhound-") as folder:
        while True:
            _write_ffcv(pack, Path(folder) / "images.beton", threads)
            yield len(pack)


def _write_ffcv(pack: Pack, file: Path, workers: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    writer = DatasetWriter(str(file), fields, num_workers=workers)
    writer.from_indexed_dataset(Originals(pack, decode), indices=list(range(len(pack))))


def ffcv(pack: Pack, threads: int) -> Iterator[int]:
    """FFCV from its own file in the page cache, the pixels encoded again; threads.

    It has no rotation, no shear and no hue. Leclerc et al. 2023, "FFCV: Accelerating Training by Removing
    Data Bottlenecks".
    """
    from ffcv import transforms
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    steps = [
        RandomResizedCropRGBImageDecoder((AUGMENT.size, AUGMENT.size), scale=_AREA, ratio=(1.0, 1.0)),
        transforms.RandomBrightness(AUGMENT.brightness, 1.0),
        transforms.RandomContrast(AUGMENT.contrast, 1.0),
        transforms.RandomSaturation(AUGMENT.saturation, 1.0),
        transforms.NormalizeImage(np.zeros(3), np.full(3, 255.0), np.float32),
        transforms.ToTensor(),
        transforms.ToTorchImage(),
    ]
    with tempfile.TemporaryDirectory(prefix="greyhound-") as folder:
        file = Path(folder) / "images.beton"
        _write_ffcv(pack, file, workers=1)
        options = {"order": OrderOption.RANDOM, "pipelines": {"image": steps, "label": None}}
        loader = Loader(str(file), BATCH_SIZE, num_workers=threads, os_cache=True, **options)
        while True:
            for (images,) in loader:
                yield len(images)
