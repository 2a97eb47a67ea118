"""Runtimes that open an exported file: each gives what answers an array `[n, K]`, or a window, to images.

Before it: a file. After it: the tests of `export` and `pipelines.onnx_window` ask all of them. One that is not
installed, or too old, skips the test.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from greyhound.pipelines.onnx_window import INPUT

Answer = Callable[[NDArray[np.uint8]], Any]
HAS_OPENVINO: Final = importlib.util.find_spec("openvino") is not None
HAS_OPENCV_5: Final = int(cv2.__version__.split(".")[0]) >= 5
"""Whose DNN reads graphs of free sizes."""


def in_onnxruntime(path: Path) -> Answer:
    session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(None, {INPUT: images})[0]


def in_openvino(path: Path) -> Answer:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]


def in_opencv(path: Path) -> Answer:
    if not HAS_OPENCV_5:
        pytest.skip("OpenCV's DNN reads graphs of free sizes since 5.0")
    network = cv2.dnn.readNetFromONNX(str(path))

    def answer(images: NDArray[np.uint8]) -> Any:
        network.setInput(images, INPUT)
        return network.forward().copy()

    return answer
