"""eval.py: the seed's table, the ensemble, folders with and without labels, refusals."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import folder
from PIL import Image
from runs import ONE_THREAD, Here, tinted

from greyhound import eval as evaluation
from greyhound.cache.cli import ValueFormatError, from_json
from greyhound.cache.errors import UserError
from greyhound.cache.folder import Source
from greyhound.cache.store import Pack, PackError
from greyhound.model import checkpoint, metrics
from greyhound.model.metrics import wilson
from greyhound.model.run import Run, RunError
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader

NAMES = ("blue <b>", "green", "red")


def job(run: Path, **options: Any) -> evaluation.Job:
    return evaluation.Job(run=run, resources=ONE_THREAD, **options)


def test_the_tables_are_the_seeds_and_ours(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation.evaluate(job(run, crops=4))
    lines = capsys.readouterr().out.splitlines()
    result = Run(run).read("eval.json")
    assert [line.split("(")[0] for line in lines[:3]] == [f"Accuracy of {name}" for name in NAMES]
    assert lines[3] == f"Total Accuracy: {result['accuracy']:.3f}"
    assert lines[4].startswith("one crop, on average over 4: ")
    assert lines[5].startswith("mean of 4 probabilities: ")
    assert (result["n"], result["crops"], result["split"], result["checkpoint"]) == (12, 4, "test", "swa")
    assert np.array(result["confusion"]).sum(axis=1).tolist() == [4, 4, 4]
    assert result["ensemble_interval"] == pytest.approx(list(wilson(result["ensemble_accuracy"] * 12, 12)))
    assert (run / "confusion.png").stat().st_size > 1000
    page = (run / "report.html").read_text()
    assert "blue &lt;b&gt;" in page
    assert "blue <b>" not in page
    assert "Not evaluated yet" not in page


def test_the_name_of_a_class_is_no_command_and_one_crop_is_the_centre_window(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation.evaluate(job(run, crops=1))
    result = Run(run).read("eval.json")
    assert result["accuracy"] == result["ensemble_accuracy"]
    how = ("precision", "engine", "device", "checkpoint", "after")
    assert [result[name] for name in how] == ["fp32", "threads", "cpu", "swa", "averaging"]
    evaluation.evaluate(job(run, crops=1, seed=5))
    assert Run(run).read("eval.json")["cross_entropy"] == pytest.approx(result["cross_entropy"])
    result["classes"][0]["name"], result["after"] = "\x1b[31mred\nalert", "\x1b[2Jthe end"
    capsys.readouterr()
    evaluation.conclude(job(run), Run(run), "eval.json", result)
    said = capsys.readouterr().out
    assert "Accuracy of \ufffd[31mred\ufffdalert(n=4): " in said
    assert "\x1b" not in said


def test_a_thousand_classes_make_a_page_that_opens(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a gigabyte for a picture that nobody can read, nor a million lines of zeros."""
    classes = [f"class {index}" for index in range(1000)]
    labels = np.arange(2000) % 1000
    probabilities = np.full((2000, 1, 1000), 1e-4, np.float32)
    predicted = np.where(np.arange(2000) < 1950, labels, (labels + 3) % 1000)
    probabilities[np.arange(2000), 0, predicted] = 0.9
    result = metrics.evaluate(probabilities, labels, classes)
    how = {"checkpoint": "best", "after": "epoch 1"}
    started = time.process_time()
    evaluation.conclude(job(run, crops=1), Run(run), "eval.json", result | how)
    assert time.process_time() - started < 5
    assert (run / "eval.json").stat().st_size < 600_000
    assert (run / "report.html").stat().st_size < 2_000_000
    with Image.open(run / "confusion.png") as picture:
        assert max(picture.size) < 2200
    page = (run / "report.html").read_text()
    assert "Of 1,000 classes the picture has the 120 that took part in the most mistakes" in page
    assert page.count("class 999") >= 1
    assert "Total Accuracy: 0.975" in capsys.readouterr().out


def test_accuracy_is_the_mean_over_single_crops_of_the_network(run: Path, colour_pack: Pack) -> None:
    evaluation.evaluate(job(run, crops=3, checkpoint="last"))
    result = Run(run).read("eval.json")
    _, network = Run(run).network("last", torch.device("cpu"))
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").crops()
    right, losses = [], []
    ids, on = colour_pack.ids("test"), Resources(device="cpu")
    with Loader(colour_pack, augment, ids, on, batch_size=12, views=3, epochs=1) as loader:
        (batch,) = list(loader)
    with torch.no_grad():
        for view in range(3):
            right.append((network(batch.images[:, view]).argmax(1) == batch.labels).float().mean().item())
            losses.append(network(batch.images[:, view]).softmax(1))
    assert result["accuracy"] == pytest.approx(np.mean(right))
    mean = torch.stack(losses).mean(0)[torch.arange(12), batch.labels]
    assert result["cross_entropy"] == pytest.approx(-mean.log().mean().item(), rel=1e-4)


def test_other_splits_stand_beside_the_test_and_never_replace_it(run: Path) -> None:
    evaluation.evaluate(job(run, crops=2))
    test = (run / "eval.json").read_bytes()
    evaluation.evaluate(job(run, crops=2, split="val"))
    assert (run / "eval.json").read_bytes() == test
    assert Run(run).read("eval-val.json")["n"] == 6
    page = (run / "report.html").read_text()
    assert "of test images correctly" in page
    assert "Evaluated beside it" in page


def test_an_edited_recipe_is_one_line(run: Path) -> None:
    recipe = Run(run).read("recipe.json")
    recipe["augment"]["size"] = "large"
    Run(run).write("recipe.json", recipe)
    with pytest.raises(ValueFormatError, match=r"recipe.json, augment: size: .* not 'large'"):
        evaluation.evaluate(job(run))
    del recipe["augment"]
    Run(run).write("recipe.json", recipe)
    with pytest.raises(RunError, match=r"recipe.json: no augment; train again into another folder"):
        evaluation.evaluate(job(run))


def labelled(root: Path) -> Path:
    files = {f"{name}/{n}.jpg": tinted(2 - k, 900 + n) for k, name in enumerate(NAMES) for n in range(3)}
    return folder(root, files)


def test_a_labelled_folder_is_evaluated(run: Path, tmp_path: Path) -> None:
    evaluation.evaluate(job(run, images=labelled(tmp_path / "more"), crops=2))
    result = Run(run).read("eval-images.json")
    assert not (run / "eval.json").exists(), "the run's own test is another result"
    assert (run / "confusion-images.png").exists()
    assert (result["n"], result["split"]) == (9, "images")
    assert [row["n"] for row in result["classes"]] == [3, 3, 3]


def test_a_folder_without_labels_gets_predictions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ('odd, "na\rme".jpg', "b.jpg", "broken.jpg")
    contents = (tinted(0, 1), tinted(1, 2), b"not an image")
    images = folder(tmp_path / "new", dict(zip(names, contents, strict=True)))
    before = (run / "report.html").read_bytes()
    evaluation.evaluate(job(run, images=images, crops=2))
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["b.jpg", 'odd, "na\rme".jpg']
    assert {row["prediction"] for row in rows} <= set(NAMES)
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    for row in rows:
        guesses = [row["prediction"], row["prediction_2"], row["prediction_3"]]
        chances = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert sorted(guesses) == list(NAMES)
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1, abs=2e-4)
    assert not (run / "eval.json").exists()
    assert (run / "report.html").read_bytes() == before
    assert "left out: broken.jpg: undecodable (not an image)" in capsys.readouterr().err


def test_find_images_reads_labels_from_class_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = labelled(tmp_path / "more")
    sources = evaluation.find_images(images, NAMES)
    assert sources[0] == Source(images / "blue <b>" / "0.jpg", "blue <b>/0.jpg", 0)
    assert [source.label for source in sources] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {source.label for source in evaluation.find_images(images, ("cats", "dogs"))} == {-1}
    assert "is named as a class of this run, so its images have no labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("purple/1.jpg", "subfolder 'purple', which is no class of this run"),
        ("loose.jpg", r"'loose\.jpg' for one; move them into a class"),
    ],
)
def test_a_folder_that_is_labelled_in_part_is_refused(tmp_path: Path, more: str, message: str) -> None:
    images = folder(labelled(tmp_path / "more"), {more: b""})
    with pytest.raises(UserError, match=message):
        evaluation.find_images(images, NAMES)


def test_what_does_not_fit_the_run_is_refused(run: Path, coded_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--predictions is for a folder without labels"):
        evaluation.evaluate(job(run, predictions=tmp_path / "p.csv"))
    with pytest.raises(PackError, match="other classes"):
        evaluation.evaluate(job(run, pack=coded_pack.path))


def test_a_diverged_network_is_said_to_have_diverged(run: Path) -> None:
    content = checkpoint.load(run / "last.ckpt")
    content["network"]["classifier.bias"].fill_(float("nan"))
    checkpoint.save(run / "last.ckpt", content)
    with pytest.raises(UserError, match=r"checkpoint last: .*not finite"):
        evaluation.evaluate(job(run, checkpoint="last", crops=1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run", "nowhere"), "nowhere is no folder; expected a run folder"),
        (("--run", "nowhere", "--crops", "0"), "crops is 0; expected at least 1"),
        (("--run", "nowhere", "--threads", "-2"), "threads is -2; expected at least 1"),
        (("--run", "nowhere", "--seed", "-1"), "seed is -1; expected 0 to"),
        (("--run", "nowhere", "--images", "x", "--split", "val"), "expected neither --pack nor --split"),
        (("--run", "nowhere", "--checkpoint", "newest"), "--checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], says: str, tmp_path: Path, here: Here
) -> None:
    answer = here("eval.py", *arguments)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert says in answer.err
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_that_validated_best_is_taken(run: Path) -> None:
    for better, name in (("best", "best.ckpt"), ("swa", "swa.ckpt")):
        other = "swa.ckpt" if name == "best.ckpt" else "best.ckpt"
        for file, score in ((name, 0.9), (other, 0.8)):
            checkpoint.save(run / file, checkpoint.load(run / file) | {"score": score})
        assert Run(run).load("auto")[0] == better
    checkpoint.save(run / "best.ckpt", checkpoint.load(run / "best.ckpt") | {"score": 0.9})
    assert Run(run).load("auto")[0] == "swa", "a tie goes to the average"
