"""`cache.demo`: the same dogs for the same numbers, and a `truth.csv` that says what is really in the files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from limits import files_up_to
from pictures import Drawn, draw
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from greyhound.cache.demo import brushes, dogs
from greyhound.cache.demo import faults as demo

CLASSES, PER_CLASS = 6, 25
UNREADABLE = {"truncated", "empty", "not-an-image"}


def load(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image.copy()


def drawing(row: dict[str, str], first: int = 0) -> Image.Image:
    """What a row's file shows, as its label and its number say."""
    (breed,) = [breed for breed in brushes.BREEDS if breed.name.replace(" ", "_") == row["label"]]
    return dogs.draw_dog(breed, first + int(Path(row["path"]).stem.rsplit("_", 1)[1]), 0)[0]


def difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, np.float32) - np.asarray(second, np.float32)).mean())


def test_truth_has_one_line_for_every_file_and_the_summary_agrees(drawn: Drawn) -> None:
    files = [path for path in drawn.folder.rglob("*") if path.is_file() and path.suffix != ".csv"]
    assert list(drawn.truth[0]) == ["path", "label", "fault", "of", "detail"]
    assert sorted(drawn.folder / row["path"] for row in drawn.truth) == sorted(files)
    names = [breed.name.replace(" ", "_") for breed in brushes.BREEDS[:CLASSES]]
    assert Counter(path.parent.name for path in files) == dict.fromkeys(names, PER_CLASS)
    assert drawn.faults == Counter(row["fault"] for row in drawn.truth if row["fault"])
    assert drawn.progress == [(done + 1, 150) for done in range(150)]


def test_every_fault_is_planted_in_every_breed_equally(drawn: Drawn) -> None:
    faulty = [row for row in drawn.truth if row["fault"]]
    assert {row["fault"] for row in faulty} == set(demo.FAULTS)
    counts = Counter(row["path"].split("/")[0] for row in faulty)
    assert len(counts) == CLASSES and max(counts.values()) - min(counts.values()) <= 1
    for row in drawn.truth:
        assert (row["path"].split("/")[0] == row["label"]) != (row["fault"] == "mislabelled")


def test_sound_files_decode_and_clean_ones_are_jpegs_as_heavy_as_photographs(drawn: Drawn) -> None:
    for row, path in drawn.rows("", *{*demo.FAULTS} - UNREADABLE):
        image = load(path)
        assert min(image.size) >= 300 and max(image.size) <= 500, row
    for _, path in drawn.rows(""):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
    assert 30_000 < np.mean([path.stat().st_size for _, path in drawn.rows("")]) < 110_000


def test_files_that_are_cut_empty_or_foreign_do_not_load(drawn: Drawn) -> None:
    for row, path in drawn.rows("truncated"):
        with Image.open(path) as image, pytest.raises(OSError, match="truncated"):
            image.load()
        whole, rest = demo.encode(drawing(row)), path.read_bytes()
        assert whole.startswith(rest) and 0.39 < len(rest) / len(whole) <= 0.7
    for row, path in drawn.rows("empty", "not-an-image"):
        with pytest.raises(UnidentifiedImageError):
            load(path)
        assert path.suffix == ".jpg"
        assert (path.stat().st_size == 0) == (row["fault"] == "empty")


def test_exif_rotated_files_are_upright_for_a_viewer(drawn: Drawn) -> None:
    for row, path in drawn.rows("exif-rotated"):
        with Image.open(path) as stored:
            assert stored.getexif()[ExifTags.Base.Orientation] == int(row["detail"])
            assert difference(ImageOps.exif_transpose(stored), drawing(row)) < 6
    image = Image.linear_gradient("L").resize((64, 32)).convert("RGB")
    for orientation in "368":
        stored = Image.open(io.BytesIO(demo._lay_down(image, orientation)))
        upright = ImageOps.exif_transpose(stored)
        assert difference(stored.resize(image.size), image) > 50
        assert upright.size == image.size and difference(upright, image) < 3


def test_other_formats_are_what_they_say(drawn: Drawn) -> None:
    """Grayscale comes in one channel, and in three equal ones."""
    kinds = {"cmyk": ("JPEG", "CMYK", ".jpg"), "gif": ("GIF", "P", ".gif"), "png": ("PNG", "RGB", ".png")}
    for row, path in drawn.rows(*kinds):
        with Image.open(path) as image:
            assert (image.format, image.mode, path.suffix) == kinds[row["fault"]]
    images = [load(path) for _, path in drawn.rows("grayscale")]
    assert {image.mode for image in images} == {"L", "RGB"}
    for grey in images:
        pixels = np.asarray(grey.convert("RGB"))
        assert (pixels == pixels[..., :1]).all()


def test_duplicates_name_a_clean_original_beside_them(drawn: Drawn) -> None:
    """And mislabelled files show the true breed, and are nowhere else."""
    clean = {path: path.read_bytes() for _, path in drawn.rows("")}
    assert len({*clean.values()}) == len(clean)
    for row, path in drawn.rows("exact-duplicate", "near-duplicate"):
        original = drawn.folder / row["of"]
        assert original in clean and original.parent == path.parent
        assert (clean[original] == path.read_bytes()) == (row["fault"] == "exact-duplicate")
    for row, path in drawn.rows("mislabelled"):
        assert path.read_bytes() == demo.encode(drawing(row, demo.STRAYS))


@pytest.mark.parametrize("kind", demo.KINDS["near-duplicate"])
def test_a_twin_is_nearly_the_same_picture(kind: str) -> None:
    image, _ = dogs.draw_dog(brushes.BREEDS[3], 7, 0)
    other = Image.open(io.BytesIO(demo._twin(image, kind))).resize(image.size)
    if kind == "mirrored":
        other = ImageOps.mirror(other)
    assert 0.5 < difference(image, other) < 16
    assert difference(image, dogs.draw_dog(brushes.BREEDS[3], 8, 0)[0].resize(image.size)) > 25


def test_boxes_hold_the_dog_of_every_file_that_can_be_read(drawn: Drawn) -> None:
    with (drawn.folder / "boxes.csv").open(newline="", encoding="utf-8") as file:
        boxes = {row.pop("path"): [int(value) for value in row.values()] for row in csv.DictReader(file)}
    assert boxes.keys() == {row["path"] for row in drawn.truth if row["fault"] not in UNREADABLE}
    for row, path in drawn.rows(*{*demo.FAULTS, ""} - UNREADABLE):
        left, top, right, bottom = boxes[row["path"]]
        width, height = ImageOps.exif_transpose(load(path)).size
        assert 0 <= left < right <= width and 0 <= top < bottom <= height, row
        assert (right - left) * (bottom - top) > 0.1 * width * height
    for row, _ in drawn.rows("exact-duplicate"):
        assert boxes[row["path"]] == boxes[row["of"]]


def test_a_box_is_where_the_dog_is() -> None:
    """Two breeds before the same scene, which nothing else tells apart: they differ in the mask's box alone."""
    for number in range(4):
        image, mask = dogs.draw_dog(brushes.BREEDS[9], number, 0)
        dog = np.asarray(mask) > 0
        assert image.size == mask.size
        tan = np.abs(np.asarray(image, np.float32) - (217, 177, 132)).max(axis=-1) < 40
        assert tan[dog].mean() > 2 * tan[~dog].mean()


@pytest.mark.parametrize(("kind", "box"), [("mirrored", (60, 20, 90, 50)), ("resized", (9, 18, 36, 46))])
def test_a_twins_box_goes_where_its_dog_goes(tmp_path: Path, kind: str, box: tuple[int, ...]) -> None:
    mask = Image.new("L", (100, 100))
    mask.paste(255, (10, 20, 40, 50))
    drawing = Image.new("RGB", (100, 100)), mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "draw_dog", lambda *_: drawing)
        found = demo._write(tmp_path, 0, demo.Plan("a.jpg", 0, 0, "near-duplicate", "", kind))
    assert found == box


def test_only_the_seed_the_breed_and_the_number_change_the_picture(drawn: Drawn, tmp_path: Path) -> None:
    fewer = draw(tmp_path / "fewer", 3, 4)
    clean = {row["path"] for row, _ in drawn.rows("")} & {row["path"] for row, _ in fewer.rows("")}
    assert len(clean) >= 8
    for path in clean:
        assert (drawn.folder / path).read_bytes() == (fewer.folder / path).read_bytes()
    one, other = brushes.BREEDS[:2]
    keys = ((one, 0, 0), (other, 0, 0), (one, 1, 0), (one, 0, 1))
    drawings = [dogs.draw_dog(*key)[0].tobytes() for key in keys]
    assert len(set(drawings)) == 4
    assert dogs.draw_dog(one, 0, 0)[0].tobytes() == drawings[0]


def test_at_the_default_size_four_to_five_per_cent_are_faulty() -> None:
    plans = demo.plan_demo(12, 60, 0)
    faulty = [plan for plan in plans if plan.fault]
    assert 0.04 <= len(faulty) / 720 <= 0.05
    assert sum(plan.fault == "mislabelled" for plan in plans) == 7
    assert set(Counter(plan.path.split("/")[0] for plan in faulty).values()) <= {2, 3}


@pytest.mark.parametrize("per_class", [1, 2, 4, 50, 200])
@pytest.mark.parametrize("classes", [2, 3, 25, len(brushes.BREEDS)])
def test_any_size_can_be_planned(classes: int, per_class: int) -> None:
    plans = demo.plan_demo(classes, per_class, 5)
    faults = {plan.path: plan.fault for plan in plans}
    assert len(faults) == classes * per_class
    assert all(faults[plan.of] == "" for plan in plans if plan.of)
    assert set(faults.values()) - {""} == set(demo.FAULTS) or classes * per_class < 100


def test_every_breed_is_distinct_and_its_words_are_known() -> None:
    assert len({breed.name for breed in brushes.BREEDS}) == len(brushes.BREEDS) >= 25
    for breed in brushes.BREEDS:
        assert breed.marking in brushes.MARKINGS and breed.ears in dogs.EARS
        assert breed.tail in dogs.TAILS and breed.texture in brushes.COATS
        patterned = dogs.pattern(breed.pattern, np.random.default_rng(0), (90, 90), 60.0).any()
        assert patterned == (breed.pattern != "solid")


def test_an_empty_folder_is_filled_and_what_cannot_be_leaves_nothing_behind(tmp_path: Path) -> None:
    root, note = tmp_path / "dogs", tmp_path / "note.txt"
    for numbers, message in (
        ((1, 60, 0), "classes is 1, expected 2 to 26"),
        ((27, 60, 0), "classes is 27, expected 2 to 26"),
        ((12, 0, 0), "per_class is 0, expected 1 to"),
        ((12, 60, -1), "seed is -1, expected 0 to"),
    ):
        with pytest.raises(demo.DemoError, match=message):
            demo.draw_demo(root, *numbers)
    with pytest.raises(KeyboardInterrupt):
        demo.draw_demo(root, 2, 1, progress=Mock(side_effect=KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []
    root.mkdir()
    assert draw(root, 2, 1).faults == {}
    assert list(tmp_path.iterdir()) == [root]
    with pytest.raises(demo.DemoError, match="a folder with 1 entries in it; expected a new or empty folder"):
        demo.draw_demo(tmp_path, 2, 1)
    note.write_text("mine")
    with pytest.raises(demo.DemoError, match="is a file; expected"):
        demo.draw_demo(note, 2, 1)
    assert {*tmp_path.iterdir()} == {root, note} and note.read_text() == "mine"


def test_a_link_to_an_empty_folder_is_filled_and_a_full_disk_is_one_line(tmp_path: Path) -> None:
    place, link = tmp_path / "disk" / "dogs", tmp_path / "dogs"
    place.mkdir(parents=True)
    link.symlink_to(place)
    with (
        files_up_to(100),
        pytest.raises(demo.DemoError, match=r"dogs cannot be made \(File too large\); name"),
    ):
        demo.draw_demo(link, 2, 1)
    assert {*tmp_path.iterdir()} == {place.parent, link} and not [*place.iterdir()]
    demo.draw_demo(link, 2, 1)
    assert link.is_symlink() and (place / "truth.csv").exists()
    assert {*tmp_path.iterdir()} == {place.parent, link}
