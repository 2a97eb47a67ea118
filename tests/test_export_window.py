"""The window as ONNX nodes holds the pixels that evaluation sees, at every size, in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from pictures import encode, noise, packed
from runtimes import Answer, in_onnxruntime, in_opencv, in_openvino

from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader
from greyhound.pipelines.onnx_window import window

Pixels = NDArray[np.uint8]
SIDE = 35
SIZES = [
    (35, 35), (1, 1), (1, 70), (90, 2), (34, 36), (17, 22), (11, 300), (69, 71), (70, 70), (71, 139), (141, 140),
    (143, 99), (279, 280), (283, 281), (290, 1999), (1203, 301), (500, 375),
]  # fmt: skip
"""Height and width: enlarged, halved once to three times, and one off each of these, odd, tall and wide."""
FITS: dict[str, dict[str, Any]] = {
    "crop": {"fit": "crop"},
    "pad": {"fit": "pad", "fill": 77},
    "squash": {"fit": "squash", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)},
}


def seen(root: Path, images: list[Pixels], augment: Augment) -> NDArray[np.float32]:
    """What evaluation gives the network of each image, `[n, 3, S, S]`: stored as PNG, every engine decodes it whole."""
    half = len(images) // 2
    files = [encode(image, "PNG") for image in images]
    pack = packed(root, {"first": files[:half], "second": files[half:]})
    resources = Resources(engine="threads", device="cpu", threads=1)
    with Loader(
        pack, augment.centre(), pack.ids("train"), resources, batch_size=len(images), epochs=1
    ) as loader:
        (batch,) = loader
    assert batch.ids.tolist() == list(range(len(images)))
    found: NDArray[np.float32] = batch.flat()[0].numpy()
    return found


def levels(augment: Augment, images: NDArray[np.float32]) -> NDArray[np.int_]:
    """The network's floats as levels 0..255."""
    return augment.to_pixels(images).astype(int)


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino, in_opencv])
@pytest.mark.parametrize("fit", FITS)
def test_every_size_is_within_one_level_of_what_evaluation_sees(
    tmp_path: Path, fit: str, runtime: Callable[[Path], Answer]
) -> None:
    augment = Augment(size=SIDE, **FITS[fit])
    images = [noise(wide, high, seed) for seed, (high, wide) in enumerate(SIZES)]
    expected = levels(augment, seen(tmp_path, images, augment))
    onnx.save(window(augment), tmp_path / "window.onnx")
    answer = runtime(tmp_path / "window.onnx")
    found = np.concatenate([levels(augment, answer(image[None])) for image in images])
    differences = np.abs(found - expected)
    assert differences.max() <= 1
    assert (differences > 0).mean() < 0.003, "OpenCV's warp rounds otherwise now and then"
    if fit == "pad":
        bars = (expected == 77).all(axis=(2, 3))
        assert (
            bars[SIZES.index((90, 2))].sum() == 0 and (expected[SIZES.index((1, 70))] == 77).all(axis=2).any()
        )


def test_a_batch_is_its_images(tmp_path: Path) -> None:
    augment = Augment(size=SIDE)
    onnx.save(window(augment), tmp_path / "window.onnx")
    answer = in_onnxruntime(tmp_path / "window.onnx")
    images = np.stack([noise(90, 51, seed) for seed in range(3)])
    together = answer(images)
    assert together.shape == (3, 3, SIDE, SIDE)
    for place in range(3):
        np.testing.assert_array_equal(answer(images[place : place + 1])[0], together[place])


def test_a_photograph_of_twelve_megapixels(tmp_path: Path) -> None:
    augment = Augment(size=224)
    images = [noise(4000, 3001), noise(70, 60)]
    expected = levels(augment, seen(tmp_path, images, augment))
    onnx.save(window(augment), tmp_path / "window.onnx")
    answer = in_onnxruntime(tmp_path / "window.onnx")
    found = np.concatenate([levels(augment, answer(image[None])) for image in images])
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.003
