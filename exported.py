"""An exported network, an ONNX file of `greyhound export`: files in, probabilities out, without torch.

Before it: `greyhound export`. After it: predict. Preprocessing and temperature are inside the file; upright
RGB pixels of any size go in.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from greyhound.cache.errors import UserError, one_line
from greyhound.cache.picture import to_rgb
from greyhound.cache.scan import WHITE, scan
from greyhound.prediction import ImageFile, Prediction, error_of


@dataclass(frozen=True)
class Exported:
    """A network in onnxruntime. background: a colour, under what is transparent."""

    session: Any
    classes: tuple[str, ...]
    background: str

    def predict(self, images: Iterable[ImageFile]) -> Generator[Prediction]:
        """A prediction of every file, in order, as soon as it is known. Raises ScanError."""
        files, ahead = tee(images)
        infos = scan((each.file for each in ahead), background=self.background, dali=False)
        with closing(infos):
            for each, info in zip(files, infos, strict=True):
                error = error_of(each, info)
                yield Prediction(each, error=error) if error else self._look(each)

    def _look(self, image: ImageFile) -> Prediction:
        try:
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                pixels = to_rgb(image.file.read_bytes(), self.background).pixels  # scan has seen its size
            (found,) = self.session.run(["probabilities"], {"images": np.ascontiguousarray(pixels[None])})
        except Exception as error:  # whatever a decoder or the runtime raises is of this file
            return Prediction(image, error=f"unreadable ({one_line(error)})")
        return Prediction(image, found[0].astype(np.float64))


def open_exported(file: Path) -> Exported:
    """An ONNX file of `greyhound export`. Raises UserError."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "--model needs onnxruntime, which is not installed: pip install onnxruntime"
        ) from None
    wanted = "expected the file of: greyhound export --format onnx"
    if not file.is_file():
        raise UserError(f"there is no {file}; {wanted}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no error of its own for it
        raise UserError(f"{file} is no ONNX file ({one_line(error)}); {wanted}") from None
    content = session.get_modelmeta().custom_metadata_map
    try:
        classes = json.loads(content["classes"])
        if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise ValueError
    except (KeyError, ValueError):
        raise UserError(f"{file} is an ONNX file that names no classes; {wanted}") from None
    inputs = [(each.name, each.type, len(each.shape), each.shape[-1:]) for each in session.get_inputs()]
    outputs = [(each.name, each.shape[-1:]) for each in session.get_outputs()]
    if inputs != [("images", "tensor(uint8)", 4, [3])] or outputs != [("probabilities", [len(classes)])]:
        took = f"takes {inputs} and gives {outputs}"
        raise UserError(
            f"{file} {took}, not images, uint8 [n, height, width, 3], and probabilities; {wanted}"
        )
    return Exported(session, tuple(classes), content.get("background", WHITE))
