"""Twins on known truth: pictures changed here, by as much as is said, and strangers that resemble each other."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import coded, encode, noise, portrait
from PIL import Image
from runs import Patch

from greyhound.cache import nearby
from greyhound.cache import twins as module
from greyhound.cache.decode import luma
from greyhound.cache.demo.brushes import BREEDS
from greyhound.cache.demo.dogs import draw_dog
from greyhound.cache.nearby import cosines
from greyhound.cache.overlay import aligned_rmse, crop_windows, unlike_share
from greyhound.cache.scan import ImageInfo
from greyhound.cache.stats import measure
from greyhound.cache.thumbnail import DETAIL, SIDE
from greyhound.cache.twins import APART, Pair, Twins, find_originals, find_pairs, find_twins, show_one_picture

Thumbnail = NDArray[np.uint8]


def thumbnail(image: Image.Image) -> Thumbnail:
    return np.frombuffer(measure(np.asarray(image.convert("RGB")))["thumbnail"], np.uint8).reshape(16, 16, 3)


def thumbnails_of(images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([thumbnail(image) for image in images])


def look(image: Image.Image, name: str) -> ImageInfo:
    small = thumbnail(image).tobytes()
    return ImageInfo(sha256=name, width=image.width, height=image.height, thumbnail=small)


def found_in(pairs: Iterable[Pair]) -> set[tuple[int, int]]:
    return {(pair.one, pair.other) for pair in pairs}


def jpeg(image: Image.Image, quality: int = 75) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality, subsampling=2)))


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """What is left when shares of the sides are cut off, at the old size."""
    width, height = image.size
    box = left * width, top * height, (1 - right) * width, (1 - bottom) * height
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: jpeg(image, 30),
    "resized": lambda image: jpeg(image.resize((image.width // 3, image.height // 3))),
    "squeezed": lambda image: image.resize((224, 224)),
    "cropped all round": lambda image: jpeg(crop(image, 0.03, 0.02, 0.02, 0.03)),
    "cropped on one side": lambda image: jpeg(crop(image, 0.06, 0, 0, 0)),
    "mirrored": lambda image: jpeg(mirror(image)),
    "mirrored and cropped": lambda image: crop(mirror(image), 0, 0.04, 0.04, 0),
}


@pytest.fixture(scope="module")
def dogs() -> list[Image.Image]:
    """12 drawings of two breeds, in like poses."""
    return [draw_dog(BREEDS[breed], number, 11)[0] for breed in (1, 6) for number in range(6)]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_changed_picture_is_the_twin_of_its_original_alone(name: str, dogs: list[Image.Image]) -> None:
    pictures = dogs + [VARIANTS[name](dog) for dog in dogs]
    thumbnails = thumbnails_of(pictures)
    found = find_pairs(thumbnails)
    twins = {(place, place + 12) for place in range(12)}
    assert found_in(found) == twins
    assert max(pair.apart for pair in found) <= APART
    assert {pair.mirrored for pair in found} == {"mirrored" in name}
    assert found_in(find_pairs(thumbnails, [closeup(each) for each in pictures].__getitem__)) == twins


def test_halves_other_drawings_other_colours_and_nothing_are_no_twins(dogs: list[Image.Image]) -> None:
    assert find_pairs(thumbnails_of(dogs)) == []
    assert find_pairs(thumbnails_of(dogs + [crop(dog, 0.25, 0.25, 0.25, 0.25) for dog in dogs])) == []
    first, second = (Image.fromarray(coded(200, 150, identity)) for identity in (3, 4))
    assert find_pairs(thumbnails_of([first, second])) == []
    assert found_in(find_pairs(thumbnails_of([first, first]))) == {(0, 1)}
    assert find_pairs(np.full((5, 16, 16, 3), 200, np.uint8)) == []


def closeup(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


@pytest.fixture(scope="module")
def look_alikes() -> tuple[NDArray[np.uint8], Callable[[int], NDArray[np.uint8]]]:
    """50 portraits of one composition, and crops of the first 14: far more than 8 look like each from afar."""
    portraits = [portrait(seed) for seed in range(50)]
    pictures = portraits + [crop(each, 0.05, 0.05, 0.01, 0.025) for each in portraits[:14]]
    return thumbnails_of(pictures), [closeup(picture) for picture in pictures].__getitem__


def test_among_look_alikes_the_twins_are_found_and_no_stranger(
    look_alikes: tuple[NDArray[np.uint8], Any], monkeypatch: Patch
) -> None:
    waves, told = nearby.low_waves(luma(look_alikes[0])), list[int]()
    assert ((waves @ waves.T > nearby.ALIKE).sum(axis=1) > 30).all()
    for rows, columns in ((512, 1024), (7, 30)):
        monkeypatch.setattr(nearby, "_ROWS", rows)
        monkeypatch.setattr(nearby, "_COLUMNS", columns)
        found = find_pairs(*look_alikes, told.append)
        assert found_in(found) == {(place, place + 50) for place in range(14)}
    assert told == []
    monkeypatch.setattr(module, "LOOKED_AT", 10)
    find_pairs(*look_alikes, told.append)
    assert len(told) == 1, "where too many look alike it is said"
    assert 35 <= told[0] <= 55  # the brightest have fewer that are brighter


def test_one_twin_beside_a_burst_is_found() -> None:
    """The frames of a burst are nearer to each other than to the crop of one of them."""
    light = noise(200, 150, 1).astype(int)
    frames = [Image.fromarray(np.clip(light + level, 0, 255).astype(np.uint8)) for level in range(-7, 7)]
    found = find_pairs(thumbnails_of([*frames, crop(frames[-1], 0.04, 0.04, 0.03, 0.03)]))
    assert set(Twins(np.arange(15), tuple(found)).groups()) == {0}


def test_how_far_apart_two_pictures_are() -> None:
    one = thumbnails_of(Image.fromarray(noise(200, 150, seed)) for seed in range(20)).astype(np.float32)
    assert aligned_rmse(one, one) == pytest.approx(np.zeros(20))
    assert aligned_rmse(one, one[::-1]).min() > 2 * APART
    assert aligned_rmse(one[:3], one[7:10]) == pytest.approx(aligned_rmse(one[7:10], one[:3]))


def use_blocks_of(patch: Patch, **sizes: int) -> None:
    """Search in blocks of other sizes."""
    for name, size in sizes.items():
        patch.setattr(module if name == "_PAIRS" else nearby, name, size)


def test_pairs_are_the_same_in_any_order_and_block(dogs: list[Any], monkeypatch: Patch) -> None:
    pictures = thumbnails_of(dogs + [VARIANTS["mirrored"](dog) for dog in dogs])
    whole = find_pairs(pictures)
    order = np.random.default_rng(0).permutation(24)
    shuffled = {tuple(sorted((order[p.one], order[p.other]))) for p in find_pairs(pictures[order])}
    assert shuffled == found_in(whole)
    use_blocks_of(monkeypatch, _ROWS=5, _COLUMNS=7, _BATCH=9, _PAIRS=3)
    pairs = [[(p.one, p.other, p.mirrored) for p in found] for found in (find_pairs(pictures), whole)]
    assert pairs[0] == pairs[1]


def is_pair(one: Thumbnail, other: Thumbnail) -> bool:
    """The rule, for two pictures as they lie: as bright, alike from afar, near when laid on one another."""
    both = np.stack([one, other]).astype(np.float32)
    shades = luma(np.stack([one, other]))
    bright, waves = shades.mean(axis=(1, 2)), nearby.quantised(shades).astype(float) / 4000
    if abs(bright[0] - bright[1]) > nearby.BRIGHTNESS or waves[0] @ waves[1] <= nearby.ALIKE:
        return False
    grey = aligned_rmse(shades[:1, ..., None], shades[1:, ..., None])[0]
    return bool(grey <= 1.2 * APART and aligned_rmse(both[:1], both[1:])[0] <= APART)


CHANGE = (st.integers(0, 3), st.booleans(), st.integers(0, 4), st.integers(-9, 9), st.integers(0, 40))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*CHANGE), min_size=2, max_size=9))
def test_the_search_finds_what_comparing_all_with_all_finds(changes: list[Any]) -> None:
    """Pictures of four motives, mirrored, cropped, lit and made noisy by little and by much."""

    def picture(motive: int, mirrored: bool, cut: int, light: int, grain: int) -> Thumbnail:
        whole = noise(50, 50, motive)[cut : 50 - cut // 2, cut // 2 : 50 - cut]
        small = np.asarray(Image.fromarray(whole).resize((16, 16))).astype(int)[:, :: -1 if mirrored else 1]
        noisy = small + light + np.random.default_rng(cut).integers(-grain, grain + 1, small.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    pictures = np.stack([picture(*change) for change in changes])
    expected = {
        (one, other)
        for one, other in combinations(range(len(pictures)), 2)
        if any(is_pair(pictures[one], each) for each in (pictures[other], pictures[other][:, ::-1]))
    }
    with pytest.MonkeyPatch.context() as patch:
        use_blocks_of(patch, _ROWS=3, _COLUMNS=2, _BATCH=4, _PAIRS=2)
        assert found_in(find_pairs(pictures)) == expected


def shirt(motive: int) -> Image.Image:
    """One of many, of one cut, on one bed cover: a light shape with a motive of its own, a sixth of the picture."""
    cloth = noise(240, 320, 7) // 4 + np.array([90, 20, 40], np.uint8)
    cloth[50:290, 60:180] = 215 + noise(120, 240, 8) // 16
    cloth[90:210, 70:170] = np.uint8(noise(100, 120, 100 + motive) * 0.6 + 90)
    return Image.fromarray(cloth)


def closeups(pictures: list[Image.Image], side: int) -> Callable[[int], NDArray[np.uint8]]:
    return lambda index: np.asarray(pictures[index].convert("L").resize((side, side), Image.Resampling.BOX))


def test_other_things_before_one_backdrop_are_held_together_and_not_shown() -> None:
    """They are much alike, and a small part of them is not. Changed copies of each are shown."""
    shirts = [shirt(motive) for motive in range(4)]
    looks = [look(each, str(place)) for place, each in enumerate(shirts)]
    found = find_twins(looks, closeups(shirts, SIDE)).pairs
    assert len(found) >= 2, "alike enough to be held together"
    assert [pair for pair in found if show_one_picture(pair, closeups(shirts, DETAIL))] == []
    for change in VARIANTS.values():
        both = [shirts[0], change(shirts[0])]
        (pair,) = find_twins([looks[0], look(both[1], "x")], closeups(both, SIDE)).pairs
        assert show_one_picture(pair, closeups(both, DETAIL))
    assert show_one_picture(found[0], module.no_closeup), "where there is nothing to look at"


@pytest.mark.parametrize("name", VARIANTS)
def test_changed_copies_are_one_picture_in_detail(name: str, dogs: list[Image.Image]) -> None:
    for place, dog in enumerate(dogs):
        both = [dog, VARIANTS[name](dog), dogs[place - 1]]
        mirrored = "mirrored" in name
        assert show_one_picture(Pair(0, 1, 0.0, mirrored), closeups(both, DETAIL))
        assert not show_one_picture(Pair(0, 2, 0.0, mirrored), closeups(both, DETAIL))
    plain = np.full((DETAIL, DETAIL), 90, np.uint8)
    assert unlike_share(plain, np.asarray(dogs[0].convert("L").resize((DETAIL, DETAIL)))) == 1


def test_twins_of_looks(dogs: list[Image.Image]) -> None:
    """Near twins are sought among originals; what has a problem has no twin, though its bytes are those of another."""
    same, mirrored = look(dogs[0], "a"), look(VARIANTS["mirrored"](dogs[0]), "m")
    bad = ImageInfo(sha256="e", problem="undecodable")
    problems = [bad, bad, ImageInfo(sha256="a", problem="unreadable")]
    found = find_twins([look(dogs[1], "x"), same, same, mirrored, mirrored, *problems])
    assert found.originals.tolist() == [0, 1, 1, 3, 3, 5, 6, 7]
    assert [(pair.one, pair.other, pair.mirrored) for pair in found.pairs] == [(1, 3, True)]
    assert found.groups().tolist() == [0, 1, 1, 1, 1, 5, 6, 7]
    for side, pairs in ((48, 1), (47, 0)):  # small pictures have no near twins, nor those without thumbnails
        picture = Image.fromarray(noise(60, side, 2))
        assert len(find_twins([look(picture, "a"), look(VARIANTS["mirrored"](picture), "b")]).pairs) == pairs
    found = find_twins([ImageInfo(sha256=name) for name in "aba"])
    assert (found.originals.tolist(), found.pairs) == ([0, 1, 0], ())
    assert find_twins([]).groups().tolist() == []


def test_groups_hang_together_through_others() -> None:
    assert find_originals(["b", "a", "", "b", "", "a", "b"]).tolist() == [0, 1, 2, 0, 4, 1, 0]
    assert find_originals([]).tolist() == []
    pairs = (Pair(5, 6, 0.1, False), Pair(2, 5, 0.1, False), Pair(1, 6, 0.1, False))
    assert Twins(np.arange(8), pairs).groups().tolist() == [0, 1, 1, 3, 4, 1, 1, 7]
    assert Twins(np.array([0, 1, 0, 3]), (Pair(1, 3, 0.2, True),)).groups().tolist() == [0, 1, 0, 1]
    start, picture = time.process_time(), look(Image.fromarray(noise(60, 50, 1)), "a")
    found = find_twins([picture] * 100_000)
    assert set(found.groups().tolist()) == {0}
    assert time.process_time() - start < 10, "copies are grouped at once"
    assert found.pairs == ()


def test_a_long_burst_costs_no_square() -> None:
    """1,000 all but equal pictures would make half a million pairs; as few as hold them together are kept."""
    frame = thumbnail(Image.fromarray(noise(200, 150, 1))).astype(int)
    grain = np.random.default_rng(0).integers(-2, 3, (1000, 16, 16, 3))
    frames = np.clip(frame + grain, 0, 255).astype(np.uint8)
    found = find_pairs(frames)
    assert len(found) <= 1000 * module.CLOSEST
    assert set(Twins(np.arange(1000), tuple(found)).groups()) == {0}


def fields(count: int, seed: int) -> NDArray[np.float32]:
    """Smooth random pictures `[n, 16, 16, 3]`, whose waves are the weaker the finer they are, as a photograph's."""
    random, waves = np.random.default_rng(seed), cosines(16, 16)
    weights = 1 / (1 + np.hypot(*np.indices((16, 16))))
    weights[0, 0] = 0.3
    shades = waves.T @ (random.standard_normal((count, 16, 16)) * weights) @ waves
    levels = (
        128
        + 400 * shades[..., None] * random.uniform(0.3, 1, (count, 1, 1, 1))
        + random.uniform(-9, 9, (count, 1, 1, 3))
    )
    return np.asarray(np.clip(levels, 0, 255), np.float32)


def planted(count: int, changed: int) -> NDArray[np.uint8]:
    """Random pictures, and after them changed copies of the first: cropped, every second one mirrored, lit, with grain."""
    random, pictures = np.random.default_rng(1), fields(count, 0)
    crops = crop_windows(16, (0.0, 0.03))
    rows, columns = crops[random.integers(len(crops), size=(2, changed))]
    copies = np.einsum("nij,njkc,nlk->nilc", rows, pictures[:changed], columns)
    copies[::2] = copies[::2, :, ::-1]
    copies += random.uniform(-4, 4, (changed, 1, 1, 1)) + random.normal(0, 1, copies.shape)
    return np.concatenate([pictures, np.clip(copies, 0, 255)]).round().astype(np.uint8)


def test_in_a_large_set_cells_propose_nearly_all_that_comparing_all_finds(monkeypatch: Patch) -> None:
    pictures = planted(12_000, 2_000)
    whole = found_in(find_pairs(pictures))
    assert len(whole & {(place, place + 12_000) for place in range(2_000)}) > 1_800
    products: list[int] = []
    for name in ("_products", "_nearness"):
        monkeypatch.setattr(nearby, name, counted(getattr(nearby, name), products))
    monkeypatch.setattr(nearby, "_MEMBERS", 60)
    for room in (nearby, module):
        monkeypatch.setattr(room, "WHOLE", 1_000)
    found = found_in(find_pairs(pictures))
    assert len(found & whole) >= 0.995 * len(whole), f"{len(found & whole)} of {len(whole)}"
    assert found <= whole
    assert sum(products) < 14_000**2 / 10


def counted(work: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    def products(one: NDArray[Any], other: NDArray[Any], *lengths: NDArray[Any]) -> Any:
        counts.append(len(one) * len(other))
        return work(one, other, *lengths)

    return products


def test_each_picture_is_a_member_once_and_a_guest_where_its_nearer_and_farther_views_are(
    monkeypatch: Patch,
) -> None:
    pictures = planted(3_000, 0)
    shades = luma(pictures)
    waves, colours = nearby.quantised(shades), nearby.tints(pictures, shades)
    order = np.random.default_rng(0).permutation(3_000)
    use_blocks_of(monkeypatch, _MEMBERS=40, _FORK=8, _BATCH=700)
    cells = list(nearby._cells(order, order, waves, colours))
    assert len(cells) > 30, "divided more than once"
    assert sorted(np.concatenate([members for members, _ in cells])) == list(range(3_000))
    rank = np.argsort(order)
    for members, guests in cells:
        assert (np.diff(rank[members]) > 0).all() and (np.diff(rank[guests]) > 0).all()
        assert set(members) <= set(guests)
    monkeypatch.setattr(nearby, "REACH", 0.0)
    visits = sum(len(guests) for _, guests in nearby._cells(order, order, waves, colours))
    monkeypatch.setattr(nearby, "_zoomed", lambda places: [places])
    assert visits > 1.1 * sum(len(guests) for _, guests in nearby._cells(order, order, waves, colours))


def test_a_zoom_moves_a_picture_to_where_its_crop_is() -> None:
    pictures = fields(300, 5)
    cut = crop_windows(16, (0.0, nearby.ZOOM))[3]
    crops = np.einsum("ij,njkc,lk->nilc", cut, pictures, cut)
    whole, part = (
        nearby._placed(nearby.quantised(luma(each)), nearby.tints(each, luma(each)))
        for each in (pictures, crops)
    )
    same, nearer, farther = nearby._zoomed(whole)
    assert np.array_equal(same, whole)
    assert np.abs(nearer + farther - 2 * whole).max() <= 1
    left, now = (np.linalg.norm(part - each, axis=1) for each in (whole, nearer))
    assert np.median(now / left) < 0.75


def test_colours_from_afar() -> None:
    pictures = fields(200, 6)
    colours = nearby.tints(pictures, luma(pictures))
    mirrored = nearby.tints(pictures[:, :, ::-1], luma(pictures[:, :, ::-1]))
    assert np.abs(mirrored * ([1] * 12 + [-1] * 6) - colours).max() <= 1
    vivid = np.concatenate([pictures[..., :2], pictures[::-1, ..., 2:]], axis=-1)
    turned = vivid[:, :, ::-1]
    assert nearby.are_tinted_alike(*(nearby.tints(each, luma(each)) for each in (vivid, turned))).all()
    plain = np.broadcast_to(np.array([90, 100, 140], np.float32), (1, 16, 16, 3))
    level = plain[0, 0, 0] @ [0.299, 0.587, 0.114]
    expected = 4 * np.array([90 - level, 140 - level])
    assert nearby.tints(plain, luma(plain))[0] == pytest.approx([*expected, *[0] * 16], abs=0.51)
    for red, alike in ((0, True), (6, True), (10, False)):
        other = pictures[:, :, ::-1] + np.array([red, 0, -red], np.float32)
        both = nearby.are_tinted_alike(colours, nearby.tints(other, luma(other)))
        assert (both == alike).all()


def test_in_a_large_set_alone_other_colours_are_no_candidates(monkeypatch: Patch) -> None:
    pictures = fields(300, 7) * 0.5 + 60
    pictures = np.concatenate([pictures, pictures + np.array([20, -5, -25], np.float32)])
    shades = luma(pictures)
    brightness, waves = shades.mean(axis=(1, 2)), nearby.quantised(shades)
    order, colours = np.argsort(brightness, kind="stable"), nearby.tints(pictures, shades)
    for most, left in ((1_000, 300), (100, 0)):
        monkeypatch.setattr(nearby, "WHOLE", most)
        found = np.concatenate(list(nearby.candidates(order, brightness, waves, colours, 256)))
        assert (np.abs(found[:, 0] - found[:, 1]) == 300).sum() == left


def test_the_same_pairs_whatever_adds_them_up() -> None:
    """Products of low waves are whole numbers that float32 holds: no order of the sums, no thread changes one."""
    one_row = np.broadcast_to(255 * np.eye(16)[:, :, None, None], (16, 16, 16, 3))
    waves = nearby.quantised(luma(np.concatenate([fields(500, 2), one_row])))
    even, odd = nearby._products(waves, waves)
    parts = waves[:, : nearby._EVEN].astype(int), waves[:, nearby._EVEN :].astype(int)
    assert np.array_equal(even, parts[0] @ parts[0].T)
    assert np.array_equal(odd, parts[1] @ parts[1].T)
    assert np.abs(waves.astype(int) @ waves.astype(int).T).max() < 2**24
    vivid = np.random.default_rng(0).integers(-1000, 1000, (len(waves), nearby.TINTS)).astype(np.int16)
    places = nearby._placed(waves, vivid)
    lengths = (places**2).sum(axis=1) / 2
    assert np.array_equal(lengths * 2, (places.astype(int) ** 2).sum(axis=1))
    assert lengths.max() < 2**23
    near = nearby._nearness(places, places, lengths)
    assert np.array_equal(near, nearby._nearness(*(each.astype(float) for each in (places, places, lengths))))
    assert np.array_equal(places @ nearby._zoom(), places.astype(float) @ nearby._zoom().astype(float))


def test_among_many_equal_pictures_the_search_stays_linear(monkeypatch: Patch) -> None:
    """Frames of one picture fall into one cell, whose members all look like all others."""
    frame, grain = fields(1, 3), np.random.default_rng(0)
    sums = []
    limits = (
        (nearby, "WHOLE", 900),
        (module, "WHOLE", 900),
        (module, "LOOKED_AT", 32),
        (nearby, "_COLUMNS", 128),
    )
    for room, name, value in limits:
        monkeypatch.setattr(room, name, value)
    for count in (1_000, 3_000):
        frames = np.clip(frame + grain.integers(-1, 2, (count, 16, 16, 3)), 0, 255)
        pictures = np.concatenate([fields(1_000, 4), frames]).astype(np.uint8)
        products: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(nearby, "_products", counted(nearby._products, products))
            found = find_pairs(pictures)
        assert len(set(Twins(np.arange(len(pictures)), tuple(found)).groups()[1_000:])) == 1
        assert len(found) <= count * module.CLOSEST + 50
        sums.append(sum(products))
    assert sums[1] < 4 * sums[0]
