"""eval.py: the seed's table, the ensemble, folders with labels, refusals."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pictures import encode, folder, noise, packed, scan_here
from PIL import Image
from runs import NAMES, ONE_THREAD, Capture, Here, Patch

from greyhound import eval as evaluation
from greyhound import explain, predict, review
from greyhound.cache.cli import ValueFormatError, from_json
from greyhound.cache.errors import UserError
from greyhound.cache.folder import Sample
from greyhound.cache.pack import Options
from greyhound.cache.store import Pack, PackError
from greyhound.model import calibration, checkpoint, metrics, precision
from greyhound.model.metrics import wilson
from greyhound.model.report import figures
from greyhound.model.run import Run, RunError
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Batch, Loader


def evaluate(run: Path, name: str = "eval.json", **options: Any) -> dict[str, Any]:
    """Evaluate the run; what that wrote into its file of that name."""
    evaluation.evaluate(evaluation.Job(run=run, resources=ONE_THREAD, **options))
    content: dict[str, Any] = Run(run).read(name)
    return content


def test_the_tables_are_the_seeds_and_ours(run: Path, capsys: Capture) -> None:
    result = evaluate(run, crops=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0] for line in lines[:3]] == [f"Accuracy of {name}" for name in NAMES]
    assert lines[3].startswith(
        f"Total Accuracy: {result['accuracy']:.3f} (one crop, on average over 4, 3 classes; "
    )
    assert lines[4].startswith(f"balanced accuracy: {result['balanced_accuracy']:.3f}, macro F1: ")
    assert lines[5].startswith(f"mean of 4 probabilities: {result['ensemble_accuracy']:.3f} (95 % interval ")
    assert lines[6].endswith(
        "; temperature 1: 6 validation images are too few to fit a temperature, 50 are needed"
    )
    assert (result["n"], result["crops"], result["split"], result["checkpoint"]) == (12, 4, "test", "swa")
    assert np.array(result["confusion"]).sum(axis=1).tolist() == [4, 4, 4]
    assert result["ensemble_interval"] == pytest.approx(list(wilson(result["ensemble_accuracy"] * 12, 12)))
    assert (run / "confusion.png").stat().st_size > 1000
    page = (run / "report.html").read_text()
    assert "blue &lt;b&gt;" in page
    assert "blue <b>" not in page
    assert "Not evaluated yet" not in page


def test_what_each_image_got_is_what_was_counted(run: Path, colour_pack: Pack) -> None:
    """predictions.csv gives eval.json's numbers again, and mistakes.json shows the worst of it."""
    result = evaluate(run, crops=3, checkpoint="last")  # which makes mistakes
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == ("path", "true", "predicted", "probability", "loss")
    ids = colour_pack.ids("test")
    assert [row["path"] for row in rows] == [colour_pack.image_path(row) for row in ids]
    places = [[NAMES.index(row[name]) for row in rows] for name in ("true", "predicted")]
    assert places[0] == colour_pack.labels[ids].tolist()
    assert metrics.count_confusions(np.array(places[0]), np.array(places[1]), 3) == {
        "confusion": result["confusion"]
    }
    assert result["predictions_sha256"] == hashlib.sha256((run / "predictions.csv").read_bytes()).hexdigest()
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses) == pytest.approx(result["cross_entropy"], abs=1e-6)
    shown = Run(run).read("mistakes.json")
    assert {key: shown[key] for key in ("weights", "crops", "seed")} == {
        key: result[key] for key in ("weights", "crops", "seed")
    }
    worst = sorted(
        (row for row in rows if row["true"] != row["predicted"]), key=lambda row: -float(row["loss"])
    )
    assert [row["path"] for row in shown["images"]] == [row["path"] for row in worst]
    assert len(worst) == len(rows) - sum(result["confusion"][k][k] for k in range(3)) > 0
    with Image.open(io.BytesIO(base64.b64decode(shown["images"][0]["thumbnail"]))) as picture:
        assert picture.size == (48, 40), "not made larger"
    assert [(row["true"], row["predicted"]) for row in shown["pairs"]] == [
        (NAMES[true], NAMES[predicted]) for true, predicted, _ in metrics.confused_pairs(result, 10)
    ]
    for pair in shown["pairs"]:
        of, right = (pair["true"], pair["predicted"]), (pair["predicted"],) * 2
        found = [(row["true"], row["predicted"]) for row in pair["images"]]
        assert found[0] == of and set(found[1:-1]) <= {of} and found[-1] in (of, right)
    evaluate(run, "eval-val.json", crops=2, split="val")
    assert len((run / "predictions-val.csv").read_text().splitlines()) == 1 + 6
    assert Run(run).read("mistakes.json") == shown, "of the test alone"


def test_training_images_of_a_pack_that_moved_get_the_runs_temperature(
    run: Path, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(calibration, "LEAST", 1)
    Run(run).write("pack.json", Run(run).read("pack.json") | {"path": "/gone/p.arrow", "beside": ""})
    moved = shutil.copy(colour_pack.path, tmp_path / "moved.arrow")
    found = evaluate(run, "eval-train.json", split="train", pack=moved, crops=1)["calibration"]
    assert (found["images"], "cannot be found" in found["why"]) == (6, False)


def test_the_name_of_a_class_is_no_command_and_one_crop_is_central(run: Path, capsys: Capture) -> None:
    result = evaluate(run, crops=1)
    assert result["accuracy"] == result["ensemble_accuracy"]
    how = ("precision", "engine", "device", "checkpoint", "after")
    assert [result[name] for name in how] == ["fp32", "threads", "cpu", "swa", "averaging"]
    assert evaluate(run, crops=1, seed=5)["cross_entropy"] == pytest.approx(result["cross_entropy"])
    result["classes"][0]["name"], result["after"] = "\x1b[31mred\nalert", "\x1b[2Jthe end"
    capsys.readouterr()
    evaluation.conclude(evaluation.Job(run=run), evaluation.Evaluated("eval.json", result, [], None))
    said = capsys.readouterr().out
    assert "Accuracy of \ufffd[31mred\ufffdalert(n=4): " in said
    assert "\x1b" not in said


class ManyImages(SimpleNamespace):
    """Stands for a pack of any number of images, all of them one picture."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__(classes=classes)
        self.jpeg = np.frombuffer(encode(noise(375, 500, 0), "JPEG"), np.uint8)

    def image_path(self, row: int) -> str:
        return f"{self.classes[row % len(self.classes)]}/{row}.jpg"

    def encoded(self, row: int) -> Any:
        return self.jpeg


def test_a_thousand_classes_make_a_page_that_opens(run: Path, capsys: Capture) -> None:
    """Not a gigabyte for a picture that nobody can read, nor a million lines of zeros."""
    classes = [f"class {index}" for index in range(1000)]
    labels = np.arange(2000) % 1000
    probabilities = np.full((2000, 1, 1000), 1e-4, np.float32)
    predicted = np.where(np.arange(2000) < 1950, labels, (labels + 3) % 1000)
    probabilities[np.arange(2000), 0, predicted] = 0.9
    judged, ids = metrics.judge(probabilities, labels), np.arange(2000)
    result = metrics.evaluate(probabilities, judged, classes)
    how = {"checkpoint": "best", "after": "epoch 1", "weights": Run(run).weights_id("swa"), "seed": 0}
    pack: Any = ManyImages(tuple(classes))
    started = time.process_time()
    rows = evaluation.describe_images(pack, ids, judged)
    shown = evaluation.show_mistakes(pack, ids, judged, rows, result)
    job = evaluation.Job(run=run, crops=1)
    evaluation.conclude(job, evaluation.Evaluated("eval.json", result | how, rows, shown))
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
    result = evaluate(run, crops=3, checkpoint="last")
    _, network = Run(run).network("last", torch.device("cpu"))
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").crops()
    ids, on = colour_pack.ids("test"), Resources(device="cpu")
    with Loader(colour_pack, augment, ids, on, batch_size=12, views=3, epochs=1) as loader:
        (batch,) = list(loader)
    with torch.no_grad():
        chances = torch.stack([network(batch.images[:, view]).softmax(1) for view in range(3)])
    assert result["accuracy"] == pytest.approx((chances.argmax(2) == batch.labels).float().mean().item())
    mean = chances.mean(0)[torch.arange(12), batch.labels]
    assert result["cross_entropy"] == pytest.approx(-mean.log().mean().item(), rel=1e-4)


def test_on_a_cpu_few_crops_are_computed_at_once(run: Path, monkeypatch: Patch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = precision.forward

    def look(network: torch.nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
        shapes.append(tuple(images.shape[:1]))
        return forward(network, images, bf16)

    monkeypatch.setattr(precision, "forward", look)
    for crops, size, most in ((3, None, 15), (20, None, 20), (3, 7, 6)):
        shapes.clear()
        evaluate(run, crops=crops, batch_size=size)
        assert max(shapes) == (most,)


@pytest.mark.parametrize("engine", ["threads", "dali"])
def test_files_to_evaluate_are_checked_by_the_engine_that_reads_them(
    run: Path, images: Path, monkeypatch: Patch, engine: str
) -> None:
    asked: list[bool] = []

    def look(*arguments: Any, dali: bool, **named: Any) -> Any:
        asked.append(dali)
        return scan_here(*arguments, **named)

    monkeypatch.setattr(evaluation, "scan", look)
    with evaluation.open_images(evaluation.Job(run=run, images=images), Run(run), engine) as (pack, _, _):
        assert len(pack) == 6
    assert asked == [engine == "dali"]


def test_without_test_images_the_page_is_of_the_validation_images(
    run: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """As it promises where it names the command."""
    of = Pack.ids
    monkeypatch.setattr(Pack, "ids", lambda pack, split: of(pack, split)[: 0 if split == "test" else None])
    packed = Run(run).read("pack.json")
    Run(run).write("pack.json", packed | {"splits": packed["splits"] | {"test": 0}})
    with pytest.raises(UserError, match="no images in its split test"):
        evaluate(run)
    result = evaluate(run, "eval-val.json", crops=3, split="val", checkpoint="last")
    shown = Run(run).read("mistakes.json")
    assert result["ensemble_accuracy"] < 1 and shown["images"]
    page = (run / "report.html").read_text()
    assert "of validation images correctly" in page
    assert "has not been measured yet" not in page and "No test images" not in page
    assert "Validation chose the weights" in page and "predictions-val.csv has every image" in page
    assert all(f'id="{name}"' in page for name in ("mistakes", "confusion", "classes", "calibration"))
    assert page.count(shown["images"][0]["thumbnail"]) >= 1
    assert "Evaluated beside it" not in page and "not drawn yet" not in page


def test_a_kill_between_leaves_no_number_beside_the_files_of_another(run: Path, monkeypatch: Patch) -> None:
    evaluate(run, crops=2)
    before = (run / "eval.json").read_bytes()
    for name in ("write_images", "figures.confusion"):
        with monkeypatch.context() as patch:
            where = figures if "." in name else evaluation
            patch.setattr(where, name.rpartition(".")[2], Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                evaluate(run, crops=3)
        assert (run / "eval.json").read_bytes() == before


def test_what_pillow_will_not_open_is_a_mistake_without_a_picture(
    colour_pack: Pack, monkeypatch: Patch, recwarn: pytest.WarningsRecorder
) -> None:
    judged = metrics.judge(np.array([[[0.2, 0.8, 0.0]]], np.float32), np.array([0]))
    ids = colour_pack.ids("test")[:1]
    rows = evaluation.describe_images(colour_pack, ids, judged)
    result = {"classes": [{}] * 3, "confusion": [[0, 1, 0], [0] * 3, [0] * 3]}

    def shown() -> str:
        found = evaluation.show_mistakes(colour_pack, ids, judged, rows, result)
        return str(found["images"][0]["thumbnail"])

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert shown() and not recwarn.list, "1,920 pixels are more, and less than twice as many"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    assert shown() == "", "Pillow calls it an attack"


def test_other_splits_stand_beside_the_test_and_never_replace_it(run: Path) -> None:
    evaluate(run, crops=2)
    test = (run / "eval.json").read_bytes()
    assert evaluate(run, "eval-val.json", crops=2, split="val")["n"] == 6
    assert (run / "eval.json").read_bytes() == test
    page = (run / "report.html").read_text()
    assert "of test images correctly" in page
    assert "Evaluated beside it" in page


def test_an_edited_recipe_is_one_line(run: Path) -> None:
    recipe = Run(run).read("recipe.json")
    recipe["augment"]["size"] = "large"
    Run(run).write("recipe.json", recipe)
    with pytest.raises(ValueFormatError, match=r"recipe.json, augment: size: .* not 'large'"):
        evaluate(run)
    del recipe["augment"]
    Run(run).write("recipe.json", recipe)
    with pytest.raises(RunError, match=r"recipe.json: no augment; train again into another folder"):
        evaluate(run)


def test_worst_classes_come_first_on_request(run: Path, capsys: Capture) -> None:
    evaluate(run, crops=2, worst_first=True, checkpoint="last")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Accuracy of")]
    accuracies = [float(line.split("): ")[1][:5]) for line in lines]
    assert accuracies == sorted(accuracies)


def test_a_labelled_folder_is_evaluated(run: Path, images: Path) -> None:
    result = evaluate(run, "eval-images.json", images=images, crops=2)
    assert not (run / "eval.json").exists(), "the run's own test is another result"
    assert (run / "confusion-images.png").exists()
    assert (result["n"], result["split"]) == (6, "images")
    assert [row["n"] for row in result["classes"]] == [2, 2, 2]


def test_find_images_reads_labels_from_class_folders(images: Path) -> None:
    sources = evaluation.find_images(images, NAMES)
    assert sources[0] == Sample(images / "blue <b>" / "0.jpg", "blue <b>/0.jpg", 0)
    assert [source.label for source in sources] == [0, 0, 1, 1, 2, 2]


def test_images_without_labels_are_for_predict(images: Path, run: Path) -> None:
    todo = "; to predict images without labels: greyhound predict$"
    with pytest.raises(UserError, match=f"no subfolder of {images} is named as a class of this run{todo}"):
        evaluation.find_images(images, ("cats", "dogs"))
    for named, found in (("red", "no subfolder of"), ("red/0.jpg", "is a file; expected a folder")):
        with pytest.raises(
            UserError, match=rf"{found}.*to predict images without labels: greyhound predict$"
        ):
            evaluate(run, images=images / named)


def test_find_images_knows_folders_by_their_short_names(images: Path) -> None:
    """As `pack` called the classes of such folders."""
    for number, name in enumerate(NAMES):
        (images / name).rename(images / f"n0208562{number}-{name}")
    sources = evaluation.find_images(images, NAMES)
    assert {source.path.split("/")[0]: NAMES[source.label] for source in sources} == {
        f"n0208562{number}-{name}": name for number, name in enumerate(NAMES)
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "purple/1.jpg",
            "subfolder 'purple', which is no class of this run; expected only blue <b>, green, red$",
        ),
        ("loose.jpg", r"'loose\.jpg' for one; move them into a class"),
    ],
)
def test_a_folder_that_is_labelled_in_part_is_refused(images: Path, more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluation.find_images(folder(images, {more: b""}), NAMES)


def test_what_does_not_fit_the_run_is_refused(run: Path, coded_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothere is not there; expected a folder with one subfolder a class"
    ):
        evaluate(run, images=tmp_path / "nothere")
    with pytest.raises(PackError, match="other classes"):
        evaluate(run, pack=coded_pack.path)
    content = checkpoint.load(run / "last.ckpt")
    content["network"]["classifier.bias"].fill_(float("nan"))
    checkpoint.save(run / "last.ckpt", content)
    with pytest.raises(UserError, match=r"checkpoint last: .*not finite"):
        evaluate(run, checkpoint="last", crops=1)
    (run / "swa.ckpt").write_bytes((run / "swa.ckpt").read_bytes()[:5000])
    with pytest.raises(checkpoint.CheckpointError, match="truncated"):
        explain.explain(explain.Job(run=run, checkpoint="swa"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "nowhere is no folder; expected a run folder"),
        ("--crops 0", "crops is 0; expected at least 1"),
        ("--threads -2", "threads is -2; expected at least 1"),
        ("--seed -1", "seed is -1; expected 0 to"),
        ("--images x --split val", "expected neither --pack nor --split"),
        ("--checkpoint newest", "--checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, says: str, tmp_path: Path, here: Here) -> None:
    assert says in here("eval.py", "--run", "nowhere", *arguments.split()).error
    assert list(tmp_path.iterdir()) == []


# --- what the network sees --------------------------------------------------------------------------------------------


def wide(seed: int) -> bytes:
    """Four to one: red, green and blue side by side."""
    pixels = noise(96, 24, seed) // 3
    for channel in range(3):
        pixels[:, 32 * channel : 32 * channel + 32, channel] += np.uint8(150)
    return encode(pixels)


@pytest.mark.parametrize("program", ["predict", "explain", "review"])
@pytest.mark.parametrize(
    ("fit", "left", "bars"), [("crop", 1, False), ("pad", 0, True), ("squash", 0, False)]
)
def test_every_program_sees_the_picture_as_the_recipe_fits_it(
    run: Path, tmp_path: Path, monkeypatch: Patch, program: str, fit: str, left: int, bars: bool
) -> None:
    recipe = Run(run).read("recipe.json")
    Run(run).write("recipe.json", recipe | {"augment": recipe["augment"] | {"fit": fit}})
    files = {name: [wide(100 * k + n) for n in range(8)] for k, name in enumerate(NAMES)}
    pack, following = packed(tmp_path / "wide", files, Options(val=0.25, test=0.5)).path, Loader.__next__
    seen: list[Any] = []

    def look(loader: Loader) -> Batch:
        batch = following(loader)
        seen.extend(Augment().to_pixels(batch.images.numpy()))
        return batch

    monkeypatch.setattr(Loader, "__next__", look)
    if program == "predict":
        (one,) = folder(tmp_path / "one", {"1.png": wide(0)}).iterdir()
        predict.main(predict.Job(run=run, paths=(str(one),), resources=ONE_THREAD))
    elif program == "explain":
        explain.explain(explain.Job(run=run, pack=pack, count=3, resources=ONE_THREAD))
    else:
        review.review(review.Job(run=run, pack=pack, out=tmp_path / "labels.json", resources=ONE_THREAD))
    assert len(seen) >= {"predict": 1, "explain": 3, "review": 18}[program]
    assert {picture[16, 1].argmax() for picture in seen} == {left}, "red where the ends are in it"
    assert {bool(picture[1, 16].max() < 40) for picture in seen} == {bars}
