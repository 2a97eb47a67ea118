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
from typing import Any, Final, Literal

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

Finish = Callable[[Any], torch.Tensor]
"""Encoded bytes -> float32 `[3, S, S]`."""


@dataclass(frozen=True)
class Originals(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Endless rows of a pack for torch's DataLoader."""

    pack: Pack
    finish: Finish

    def __len__(self) -> int:
        """As good as endless."""
        return 2**40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
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


def dali_naive(pack: Pack, threads: int) -> Iterator[int]:
    """DALI's CPU backend as its examples would port the recipe: an operator a step, with random arguments."""
    from nvidia.dali import fn, pipeline_def, types

    rows = np.random.default_rng(0).permutation(len(pack))

    def source(info: Any) -> Any:
        return pack.encoded(int(rows[info.idx_in_epoch % len(rows)]))

    spread = [1 - AUGMENT.brightness, 1 + AUGMENT.brightness]

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=BATCH_SIZE, num_threads=threads, device_id=None
    )
    def path() -> Any:
        images = fn.decoders.image(fn.external_source(source, batch=False, dtype=types.UINT8))
        images = fn.random_resized_crop(
            images, size=AUGMENT.size, random_area=list(_AREA), random_aspect_ratio=[1.0, 1.0]
        )
        centre = [AUGMENT.size / 2, AUGMENT.size / 2]
        angle = fn.random.uniform(range=[-AUGMENT.rotation, AUGMENT.rotation])
        turn = fn.transforms.rotation(angle=angle, center=centre)
        lean = fn.stack(fn.random.uniform(range=[-AUGMENT.shear, AUGMENT.shear]), types.Constant(0.0))
        matrix = fn.transforms.shear(turn, angles=lean, center=centre)
        images = fn.warp_affine(images, matrix, interp_type=types.INTERP_LINEAR)
        light, contrast, colour = (fn.random.uniform(range=spread) for _ in range(3))
        hue = fn.random.uniform(range=[-360 * AUGMENT.hue, 360 * AUGMENT.hue])
        images = fn.color_twist(images, brightness=light, contrast=contrast, saturation=colour, hue=hue)
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", std=[255.0] * 3)

    pipeline = path()
    while True:
        (output,) = pipeline.run()
        yield len(output)


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
            _write_ffcv(pack, Path(folder) / "images.beton", "jpg", threads)
            yield len(pack)


def _write_ffcv(pack: Pack, file: Path, mode: Literal["jpg", "raw"], workers: int) -> None:
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    writer = DatasetWriter(str(file), {"image": RGBImageField(write_mode=mode)}, num_workers=workers)
    writer.from_indexed_dataset(Decoded(pack.path, len(pack)))


@dataclass(frozen=True)
class Decoded(torch.utils.data.Dataset[tuple[Any, ...]]):
    """A pack as FFCV's writer takes it, in a process of its own: uint8 RGB `[H, W, 3]`, one image a row."""

    path: Path
    count: int

    def __len__(self) -> int:
        """Images."""
        return self.count

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        """The image alone."""
        return (decode(Pack(self.path).encoded(row)),)


def ffcv(mode: Literal["jpg", "raw"], pack: Pack, threads: int) -> Iterator[int]:
    """FFCV from its own file in the page cache, the pixels encoded again (jpg) or as they are (raw); threads.

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
        _write_ffcv(pack, file, mode, workers=1)
        options = {"order": OrderOption.RANDOM, "pipelines": {"image": steps}}
        loader = Loader(str(file), BATCH_SIZE, num_workers=threads, os_cache=True, **options)
        while True:
            for (images,) in loader:
                yield len(images)
