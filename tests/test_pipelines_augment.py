"""The draws: their numbers, their independence, and torchvision and Pillow as judges of the matrices."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from numpy.typing import NDArray
from pictures import coded, store_as
from PIL import Image, ImageOps
from torchvision.transforms.functional import _get_inverse_affine_matrix
from torchvision.transforms.v2 import functional as torchvision

from greyhound.pipelines import augment as module
from greyhound.pipelines.augment import Augment, draw, log2_reduction, to_stored

Doubles = NDArray[np.float64]
PLAIN = Augment().centre()
"""No randomness at all."""
MANY = np.arange(20_000)
SAME = np.eye(3, dtype=np.float32)[None]


def squares(count: int, side: int = 256) -> NDArray[np.int32]:
    return np.full((count, 2), side, dtype=np.int32)


def drawn_angles(augment: Augment, ids: NDArray[np.int64], name: str, widest: float) -> Doubles:
    """The number that the draw of (seed 0, epoch 0, view 0) used, in its own unit."""
    return np.asarray(-widest + 2 * widest * module._numbers(0, 0, ids, 0)[name])


def hue_of(colours: Doubles) -> Doubles:
    """HSV hue in degrees of RGB `[n, 3]` of any range: hue ignores what all three channels share."""
    above = colours - colours.min(axis=1, keepdims=True)
    return np.array([360 * colorsys.rgb_to_hsv(*colour)[0] for colour in above])


def colour_levels(matrix: NDArray[np.float32], pixels: Doubles) -> Doubles:
    """Apply a colour matrix `[3, 4]` to levels `[..., 3]`."""
    return np.asarray(pixels @ matrix[:, :3].T.astype(np.float64) + matrix[:, 3])


# --- the numbers of the recipe ---------------------------------------------------------------------------------------


def test_the_defaults_are_the_seeds_recipe() -> None:
    numbers = {
        "size": 256,
        "scale": (0.8, 1.2),
        "placement": "random",
        "rotation": 15.0,
        "shear": 10.0,
        "flip": 0.0,
    }
    numbers |= {"brightness": 0.25, "contrast": 0.25, "saturation": 0.25, "hue": 0.1}
    assert vars(Augment()) == numbers | {"fill": 0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_crops_keep_nothing_but_scale_place_and_normalisation() -> None:
    rich = Augment(size=64, scale=(0.5, 2.0), flip=0.5, fill=7, mean=(0.5,) * 3, std=(0.25,) * 3)
    gone = ("rotation", "shear", "flip", "brightness", "contrast", "saturation", "hue")
    assert vars(rich.crops()) == vars(rich) | dict.fromkeys(gone, 0)


def test_a_crop_only_scales_and_shifts() -> None:
    geometry, colour = draw(Augment().crops(), 0, 0, MANY[:500], squares(500))
    assert np.all(geometry[:, [0, 1], [1, 0]] == 0)
    assert np.array_equal(geometry[:, 0, 0], geometry[:, 1, 1])
    assert len(np.unique(geometry[:, 0, 0])) > 490
    np.testing.assert_allclose(colour[:, :, :3] * 255, np.broadcast_to(np.eye(3), (500, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(colour[:, :, 3], 0, atol=1e-6)


def test_a_crop_has_the_scale_and_place_of_the_full_augmentation() -> None:
    """The same numbers serve: switching rotation off does not move the other draws."""
    full, _ = draw(replace(Augment(), rotation=0, shear=0), 0, 0, MANY[:9], squares(9))
    crop, _ = draw(Augment().crops(), 0, 0, MANY[:9], squares(9))
    assert np.array_equal(full, crop)


@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [
        (256, 256, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (384, 256, [[1, 0, 64], [0, 1, 0], [0, 0, 1]]),
        (512, 512, [[2, 0, 0], [0, 2, 0], [0, 0, 1]]),
        (400, 300, [[300 / 256, 0, 50], [0, 300 / 256, 0], [0, 0, 1]]),
        (300, 400, [[300 / 256, 0, 0], [0, 300 / 256, 50], [0, 0, 1]]),
        (64, 128, [[0.25, 0, 0], [0, 0.25, 32], [0, 0, 1]]),
    ],
)
def test_the_centre_window(width: int, height: int, matrix: list[list[float]]) -> None:
    for seed, epoch in ((0, 0), (5, 9)):
        geometry, _ = draw(PLAIN, seed, epoch, MANY[:1], np.array([[width, height]], dtype=np.int32))
        assert geometry.dtype == np.float32
        np.testing.assert_allclose(geometry[0], matrix, rtol=1e-6)


def test_centre_keeps_the_aspect_ratio() -> None:
    sizes = np.array([[640, 123], [99, 1000], [31, 31]], dtype=np.int32)
    geometry, _ = draw(PLAIN, 0, 0, MANY[:3], sizes)
    assert np.array_equal(geometry[:, 0, 0], geometry[:, 1, 1])


# --- independence ----------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_no_neighbour() -> None:
    ids = np.array([4, 900, 17, 4_000_000_000, 0])
    sizes = np.array([[300, 200], [640, 480], [64, 64], [500, 375], [375, 500]], dtype=np.int32)
    lumas = np.array([20, 200, 127, 90, 60], dtype=np.float32)
    geometry, colour = draw(Augment(), 3, 2, ids, sizes, 1, lumas)
    for rows in ([0], [4, 3, 2, 1, 0], [2, 0], [3, 3]):
        again = draw(Augment(), 3, 2, ids[rows], sizes[rows], 1, lumas[rows])
        assert np.array_equal(again[0], geometry[rows])
        assert np.array_equal(again[1], colour[rows])


def test_seed_epoch_id_and_view_each_matter() -> None:
    tuples = [*np.eye(5, 4, dtype=int).tolist(), (1, 1, 0, 0), (1, 1, 1, 1)]  # none, and each alone
    draws = [
        draw(Augment(), seed, epoch, np.array([index]), squares(1), view)
        for seed, epoch, index, view in tuples
    ]
    for found in zip(*draws, strict=True):
        assert len({matrix.tobytes() for matrix in found}) == len(tuples) == 7


def test_the_numbers_of_an_image_are_independent_of_each_other() -> None:
    numbers = np.stack(list(module._numbers(0, 0, MANY, 0).values()))
    assert numbers.shape == (10, 20_000)
    assert np.abs(np.corrcoef(numbers) - np.eye(10)).max() < 0.03


def test_a_draw_is_the_same_for_ever() -> None:
    """A change of these numbers changes every picture that anybody's seed ever drew: then say so in the changelog."""
    geometry, colour = draw(Augment(), 1, 2, np.array([3]), squares(1))
    drawn: list[list[float]] = [[0.804560, 0.257548, -15.631977], [-0.185721, 0.820811, 54.416409], [0, 0, 1]]
    np.testing.assert_allclose(geometry[0], drawn, rtol=1e-5, atol=1e-5)
    coloured = [
        [0.813560, 0.089514, -0.186406, 6.152658],
        [-0.134555, 0.750761, 0.100461, 6.152658],
        [0.438708, -0.410328, 0.688288, 6.152658],
    ]
    np.testing.assert_allclose(colour[0] * 255, coloured, rtol=1e-5, atol=1e-5)


# --- geometry --------------------------------------------------------------------------------------------------------


def test_rotation_and_shear_are_torchvisions() -> None:
    size, ids = 256, MANY[:200]
    rotation, shear = drawn_angles(Augment(), ids, "rotation", 15), drawn_angles(Augment(), ids, "shear", 10)
    geometry, _ = draw(replace(PLAIN, rotation=15, shear=10), 0, 0, ids, squares(200, size))
    for row in ids:
        expected = _get_inverse_affine_matrix(
            [size / 2, size / 2], float(rotation[row]), [0, 0], 1.0, [float(shear[row]), 0.0]
        )
        np.testing.assert_allclose(geometry[row, :2].ravel(), expected, atol=1e-4)


def test_the_window_is_placed_after_it_is_turned() -> None:
    """Rotation turns the window about its own centre, wherever in the image the window lies."""
    sizes = np.array([[500, 300]] * 50, dtype=np.int32)
    straight, _ = draw(Augment().crops(), 0, 0, MANY[:50], sizes)
    turned, _ = draw(Augment(), 0, 0, MANY[:50], sizes)
    centre = np.array([128, 128, 1])
    np.testing.assert_allclose(turned @ centre, straight @ centre, atol=1e-3)


def test_scale_and_rotation_reach_both_ends_and_not_beyond() -> None:
    geometry, _ = draw(replace(Augment(), shear=0), 0, 0, MANY, squares(len(MANY)))
    scale = 1 / np.sqrt(np.linalg.det(geometry[:, :2, :2].astype(np.float64)))
    angle = np.rad2deg(np.arctan2(-geometry[:, 1, 0], geometry[:, 0, 0]))
    for numbers, low, high in ((scale, 0.8, 1.2), (angle, -15, 15)):
        near = (high - low) / 2000
        assert low - 1e-4 < numbers.min() < low + near
        assert high - near < numbers.max() < high + 1e-4
        np.testing.assert_allclose(numbers.mean(), (low + high) / 2, atol=(high - low) / 100)
        shares = np.histogram(numbers, bins=10, range=(low, high))[0] / len(numbers)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (500, 375), (300, 900), (64, 48)])
def test_the_window_lies_in_the_image_or_the_image_in_the_window(width: int, height: int) -> None:
    sizes = np.array([[width, height]] * len(MANY), dtype=np.int32)
    geometry, _ = draw(Augment().crops(), 0, 0, MANY, sizes)
    low = geometry[:, :2, 2].astype(np.float64)
    high = low + 256 * geometry[:, [0, 1], [0, 1]]
    slack = sizes - (high - low)  # of the image around the window
    inside = slack >= 0
    near = 1e-3 * max(width, height)
    assert np.all(np.where(inside, low, -low) > -near)
    assert np.all(np.where(inside, sizes - high, high - sizes) > -near)
    wide = np.abs(slack) > 0.05 * sizes
    place = (low / slack)[wide]  # 0 at the left or top, 1 at the right or bottom
    assert place.min() < 0.001
    assert place.max() > 0.999
    assert abs(place.mean() - 0.5) < 0.01


def test_flip_mirrors_the_finished_window() -> None:
    straight, colour = draw(Augment(), 0, 0, MANY[:50], squares(50))
    flipped, same = draw(replace(Augment(), flip=1.0), 0, 0, MANY[:50], squares(50))
    mirror = np.array([[-1, 0, 256], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(flipped, straight @ mirror, atol=1e-3)
    assert np.array_equal(colour, same)


def test_flip_is_a_probability() -> None:
    geometry, _ = draw(replace(PLAIN, flip=0.25), 0, 0, MANY, squares(len(MANY)))
    assert abs(np.mean(geometry[:, 0, 0] < 0) - 0.25) < 0.01
    assert set(np.unique(geometry[:, 0, 0])) == {-1, 1}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_matrices_turn_as_pillow_does(orientation: int) -> None:
    stored = coded(12, 9, 3)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    size = np.array([upright.shape[1::-1]], dtype=np.int32)
    matrix = to_stored(SAME, size, np.array([orientation], np.uint8), np.zeros(1, np.int32))
    expected = np.full((12, 12, 3), 200, dtype=np.uint8)
    expected[: upright.shape[0], : upright.shape[1]] = upright
    assert np.array_equal(oracle.warp(stored, matrix[0], 12, fill=200), expected)
    assert np.array_equal(store_as(upright, orientation), stored)  # the helper of the other tests agrees


def test_orientation_zero_means_nothing() -> None:
    geometry, _ = draw(Augment(), 0, 0, MANY[:1], squares(1))
    nothing = np.zeros(1, dtype=np.int32)
    assert np.array_equal(to_stored(geometry, squares(1), np.zeros(1, np.uint8), nothing), geometry)


def test_orientation_and_reduction_compose() -> None:
    """Upright 40 x 30, stored turned (EXIF 6) as 30 x 40, decoded at 1/2 as 15 x 20."""
    size, orientation, reduction = (
        np.array([[40, 30]], np.int32),
        np.array([6], np.uint8),
        np.array([1], np.int32),
    )
    matrix = to_stored(SAME, size, orientation, reduction)
    assert matrix.dtype == np.float32
    assert matrix[0].tolist() == [[0, 0.5, 0], [-0.5, 0, 20], [0, 0, 1]]


def test_to_stored_serves_views_alike() -> None:
    sizes = np.array([[40, 30], [31, 77]], dtype=np.int32)
    orientations, halved = np.array([8, 3], np.uint8), np.array([2, 0], np.int32)
    views = np.stack([draw(Augment(), 0, 0, MANY[:2], sizes, view)[0] for view in range(3)], axis=1)
    together = to_stored(views, sizes, orientations, halved)
    assert together.shape == (2, 3, 3, 3)
    for view in range(3):
        assert np.array_equal(together[:, view], to_stored(views[:, view], sizes, orientations, halved))


@pytest.mark.parametrize(
    ("sizes", "size", "times"),
    [
        ([(256, 256), (500, 375), (511, 4000), (10, 8000)], 256, 0),
        ([(512, 4000), (4000, 1023)], 256, 1),
        ([(4000, 1024), (2047, 2047)], 256, 2),
        ([(2048, 2048), (60_000, 60_000)], 256, 3),
        ([(224, 224)], 32, 2),
    ],
)
def test_the_reduction_leaves_the_short_side_at_the_size(
    sizes: list[tuple[int, int]], size: int, times: int
) -> None:
    answer = log2_reduction(Augment(size=size), np.array(sizes, dtype=np.int32))
    assert answer.dtype == np.int32
    assert answer.tolist() == [times] * len(sizes)


# --- colour ----------------------------------------------------------------------------------------------------------


def gentle(seed: int = 0) -> torch.Tensor:
    """A float image `[3, 16, 16]` that no adjustment below drives out of 0..1: torchvision clamps after every step."""
    return 0.35 + 0.25 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))


def factors(ids: NDArray[np.int64], name: str, width: float = 0.25) -> Doubles:
    return 1 - width + 2 * width * module._numbers(0, 0, ids, 0)[name]


def mean_luma(image: torch.Tensor) -> NDArray[np.float32]:
    return np.array([255 * float(torchvision.rgb_to_grayscale(image).mean())], dtype=np.float32)


@pytest.mark.parametrize(
    "names",
    [("brightness",), ("contrast",), ("saturation",), ("brightness", "contrast", "saturation")],
    ids=lambda names: "+".join(names),
)
def test_colour_is_torchvisions_step_by_step(names: tuple[str, ...]) -> None:
    adjust = {
        "brightness": torchvision.adjust_brightness,
        "contrast": torchvision.adjust_contrast,
        "saturation": torchvision.adjust_saturation,
    }
    options: dict[str, Any] = dict.fromkeys(names, 0.25)
    chosen = replace(PLAIN, **options)
    for row in range(50):
        ids, image = np.array([row]), gentle(row)
        _, colour = draw(chosen, 0, 0, ids, squares(1), lumas=mean_luma(image))
        expected = image
        for name in names:
            expected = adjust[name](expected, float(factors(ids, name)[0]))
        assert expected.min() > 0
        assert expected.max() < 1  # nothing was clamped
        ours = colour_levels(colour[0], 255 * image.permute(1, 2, 0).double().numpy())
        np.testing.assert_allclose(
            ours, expected.permute(1, 2, 0), atol=3e-4
        )  # its luma weights add up to 0.9999


def test_colour_factors_reach_both_ends_and_not_beyond() -> None:
    for name in ("brightness", "contrast"):
        options: dict[str, Any] = {name: 0.25}
        _, colour = draw(replace(PLAIN, **options), 0, 0, MANY, squares(len(MANY)))
        factor = 255 * colour[:, 0, 0]
        assert 0.75 - 1e-5 < factor.min() < 0.7505
        assert 1.2495 < factor.max() < 1.25 + 1e-5


def test_contrast_pivots_on_the_images_own_luma() -> None:
    lumas = np.array([10, 250], dtype=np.float32)
    _, colour = draw(replace(PLAIN, contrast=0.25), 0, 0, MANY[:2], squares(2), lumas=lumas)
    for matrix, luma in zip(colour, lumas, strict=True):
        np.testing.assert_allclose(colour_levels(matrix, np.full(3, float(luma))), luma / 255, atol=1e-6)
    _, without = draw(replace(PLAIN, contrast=0.25), 0, 0, MANY[:1], squares(1))
    np.testing.assert_allclose(colour_levels(without[0], np.full(3, 127.5)), 0.5, atol=1e-6)


def test_grey_stays_grey_under_every_hue_and_saturation() -> None:
    _, colour = draw(replace(PLAIN, hue=0.5, saturation=1.0), 0, 0, MANY[:500], squares(500))
    for level in (0.0, 1.0, 99.0, 255.0):
        greys = np.stack([colour_levels(matrix, np.full(3, level)) for matrix in colour])
        np.testing.assert_allclose(greys, level / 255, atol=1e-6)


def test_hue_keeps_the_luma() -> None:
    _, colour = draw(replace(PLAIN, hue=0.1), 0, 0, MANY[:100], squares(100))
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(
        np.einsum("i,nij->nj", luma, colour[:, :, :3]) * 255, np.broadcast_to(luma, (100, 3)), atol=1e-6
    )


def test_hue_turns_the_way_torchvision_does_to_within_15_and_a_half_degrees() -> None:
    """HSV hue of a YIQ turn against a shift in HSV: at 36 degrees at most 15.43 apart, on average 9.03.

    What white or grey is mixed into a colour changes neither, so the pure hues are all the colours there are.
    """
    pure = np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in np.arange(3600) / 3600])
    for turn, widest in ((0.1, 15.431), (0.05, 9.179), (0.01, 2.227), (-0.1, 15.431)):
        ours = pure @ module._turn_hue(np.array([turn * 2 * math.pi]))[0].T
        shifted = torchvision.adjust_hue(torch.tensor(pure.T[:, :, None]), turn)[..., 0].T.numpy()
        apart = np.abs((hue_of(ours) - hue_of(shifted) + 180) % 360 - 180)
        assert abs(apart.max() - widest) < 0.01
    assert abs(apart.mean() - 9.03) < 0.01


def test_the_drawn_hue_is_the_turned_hue() -> None:
    ids = MANY[:100]
    turns = drawn_angles(Augment(), ids, "hue", 0.1)
    _, colour = draw(replace(PLAIN, hue=0.1), 0, 0, ids, squares(100))
    expected = module._turn_hue(turns * 2 * math.pi)
    np.testing.assert_allclose(colour[:, :, :3] * 255, expected, atol=1e-5)
    assert -0.1 < turns.min() < -0.09
    assert 0.09 < turns.max() < 0.1


def test_mean_and_std_come_last() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for augment in (PLAIN, Augment()):
        _, colour = draw(augment, 0, 0, MANY[:20], squares(20))
        _, normalised = draw(replace(augment, mean=mean, std=std), 0, 0, MANY[:20], squares(20))
        pixels = np.array([[0.0, 128.0, 255.0], [200.0, 30.0, 90.0]])
        for one, other in zip(colour, normalised, strict=True):
            expected = (colour_levels(one, pixels) - mean) / std
            np.testing.assert_allclose(colour_levels(other, pixels), expected, atol=1e-5)


def test_to_pixels_undoes_the_normalisation() -> None:
    augment = replace(PLAIN, size=2, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    levels = np.array([[[0, 128, 255], [1, 2, 3]], [[200, 30, 90], [255, 255, 255]]], dtype=np.uint8)
    _, colour = draw(augment, 0, 0, MANY[:1], squares(1))
    images = torch.tensor(colour_levels(colour[0], levels.astype(np.float64))).permute(2, 0, 1)[None]
    assert np.array_equal(augment.to_pixels(images.numpy()), levels[None])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0; expected at least 1 pixel"),
        ({"scale": (0.0, 1.0)}, "scale is (0.0, 1.0); expected 0 < low <= high"),
        ({"scale": (1.2, 0.8)}, "scale is (1.2, 0.8); expected 0 < low <= high"),
        ({"rotation": -1.0}, "rotation is -1.0; expected 0..180 degrees"),
        ({"rotation": math.nan}, "rotation is nan; expected 0..180 degrees"),
        ({"shear": 90.0}, "shear is 90.0; expected 0..<90 degrees"),
        ({"flip": 1.5}, "flip is 1.5; expected a probability"),
        ({"brightness": 1.25}, "brightness is 1.25; expected 0..1"),
        ({"contrast": -0.1}, "contrast is -0.1; expected 0..1"),
        ({"saturation": 36.0}, "saturation is 36.0; expected 0..1"),
        ({"hue": 36.0}, "hue is 36.0; expected 0..0.5 turns"),
        ({"fill": 256}, "fill is 256; expected 0..255"),
        ({"std": (0.2, 0.0, 0.2)}, "std is (0.2, 0.0, 0.2); expected positive numbers"),
    ],
)
def test_numbers_that_no_image_could_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        Augment(**options)
    assert str(refusal.value) == f"augment: {message}"


def test_views_drawn_together_are_the_views_drawn_one_by_one() -> None:
    ids, sizes = np.array([3, 3, 3, 9]), np.array([[400, 300]] * 4, dtype=np.int32)
    together = draw(Augment(), 5, 2, ids, sizes, np.array([0, 1, 7, 1]))
    for row, (index, view) in enumerate(((3, 0), (3, 1), (3, 7), (9, 1))):
        alone = draw(Augment(), 5, 2, np.array([index]), sizes[:1], view)
        assert all(np.array_equal(one[row], other[0]) for one, other in zip(together, alone, strict=True))
