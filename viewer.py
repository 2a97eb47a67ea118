"""One photograph looked at closely: its classes, where the network looks, the nearest training images.

Before it: a trained run, and a file that `scan` found sound. After it: serve answers with what was seen.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from greyhound.cache.cli import note, progress_bar
from greyhound.cache.errors import UserError
from greyhound.cache.files import replacing
from greyhound.cache.scan import ImageInfo
from greyhound.cache.store import Pack, PackError
from greyhound.model import precision
from greyhound.model.network import features_of
from greyhound.model.report.charts import data_uri
from greyhound.model.report.figures import overlay
from greyhound.model.run import NEIGHBOURS, RunError
from greyhound.model.saliency import normalise, saliency
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Batch, Loader
from greyhound.prediction import ImageFile
from greyhound.session import open_own_pack
from greyhound.trained import Trained, pack_chunk

MAX_INDEXED: Final = 5000
"""Training images among which the nearest are sought; of more, as many evenly drawn. A guess."""
THUMBNAIL: Final = 256
"""Pixels of the longer side of a training image on the page."""
Rows = NDArray[np.float16]


@dataclass(frozen=True)
class Index:
    """Training images by what the network's head sees of them. ids: rows of the pack, int64 `[n]`.

    features: float16 `[n, D]`, rows of length 1: of the last layer, averaged over the picture.
    """

    pack: Pack
    ids: NDArray[np.int64]
    features: Rows

    def nearest(self, features: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """The rows of the pack whose features point most nearly where `features` `[D]` do; the cosines."""
        cosines = self.features.astype(np.float32) @ features
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(int(self.ids[place]), float(cosines[place])) for place in order]

    def thumbnail(self, row: int) -> bytes:
        """A JPEG of a training image. Raises PackError."""
        image = Image.fromarray(self.pack.image(row))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return _encode(image, "JPEG")


@dataclass(frozen=True)
class Viewer:
    """What looks at photographs, one at a time, in one thread. index: None where there is no pack."""

    trained: Trained
    resources: Resources
    temperature: float
    index: Index | None

    def look(self, image: ImageFile, info: ImageInfo, folder: Path, top: int, near: int) -> dict[str, Any]:
        """What the network says of a file, ready for JSON. folder: for temporary files.

        Raises UserError where the file has changed since it was scanned, StreamError, PackError.
        """
        chunk = pack_chunk(self.trained, [(image, info)], folder / f"{image.file.name}.arrow")
        if chunk.pack is None:
            raise UserError(chunk.errors[0])
        try:
            pack, augment = Pack(chunk.pack), self.trained.augment.centre()
            with Loader(pack, augment, pack.ids("test"), self.resources, batch_size=1, epochs=1) as loader:
                batch = next(iter(loader))
        finally:
            chunk.pack.unlink(missing_ok=True)
        probabilities, heat = self._classify(batch)
        order = (-probabilities).argsort(kind="stable")[:top].tolist()
        window = augment.to_pixels(batch.images.numpy(force=True))[0]
        return {
            "classes": [
                {"class": self.trained.classes[place], "probability": round(float(probabilities[place]), 6)}
                for place in order
            ],
            "nearest": self._nearest(batch, near),
            "window": _to_uri(window),
            "saliency": _to_uri(overlay(window, heat)),
        }

    def _classify(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """The probabilities `[K]`, and where the network looks for the most probable class, `[S, S]`."""
        with torch.no_grad():
            logits = precision.forward(self.trained.network, batch.images, self.trained.bf16)
        if not torch.isfinite(logits).all():
            raise RunError(f"{self.trained.run.folder}: the network's logits are not finite; train again")
        seen = saliency(self.trained.network, batch.images, logits.argmax(1))
        probabilities = (logits[0].double() / self.temperature).softmax(0).numpy(force=True)
        return probabilities, normalise(seen.gradient)[0]

    def _nearest(self, batch: Batch, count: int) -> list[dict[str, Any]]:
        if self.index is None:
            return []
        pack, found = self.index.pack, []
        features = extract_features(self.trained, batch).numpy(force=True)[0]
        for row, cosine in self.index.nearest(features, count):
            label = pack.classes[pack.labels[row]]
            found.append(
                {
                    "path": pack.image_path(row),
                    "class": label,
                    "similarity": round(cosine, 4),
                    "image": f"/image/{row}?{pack.header.digest[:12]}",  # a browser keeps it
                }
            )
        return found


@torch.no_grad()
def extract_features(trained: Trained, batch: Batch) -> torch.Tensor:
    """What the last layer sees of images, averaged over each: float32 `[B, D]`, rows of length 1."""
    features: Any = features_of(trained.network)
    rows = precision.forward(features, batch.images, trained.bf16)
    return torch.nn.functional.normalize(rows[:, : features.network.head_hidden_size])


def open_index(
    trained: Trained, resources: Resources, path: Path | None, most: int = MAX_INDEXED
) -> Index | None:
    """The training images of the run's pack, seen once and kept in the run folder. path: where the pack is.

    None, and a note, where the pack is not there or is another one.
    """
    try:
        pack = open_own_pack(trained.run, path, resources)
    except (PackError, RunError) as error:
        note(f"no nearest training images: {error}")
        return None
    wanted = pack.ids("train")
    wanted = wanted[np.linspace(0, len(wanted) - 1, min(most, len(wanted)), dtype=np.int64)]
    known = {"weights": trained.origin["weights"], "digest": pack.header.digest}
    found = _read(trained.run.folder / NEIGHBOURS, known, wanted)
    if found is None:
        found = _extract_all(trained, pack, wanted, resources)
        _keep(trained.run.folder / NEIGHBOURS, known, wanted, *found)
    return Index(pack, *found)


def _extract_all(
    trained: Trained, pack: Pack, ids: NDArray[np.int64], resources: Resources
) -> tuple[NDArray[np.int64], Rows]:
    parts, done = list[Rows](), 0
    with (
        Loader(pack, trained.augment.centre(), ids, resources, batch_size=16, epochs=1) as loader,
        progress_bar("looking at the training images, once") as update,
    ):
        note(loader.describe_corrupt())
        for batch in loader:
            parts.append(extract_features(trained, batch).numpy(force=True).astype(np.float16))
            done += len(batch.ids)
            update(done, len(ids))
        return loader.ids, np.concatenate(parts)


def _read(
    file: Path, known: dict[str, str], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Rows] | None:
    """What was kept of these rows: those that could be read, and their features.

    None where it is of others, or cannot be read.
    """
    try:
        with file.open("rb") as stream, np.load(stream) as kept:
            same = all(str(kept[name]) == value for name, value in known.items())
            ids, features = kept["ids"], kept["features"]
            fits = features.dtype == np.float16 and features.ndim == 2 and len(features) == len(ids)
            fits &= np.array_equal(kept["asked"], wanted) and bool(np.isin(ids, wanted).all())
            return (ids, features) if same and fits else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None  # RuntimeError: a damaged zip that asks for a password or a newer version


def _keep(
    file: Path, known: dict[str, str], wanted: NDArray[np.int64], ids: NDArray[np.int64], features: Rows
) -> None:
    try:
        with replacing(file) as temporary:
            np.savez(temporary, asked=wanted, ids=ids, features=features, **known)  # type: ignore[arg-type]
    except OSError as error:
        note(f"{file} cannot be written ({error.strerror}); the next start looks at them again")


def _to_uri(pixels: NDArray[np.uint8]) -> str:
    return data_uri(_encode(Image.fromarray(pixels), "PNG"))


def _encode(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
