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
from torchvision.transforms.functional import InterpolationMode, _get_inverse_affine_matrix
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as torchvision

from greyhound.pipelines import augment as module
from greyhound.pipelines.augment import (
    Augment,
    draw,
    log2_reduction,
    noise,
    philox,
    spans,
    to_stored,
    uniform,
)

Doubles = NDArray[np.float64]
PLAIN = Augment().centre()
"""No randomness at all."""
MANY = np.arange(20_000)
SAME = np.eye(3, dtype=np.float32)[None]
ONES, PI = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


def draws(augment: Augment, count: int = len(MANY), sides: tuple[int, int] = (256, 256)) -> Any:
    """Geometry and colour of so many images of one size, in epoch 0 of seed 0."""
    return draw(augment, 0, 0, MANY[:count], np.tile(np.array(sides, dtype=np.int32), (count, 1)))


def drawn(name: str, count: int, low: float, high: float) -> Doubles:
    """The numbers that `draws` used, in their own unit."""
    return np.asarray(low + (high - low) * module.draw_numbers(0, 0, MANY[:count], 0)[name])


def hue_of(colours: Doubles) -> Doubles:
    """HSV hue in degrees of RGB `[n, 3]` of any range: hue ignores what all three channels share."""
    above = colours - colours.min(axis=1, keepdims=True)
    return np.array([360 * colorsys.rgb_to_hsv(*colour)[0] for colour in above])


def colour_levels(matrix: NDArray[np.float32], pixels: Doubles) -> Doubles:
    """Apply a colour matrix `[3, 4]` to levels `[..., 3]`."""
    return np.asarray(pixels @ matrix[:, :3].T.astype(np.float64) + matrix[:, 3])


def test_the_defaults_are_the_seeds_recipe_and_crops_keep_scale_place_and_normalisation() -> None:
    geometry = {
        "size": 256,
        "fit": "crop",
        "scale": (0.8, 1.2),
        "placement": "random",
        "rotation": 15.0,
        "shear": 10.0,
    }
    colour = {"brightness": 0.25, "contrast": 0.25, "saturation": 0.25, "hue": 0.1}
    off = {"randaugment": 0, "magnitude": 9, "mixup": 0.0, "cutmix": 0.0}
    rest = off | {"crop_scale": None, "flip": 0.0, "fill": 0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    assert vars(Augment()) == geometry | colour | rest
    mixing = ("mixup", "cutmix", "randaugment")
    rich = Augment(size=64, scale=(0.5, 2.0), flip=0.5, fill=7, mean=(0.5,) * 3, std=(0.25,) * 3)
    rich = replace(rich, randaugment=2, mixup=0.2, cutmix=1.0)
    assert vars(rich.crops()) == vars(rich) | dict.fromkeys(
        ["rotation", "shear", "flip", *mixing, *colour], 0
    )
    own = replace(rich, crop_scale=(1.0, 1.1))
    assert own.crops() == replace(rich.crops(), crop_scale=(1.0, 1.1), scale=(1.0, 1.1))
    assert replace(own, fit="squash").crops().scale == own.scale  # at scale 1 each would be the centre
    assert own.centre() == replace(rich.centre(), crop_scale=(1.0, 1.1))


def test_crops_of_scale_1_differ_where_the_image_is_longer_than_the_window_alone() -> None:
    crops = Augment(size=64, crop_scale=(1.0, 1.0)).crops()
    places = {shape: draws(crops, 20, shape)[0][:, :2, 2] for shape in ((64, 64), (100, 64))}
    assert np.all(places[64, 64] == places[64, 64][0])
    assert len(np.unique(places[100, 64][:, 0])) == 20
    assert np.all(places[100, 64][:, 1] == places[64, 64][0, 1])


def test_a_crop_scales_and_shifts_as_the_full_augmentation_does_and_nothing_else() -> None:
    """The same numbers serve: switching rotation off does not move the other draws."""
    geometry, colour = draws(Augment().crops(), 500)
    assert np.all(geometry[:, [0, 1], [1, 0]] == 0)
    assert np.array_equal(geometry[:, 0, 0], geometry[:, 1, 1])
    assert len(np.unique(geometry[:, 0, 0])) > 490
    np.testing.assert_allclose(colour[:, :, :3] * 255, np.broadcast_to(np.eye(3), (500, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(colour[:, :, 3], 0, atol=1e-6)
    full, _ = draws(replace(Augment(), rotation=0, shear=0), 500)
    assert np.array_equal(full, geometry)


@pytest.mark.parametrize(
    ("width", "height", "scale", "x", "y"),
    [
        (256, 256, 1, 0, 0),
        (384, 256, 1, 64, 0),
        (512, 512, 2, 0, 0),
        (400, 300, 300 / 256, 50, 0),
        (300, 400, 300 / 256, 0, 50),
        (64, 128, 0.25, 0, 32),
        (640, 123, 123 / 256, 258.5, 0),
        (99, 1000, 99 / 256, 0, 450.5),
        (31, 31, 31 / 256, 0, 0),
    ],
)
def test_the_centre_window(width: int, height: int, scale: float, x: float, y: float) -> None:
    for seed, epoch in ((0, 0), (5, 9)):
        geometry, _ = draw(PLAIN, seed, epoch, MANY[:1], np.array([[width, height]], dtype=np.int32))
        assert geometry.dtype == np.float32
        assert geometry[0, 0, 0] == geometry[0, 1, 1], "the aspect ratio"
        expected = np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])
        np.testing.assert_allclose(geometry[0], expected, rtol=1e-6)


def test_a_draw_depends_on_no_neighbour_nor_on_other_views() -> None:
    ids = np.array([4, 17, 17, 4_000_000_000, 0])
    sizes = np.array([[300, 200], [640, 480], [64, 64], [500, 375], [375, 500]], dtype=np.int32)
    lumas = np.array([20, 200, 127, 90, 60], dtype=np.float32)
    views = np.array([0, 1, 7, 1, 1])
    geometry, colour = draw(Augment(), 3, 2, ids, sizes, views, lumas)
    for rows in ([4, 3, 2, 1, 0], [2, 0], [3, 3]):
        again = draw(Augment(), 3, 2, ids[rows], sizes[rows], views[rows], lumas[rows])
        assert np.array_equal(again[0], geometry[rows])
        assert np.array_equal(again[1], colour[rows])
    for row in range(5):
        alone = draw(Augment(), 3, 2, ids[[row]], sizes[[row]], int(views[row]), lumas[[row]])
        assert np.array_equal(alone[0][0], geometry[row])
        assert np.array_equal(alone[1][0], colour[row])


def test_seed_epoch_id_view_and_number_each_matter() -> None:
    tuples = [*np.eye(5, 4, dtype=int).tolist(), (1, 1, 0, 0), (1, 1, 1, 1)]  # none, and each alone
    size = np.array([[256, 256]], dtype=np.int32)
    found = [draw(Augment(), seed, epoch, np.array([row]), size, view) for seed, epoch, row, view in tuples]
    for matrices in zip(*found, strict=True):
        assert len({matrix.tobytes() for matrix in matrices}) == len(tuples) == 7
    numbers = np.stack(list(module.draw_numbers(0, 0, MANY, 0).values()))
    assert numbers.shape == (10, 20_000)
    assert np.abs(np.corrcoef(numbers) - np.eye(10)).max() < 0.03, (
        "nor do the numbers of an image depend on each other"
    )


def test_a_draw_is_the_same_for_ever() -> None:
    """A change of these numbers changes every picture that anybody's seed ever drew: then say so in the changelog."""
    geometry, colour = draw(Augment(), 1, 2, np.array([3]), np.array([[256, 256]], dtype=np.int32))
    drawn: list[list[float]] = [[0.804560, 0.257548, -15.631977], [-0.185721, 0.820811, 54.416409], [0, 0, 1]]
    np.testing.assert_allclose(geometry[0], drawn, rtol=1e-5, atol=1e-5)
    coloured = [
        [0.813560, 0.089514, -0.186406, 6.152658],
        [-0.134555, 0.750761, 0.100461, 6.152658],
        [0.438708, -0.410328, 0.688288, 6.152658],
    ]
    np.testing.assert_allclose(colour[0] * 255, coloured, rtol=1e-5, atol=1e-5)
    geometry, colour = draw(
        Augment(randaugment=2), 1, 2, np.array([4]), np.array([[256, 256]], dtype=np.int32)
    )
    drawn = [[1.110805, 0.187290, -37.686512], [-0.014203, 1.113014, -19.457327], [0, 0, 1]]
    np.testing.assert_allclose(geometry[0], drawn, rtol=1e-4, atol=1e-5)
    coloured = [
        [0.913083, 0.103780, -0.173716, -27.891987],
        [-0.118519, 0.862478, 0.099188, -27.891987],
        [0.426841, -0.371732, 0.788038, -27.891987],
    ]
    np.testing.assert_allclose(colour[0] * 255, coloured, rtol=1e-5, atol=1e-5)


def test_rotation_and_shear_are_torchvisions() -> None:
    rotation, shear = drawn("rotation", 200, -15, 15), drawn("shear", 200, -10, 10)
    geometry, _ = draws(replace(PLAIN, rotation=15, shear=10), 200)
    for matrix, angle, lean in zip(geometry, rotation.tolist(), shear.tolist(), strict=True):
        expected = _get_inverse_affine_matrix([128, 128], angle, [0, 0], 1.0, [lean, 0.0])
        np.testing.assert_allclose(matrix[:2].ravel(), expected, atol=1e-4)


def test_the_window_is_placed_after_it_is_turned() -> None:
    """Rotation turns the window about its own centre, wherever in the image the window lies."""
    straight, _ = draws(Augment().crops(), 50, (500, 300))
    turned, _ = draws(Augment(), 50, (500, 300))
    centre = np.array([128, 128, 1])
    np.testing.assert_allclose(turned @ centre, straight @ centre, atol=1e-3)


def test_every_number_reaches_both_ends_and_not_beyond() -> None:
    geometry, _ = draws(replace(Augment(), shear=0))
    scale = 1 / np.sqrt(np.linalg.det(geometry[:, :2, :2].astype(np.float64)))
    angle = np.rad2deg(np.arctan2(-geometry[:, 1, 0], geometry[:, 0, 0]))
    _, bright = draws(replace(PLAIN, brightness=0.25))
    _, contrasty = draws(replace(PLAIN, contrast=0.25))
    factors = [(255 * colour[:, 0, 0], 0.75, 1.25) for colour in (bright, contrasty)]
    for numbers, low, high in ((scale, 0.8, 1.2), (angle, -15, 15), *factors):
        near = (high - low) / 1000
        assert low - 1e-5 < numbers.min() < low + near / 2
        assert high - near / 2 < numbers.max() < high + 1e-5
        np.testing.assert_allclose(numbers.mean(), (low + high) / 2, atol=10 * near)
        shares = np.histogram(numbers, bins=10, range=(low, high))[0] / len(numbers)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (500, 375), (300, 900), (64, 48)])
def test_the_window_lies_in_the_image_or_the_image_in_the_window(width: int, height: int) -> None:
    sizes = np.array([width, height])
    geometry, _ = draws(Augment().crops(), sides=(width, height))
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


def test_flip_mirrors_the_finished_window_with_its_probability() -> None:
    straight, colour = draws(Augment(), 50)
    flipped, same = draws(replace(Augment(), flip=1.0), 50)
    mirror = np.array([[-1, 0, 256], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(flipped, straight @ mirror, atol=1e-3)
    assert np.array_equal(colour, same)
    geometry, _ = draws(replace(PLAIN, flip=0.25))
    assert abs(np.mean(geometry[:, 0, 0] < 0) - 0.25) < 0.01
    assert set(np.unique(geometry[:, 0, 0])) == {-1, 1}


def stored(geometry: NDArray[np.float32], sizes: Any, orientations: Any, halved: Any) -> NDArray[np.float32]:
    """As `to_stored`, of lists."""
    turns, both = np.array(orientations, dtype=np.uint8), np.array(halved, dtype=np.int32)
    return to_stored(geometry, np.array(sizes, dtype=np.int32), turns, np.stack([both, both], axis=1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_matrices_turn_as_pillow_does(orientation: int) -> None:
    pixels = coded(12, 9, 3)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    matrix = stored(SAME, [upright.shape[1::-1]], [orientation], [0])
    expected = np.full((12, 12, 3), 200, dtype=np.uint8)
    expected[: upright.shape[0], : upright.shape[1]] = upright
    assert np.array_equal(oracle.warp(pixels, matrix[0], 12, fill=200), expected)
    assert np.array_equal(store_as(upright, orientation), pixels)  # the helper of the other tests agrees


def test_orientation_and_reduction_compose_and_views_are_served_alike() -> None:
    """Upright 40 x 30, stored turned (EXIF 6) as 30 x 40, decoded at 1/2 as 15 x 20; EXIF 0 means nothing."""
    matrix = stored(SAME, [[40, 30]], [6], [1])
    assert matrix.dtype == np.float32
    assert matrix[0].tolist() == [[0, 0.5, 0], [-0.5, 0, 20], [0, 0, 1]]
    geometry, _ = draws(Augment(), 6)
    assert np.array_equal(stored(geometry[:1], [[256, 256]], [0], [0]), geometry[:1])
    views, sizes = geometry.reshape(2, 3, 3, 3), [[40, 30], [31, 77]]
    together = stored(views, sizes, [8, 3], [2, 0])
    assert together.shape == (2, 3, 3, 3)
    for view in range(3):
        assert np.array_equal(together[:, view], stored(views[:, view], sizes, [8, 3], [2, 0]))


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
def test_the_reduction_leaves_the_short_side_at_the_size(sizes: Any, size: int, times: int) -> None:
    answer = log2_reduction(Augment(size=size), np.array(sizes, dtype=np.int32))
    assert answer.dtype == np.int32
    assert answer.tolist() == [[times, times]] * len(sizes)


@pytest.mark.parametrize("names", ["brightness", "contrast", "saturation", "brightness contrast saturation"])
def test_colour_is_torchvisions_step_by_step(names: str) -> None:
    options: dict[str, Any] = dict.fromkeys(names.split(), 0.25)
    for row in range(50):
        image = 0.35 + 0.25 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(row))
        luma = np.array([255 * float(torchvision.rgb_to_grayscale(image).mean())], dtype=np.float32)
        size = np.array([[256, 256]], dtype=np.int32)
        _, colour = draw(replace(PLAIN, **options), 0, 0, MANY[[row]], size, lumas=luma)
        expected = image
        for name in names.split():
            adjust = getattr(torchvision, f"adjust_{name}")
            expected = adjust(expected, float(drawn(name, 50, 0.75, 1.25)[row]))
        assert expected.min() > 0
        assert expected.max() < 1  # nothing was clamped, as torchvision does after every step
        ours = colour_levels(colour[0], 255 * image.permute(1, 2, 0).double().numpy())
        # torchvision's luma weights add up to 0.9999
        np.testing.assert_allclose(ours, expected.permute(1, 2, 0), atol=3e-4)


def test_contrast_pivots_on_the_images_own_luma_or_on_mid_grey() -> None:
    lumas, sizes = np.array([10, 250], dtype=np.float32), np.full((2, 2), 256, dtype=np.int32)
    _, own = draw(replace(PLAIN, contrast=0.25), 0, 0, MANY[:2], sizes, lumas=lumas)
    _, without = draws(replace(PLAIN, contrast=0.25), 1)
    for matrix, luma in zip([*own, *without], [10.0, 250.0, 127.5], strict=True):
        np.testing.assert_allclose(colour_levels(matrix, np.full(3, luma)), luma / 255, atol=1e-6)


def test_grey_stays_grey_under_every_hue_and_saturation_and_hue_keeps_the_luma() -> None:
    _, colour = draws(replace(PLAIN, hue=0.5, saturation=1.0), 500)
    for level in (0.0, 1.0, 99.0, 255.0):
        greys = np.stack([colour_levels(matrix, np.full(3, level)) for matrix in colour])
        np.testing.assert_allclose(greys, level / 255, atol=1e-6)
    _, colour = draws(replace(PLAIN, hue=0.1), 100)
    luma = np.array([0.299, 0.587, 0.114])
    lumas = luma @ colour[:, :, :3] * 255
    np.testing.assert_allclose(lumas, np.broadcast_to(luma, (100, 3)), atol=1e-6)


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
    turns = drawn("hue", 100, -0.1, 0.1)
    _, colour = draws(replace(PLAIN, hue=0.1), 100)
    np.testing.assert_allclose(colour[:, :, :3] * 255, module._turn_hue(turns * 2 * math.pi), atol=1e-5)
    assert -0.1 < turns.min() < -0.09
    assert 0.09 < turns.max() < 0.1


def test_mean_and_std_come_last_and_to_pixels_undoes_them() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for augment in (PLAIN, Augment()):
        _, colour = draws(augment, 20)
        _, normalised = draws(replace(augment, mean=mean, std=std), 20)
        pixels = np.array([[0.0, 128.0, 255.0], [200.0, 30.0, 90.0]])
        for one, other in zip(colour, normalised, strict=True):
            expected = (colour_levels(one, pixels) - mean) / std
            np.testing.assert_allclose(colour_levels(other, pixels), expected, atol=1e-5)
    plain = replace(PLAIN, size=2, mean=mean, std=std)
    levels = np.array([[[0, 128, 255], [1, 2, 3]], [[200, 30, 90], [255, 255, 255]]], dtype=np.uint8)
    _, colour = draws(plain, 1)
    images = colour_levels(colour[0], levels.astype(np.float64)).transpose(2, 0, 1)[None]
    assert np.array_equal(plain.to_pixels(images.astype(np.float32)), levels[None])


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("size", [0], "at least 1 pixel"),
        ("scale", [(0.0, 1.0), (1.2, 0.8), (1.0, math.inf)], "0 < low <= high, finite"),
        ("crop_scale", [(0.0, 0.0), (2.0, 1.0), (math.inf, math.inf)], "0 < low <= high, finite"),
        ("rotation", [-1.0, math.nan], "0..180 degrees"),
        ("shear", [90.0], "0..<90 degrees"),
        ("flip", [1.5], "a probability"),
        ("brightness", [1.25], "0..1"),
        ("contrast", [-0.1], "0..1"),
        ("saturation", [36.0], "0..1"),
        ("hue", [36.0], "0..0.5 turns"),
        ("randaugment", [-1, 17, 1.5], "0..16 operations"),
        ("magnitude", [31], "0..30"),
        ("mixup", [-0.1, math.nan, 1e-4], "0, or 0.001..1000"),
        ("cutmix", [math.inf], "0, or 0.001..1000"),
        ("fill", [256], "0..255"),
        ("std", [(0.2, 0.0, 0.2)], "positive numbers"),
    ],
)
def test_numbers_that_no_image_could_have_are_refused(name: str, values: list[Any], expected: str) -> None:
    for value in values:
        with pytest.raises(ValueError) as refusal:
            Augment(**{name: value})
        said = " ".join(map(str, value)) if isinstance(value, tuple) else value
        flag = name.replace("_", "-")
        assert str(refusal.value) == f"--augment.{flag} is {said}; expected {expected}"


KINDS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
)
"""Those of torchvision's that are matrices, in our order."""


def chosen(count: int, operations: int) -> list[list[tuple[str, int]]]:
    """Kind and sign of each operation of each image, from the numbers that `draws` used."""
    slots = list(map(str, range(operations)))
    numbers = module.draw_numbers(0, 0, MANY[:count], 0, slots, 0x100).values()
    places = [np.floor(18 * each).astype(int).tolist() for each in numbers]
    return [[(KINDS[each // 2], 1 - 2 * (each % 2)) for each in row] for row in zip(*places, strict=True)]


def as_torchvision(image: torch.Tensor, kind: str, sign: int, magnitude: int) -> Any:
    """One operation by torchvision's own code, whatever it would have drawn."""
    judge = RandAugment(interpolation=InterpolationMode.BILINEAR)
    values, signed = judge._AUGMENTATION_SPACE[kind]
    strengths = values(31, *image.shape[-2:])
    strength = 0.0 if strengths is None else float(strengths[magnitude]) * (sign if signed else 1)
    return judge._apply_image_or_video_transform(image, kind, strength, InterpolationMode.BILINEAR, {})


@pytest.mark.parametrize(("operations", "magnitude"), [(1, 9), (1, 30), (2, 9), (3, 6)])
def test_randaugment_is_torchvisions_operation_by_operation(operations: int, magnitude: int) -> None:
    """On a smooth picture, clamped nowhere, where no pixel has come from outside of it on the way."""
    size, apart, kinds = 96, [], set()
    down, across = np.mgrid[:size, :size] / size
    levels = np.stack([90 + 60 * across, 110 + 50 * down, 130 + 20 * np.sin(4 * across + 3 * down)], axis=2)
    image = torch.from_numpy(levels / 255).permute(2, 0, 1).float()
    sizes, ids = np.full((60, 2), size, dtype=np.int32), MANY[:60]
    lumas = np.full(60, 255 * float(torchvision.rgb_to_grayscale(image).mean()), dtype=np.float32)
    augment = replace(PLAIN, size=size, randaugment=operations, magnitude=magnitude)
    geometry, colour = draw(augment, 0, 0, ids, sizes, lumas=lumas)
    for row, steps in enumerate(chosen(60, operations)):
        expected, inside = image, torch.ones_like(image)
        for number, (kind, sign) in enumerate(steps):
            if kind == "Contrast" and number:  # torchvision pivots on what it sees by then
                break
            expected = as_torchvision(expected, kind, sign, magnitude)
            moved = kind not in ("Brightness", "Color", "Contrast")
            inside = as_torchvision(inside, kind, sign, magnitude) if moved else inside
        else:
            ours = oracle.render(np.rint(levels).astype(np.uint8), geometry[row], colour[row], size)
            seen = (inside.permute(1, 2, 0).numpy() > 0.999) & (expected.permute(1, 2, 0).numpy() < 1)
            assert seen.mean() > 0.2
            apart.append(255 * np.abs(ours - expected.permute(1, 2, 0).numpy())[seen].max())
            kinds |= {kind for kind, _ in steps}
    assert kinds == set(KINDS) and len(apart) > 30
    assert max(apart) < 2.5, "levels: what was rounded to one, times 1.9 where contrast is"


def test_randaugments_kinds_and_signs_are_all_as_likely() -> None:
    geometry, colour = draws(replace(PLAIN, randaugment=1, magnitude=30))
    found = np.concatenate([geometry.reshape(len(MANY), 9), colour.reshape(len(MANY), 12)], axis=1)
    _, counts = np.unique(found.round(4), axis=0, return_counts=True)
    assert len(counts) == 17, "8 kinds with a sign, and the identity"
    np.testing.assert_allclose(np.sort(counts) / len(MANY), [1 / 18] * 16 + [1 / 9], atol=0.006)


def test_randaugment_comes_after_the_rest_and_moves_no_other_draw() -> None:
    rich = replace(Augment(), flip=0.5)
    plain, augmented = draws(rich, 500), draws(replace(rich, randaugment=3, magnitude=0), 500)
    for one, other in zip(plain, augmented, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    alone = draws(replace(PLAIN, randaugment=2), 500)[0].astype(np.float64)
    np.testing.assert_allclose(draws(replace(rich, randaugment=2), 500)[0], plain[0] @ alone, atol=2e-3)
    _, colour = draws(replace(rich, randaugment=4, magnitude=20), 200)
    for matrix, steps, bright in zip(
        colour, chosen(200, 4), drawn("brightness", 200, 0.75, 1.25), strict=True
    ):
        for kind, sign in steps:
            bright *= 1 + 0.6 * sign if kind == "Brightness" else 1
        grey = colour_levels(matrix, np.full(3, 127.5))  # the picture's luma, on which contrast pivots
        np.testing.assert_allclose(grey, bright / 2, atol=1e-5)
    third = np.array([kinds[2][0] == "Identity" for kinds in chosen(500, 3)])
    two, three = (draws(replace(rich, randaugment=count), 500) for count in (2, 3))
    for one, other in zip(two, three, strict=True):
        assert np.array_equal(one[third], other[third]) and not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES, ONES, ONES, ONES), ONES | ONES << 32, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI, 0x299F31D0_A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_its_authors_known_answers(counter: Any, seed: int, words: str) -> None:
    """Random123, tests/kat_vectors."""
    answer = philox(counter, seed)
    assert answer.dtype == np.uint32
    assert answer.tolist() == [int(word, 16) for word in words.split()]


def test_counters_broadcast_and_no_counter_gives_no_words() -> None:
    ids, blocks = np.array([[7], [8], [9]]), np.arange(2)
    together = philox((ids, 5, 1, blocks), seed=3)
    assert together.shape == (3, 2, 4)
    for row, block in np.ndindex(3, 2):
        assert together[row, block].tolist() == philox((7 + row, 5, 1, block), seed=3).tolist()
    assert philox((np.array([], dtype=np.int64), 0, 0, 0), seed=0).shape == (0, 4)
    counters = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    answers = {tuple(philox(counter, 0).tolist()) for counter in counters}
    answers |= {tuple(philox(counters[0], seed).tolist()) for seed in (1, 1 << 32, 1 << 63)}
    assert len(answers) == 8, "every word of the counter and both halves of the seed matter"


def test_uniform_is_uniform_and_open_at_both_ends() -> None:
    words = np.array([[0, 1], [0x80000000, ONES]], dtype=np.uint32)
    assert uniform(words).tolist() == [[2.0**-33, 3 * 2.0**-33], [0.5 + 2.0**-33, 1 - 2.0**-33]]
    assert uniform(words).min() > 0
    assert uniform(words).max() < 1
    numbers = uniform(philox((np.arange(100_000), 0, 0, 0), seed=1))
    shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size
    np.testing.assert_allclose(shares, 0.1, atol=0.003)
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(4), atol=0.02)


def test_noise_is_normal_and_each_row_its_own() -> None:
    ids = np.array([3, 0, 2**32 - 1])
    numbers = noise(7, ids, 1, 40_001)
    assert numbers.shape == (3, 40_001) and numbers.dtype == np.float32
    np.testing.assert_array_equal(noise(7, ids[1:2], 1, 100)[0], numbers[1, :100])
    values = numbers.ravel().astype(np.float64)
    moments = [(values**power).mean() for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.06)  # 4 standard errors of the last
    assert (np.abs(values) < 1).mean() == pytest.approx(0.6827, abs=0.006)
    others = [noise(7, ids[:1], 2, 40_001)[0], noise(8, ids[:1], 1, 40_001)[0], *numbers[1:]]
    for other in (*others, np.roll(numbers[0], 1), np.roll(numbers[0], 2)):
        assert abs(np.corrcoef(numbers[0], other)[0, 1]) < 0.025


def test_spans_are_the_columns_whose_centres_lie_in_the_image() -> None:
    """Against the place of every pixel, for any matrix: turned, mirrored, level, upside down."""
    generator, count = np.random.default_rng(1), 150
    for turn in range(count):
        size, sides = int(generator.integers(1, 70)), generator.integers(1, 200, 2)
        matrix = np.eye(3)
        matrix[:2] = generator.normal(0, 1, (2, 3)) * [1, 1, 20]
        if turn % 4 == 0:
            matrix[:2] = [[generator.choice([-1, 0.5, 2]), 0, -8], [0, generator.choice([-1, 1]), 4.5]]
        geometry = matrix.astype(np.float32)
        whole = np.zeros((1, 2), dtype=np.int32)
        first, last = spans(geometry[None, None], sides[None].astype(np.int32), whole, size)[0, 0]
        columns = np.arange(size)
        shown = oracle.warp(np.ones((sides[1], sides[0], 3), dtype=np.uint8), geometry, size)[..., 0]
        assert np.array_equal(shown == 1, (columns >= first[:, None]) & (columns < last[:, None]))
