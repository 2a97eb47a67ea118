from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
import torch
from browser import CHROMIUM, WHY, browser
from PIL import Image
from runs import Patch

from greyhound.model import checkpoint
from greyhound.model.lr_range import depends_on
from greyhound.model.report import charts, figures, report, stages, text
from greyhound.model.report.charts import draw_chart
from greyhound.model.run import RunError

NASTY = "<img src=x onerror=alert(1)>"
QUOTED = "\"'><script>alert(2)</script>&amp;{{ 7 * 7 }}"
NOTE = "The network starts from ImageNet weights."
SECTIONS = {"result": "Result", "mistakes": "What it gets wrong", "confusion": "What it confuses"}
SECTIONS |= {"classes": "Class by class", "saliency": "Where it looks", "calibration": "How sure it is"}
SECTIONS |= {"training": "Training", "settings": "Settings", "versions": "Versions", "data": "Data"}
SECTIONS |= {"augmented": "What it saw"}
JSON = [f"{name}.json" for name in ("recipe", "versions", "pack", "corrupt", "swa", "eval", "mistakes")]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser makes of a run's report: its elements, in order, and the text of each section."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(report.build(run).read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "section":
            self.section = self.elements[-1][1]["aria-labelledby"].removesuffix("-title")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data + " "

    def all(self, name: str, tag: str = "") -> list[str]:
        """Every value of an attribute, of one element's or of all."""
        return [found[name] for kind, found in self.elements if name in found and tag in ("", kind)]

    def sections(self) -> list[str]:
        """The names of its sections, in order."""
        return [label.removesuffix("-title") for label in self.all("aria-labelledby", "section")]

    def text(self, section: str) -> str:
        """A section's text with single spaces, narrow ones included."""
        return " ".join(self.texts[section].split())


def thumbnail() -> str:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(stream, "JPEG")
    return base64.b64encode(stream.getvalue()).decode()


def class_row(name: str, n: int, accuracy: float | None) -> dict[str, Any]:
    interval = None if accuracy is None else [accuracy * 0.9, min(1, accuracy * 1.1)]
    single = {"name": name, "n": n, "accuracy": accuracy, "interval": interval}
    together = {"ensemble_accuracy": accuracy, "ensemble_interval": interval}
    return single | together | {"ensemble_precision": accuracy and 0.875, "ensemble_f1": accuracy and 0.777}


RECIPE: dict[str, Any] = {
    "name": "fast",
    "network": "tf_efficientnet_lite2",
    "batch_size": 32,
    "bf16": True,
    "augment": {"size": 256, "scale": [0.8, 1.2], "inner": {"depth": 3}},
    "phases": [{"epochs": 50, "high": 0.1, "low": 1e-10}, {"epochs": 2, "cycles": 2.5}],
    "unheard_of": None,
    "note": NOTE,
}


def pack(classes: list[str], path: str) -> dict[str, Any]:
    excluded = [
        {"path": path, "reason": "grayscale", "detail": "no channel differs", "thumbnail": thumbnail()},
        {"path": "b/cut.jpg", "reason": "truncated", "detail": "ends early", "thumbnail": None},
    ]
    return {
        "path": "/somewhere/dogs of mine.arrow",
        "digest": "9f8a1c0b",
        "images": 3629,
        "bytes": 123_456_789,
        "classes": classes,
        "splits": {"train": 2540, "val": 363, "test": 726},
        "split_by": f"as the folder {path} says",
        "notes": [f"test has no image of {path}"],
        "excluded": {"total": 2, "reasons": {"grayscale": 1, "truncated": 1}, "images": excluded},
        "transcoded": [{"path": path, "reason": "AVIF"}],
        "relabelled": [{"path": path, "from": classes[0], "to": classes[-1]}],
        "lost": [path, "b/gone.png"],
    }


def corrupt(path: str) -> dict[str, Any]:
    replaced = [
        {"row": 7 + row, "path": name, "replacement": 8} for row, name in ((0, "b/rotten.jpg"), (2, path))
    ]
    return {"replaced": replaced, "left_out": [{"row": 12, "path": "b/eaten.jpg", "replacement": None}]}


def epochs(count: int) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "learning_rate": 0.05, "accuracy": 1 - 0.11 / (epoch + 1), "n": 363}
        | {"train_loss": 1.4 / (epoch + 1), "valid_loss": 0.47 / (epoch + 1)}
        for epoch in range(count)
    ]


FIT = {"ece": 0.061, "nll": 0.3, "bins": [[0, 0.0, 0.0]] * 14 + [[720, 700.0, 649]]}
WORTH = {"checked": 6, "random_head": 0.4, "random_weights": 0.1}
PROBED = {"valid_loss": 0.2, "accuracy": 0.9, "n": 363, "images": 2540, "grid": 1, "penalty": 3.0}
TIMES = [
    {"epoch": n, "elapsed": 95.0 * (n + 1), "seconds": 91.93, "images_per_second": 43.0, "waiting": 0.012}
    for n in range(4)
]


def evaluation(classes: list[str]) -> dict[str, Any]:
    rows = [class_row(name, 10, 0.7 + 0.1 * index) for index, name in enumerate(classes[:-1])]
    counts = np.eye(len(classes), dtype=int) * 8 + np.eye(len(classes), k=1, dtype=int) * 2
    how = {
        "crops": 10,
        "seed": 0,
        "weights": "w",
        "split": "test",
        "checkpoint": "swa",
        "cross_entropy": 0.2134,
    }
    how |= {"calibration": {"temperature": 1.25, "images": 363, "why": "", "before": FIT, "after": FIT}}
    known = {"classes": [*rows, class_row(classes[-1], 0, None)], "confusion": counts.tolist()}
    return class_row("", 720, 0.901) | how | known


def mistakes(classes: list[str], path: str) -> dict[str, Any]:
    """Of the evaluation above."""
    rows = [
        {"path": path, "true": classes[0], "predicted": classes[1], "probability": 0.987, "loss": 4.125 - row}
        | {"thumbnail": thumbnail()}
        for row in range(2)
    ]
    right = rows[0] | {"path": "b/right.jpg", "true": classes[1]}
    pair = {"true": classes[0], "predicted": classes[1], "images": [*rows, right]}
    return {"weights": "w", "crops": 10, "seed": 0, "images": rows, "pairs": [pair]}


def swa() -> dict[str, Any]:
    before = {"valid_loss": 0.1312, "accuracy": 0.953, "n": 363}
    return {
        "steps": 5,
        "rate": 0.001,
        "seconds": 120.0,
        "before": before,
        "after": before | {"accuracy": 0.961},
    }


def write(run: Path, name: str, content: Any) -> None:
    lines = content if name.endswith(".jsonl") else [content]
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def edit(run: Path, name: str, **change: Any) -> None:
    write(run, name, json.loads((run / name).read_text()) | change)


def full_run(
    run: Path, classes: tuple[str, ...] = ("Afghan", "borzoi", "clumber", "dingo"), path: str = "b/grey.jpg"
) -> Path:
    """A run folder with everything in it."""
    run.mkdir()
    files = {
        "recipe.json": RECIPE,
        "versions.json": {"python": "3.11.9", "torch": "2.14.1", "machine": "AMD EPYC, 2 cores"},
        "pack.json": pack(list(classes), path),
        "corrupt.json": corrupt(path),
        "metrics.jsonl": epochs(4),
        "times.jsonl": TIMES,
        "probe.json": PROBED,
        "swa.json": swa(),
        "eval.json": evaluation(list(classes)),
        "mistakes.json": mistakes(list(classes), path),
        "saliency.json": {"methods": {"gradient": WORTH, "SmoothGrad": WORTH}, "images": []},
    }
    for name, content in files.items():
        write(run, name, content)
    recipe = report.read(run, "recipe.json")  # with the fields that came later
    write(run, "find-lr.json", {"of": depends_on(recipe, pack(list(classes), path)["digest"])})
    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    for name in report.PICTURES:
        Image.fromarray(noise).save(run / name)
    return run


CURVES: dict[str, bytes] = {}
DRAW = figures.curve, figures.reliability


@pytest.fixture(autouse=True)
def curves_are_drawn_once(monkeypatch: Patch) -> None:
    """Most runs here have the same numbers, and a curve takes a fifth of a second."""

    def once(draw: Callable[..., bytes], *values: Any) -> bytes:
        if repr(values) not in CURVES:
            CURVES[repr(values)] = draw(*values)
        return CURVES[repr(values)]

    for draw in DRAW:
        monkeypatch.setattr(charts, draw.__name__, partial(once, draw))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return full_run(tmp_path / "dogs")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a full run."""
    return Page(full_run(tmp_path_factory.mktemp("whole") / "dogs"))


def test_the_page_of_a_full_run_has_every_section_and_misses_nothing(page: Page) -> None:
    assert page.sections() == list(SECTIONS)
    assert all(page.text(name).startswith(title) for name, title in SECTIONS.items())
    assert "missing" not in page.all("class")
    pictures = [source for source in page.all("src") if source.startswith("data:image/png;base64,")]
    assert len(pictures) == 3 + 3 + 2, "three of the run, three curves, two diagrams"
    boards = [source for source in page.all("src") if source.startswith("data:image/jpeg;base64,")]
    assert len(boards) == len(report.BOARDS) + 1 + 2 + 3, "an excluded image, two mistakes, three of a pair"


@pytest.mark.parametrize(
    ("section", "texts"),
    [
        (
            "result",
            "90.1 % | 81.1 % to 99.1 % | n = 720 | over 10 | taken for another class, crops together 6",
        ),
        ("result", f"{NOTE} Of the 4 class names 4 are ImageNet's, so it probably has. | all of it 6 min"),
        ("result", "validation, which chose the weights; n = 363 97.2 %"),
        (
            "mistakes",
            "The 2 of 6 mistakes of 10 crops together with the highest loss | before any temperature | Afghan taken for borzoi , 98.7 % loss 4.12 | predictions.csv | loss 3.12",
        ),
        (
            "calibration",
            "6.1 % | NLL 0.3000 | at temperature 1.25 | fitted to 363 | Predictions of 10 crops an image use it; for other numbers of crops there is another.",
        ),
        ("settings", "bf16 yes | scale 0.8, 1.2 | Inner depth 3 | 0.1 1e-10 none | unheard of none"),
        ("data", "3,629 | 123.5 MB | 2,540 | in the split val | grayscale 1 | no channel differs | AVIF"),
        ("data", "Relabelled by hand 1 image | Decided about, and not found 2 decisions | b/gone.png"),
        ("data", "Corrupt in the pack 3 images | 1 in validation, left out | b/rotten.jpg | b/eaten.jpg"),
        ("data", "The split as the folder | test has no image of"),
        ("data", "2 in training, replaced by others, of the same class where it has one;"),
        (
            "training",
            "compare neither | 0.350 | best 0.350 in epoch 3 | 97.2 % | 91.9 s | 0.0500 | 43.0 | 1.2 %",
        ),
        ("training", "5 steps | 0.001 | 95.3 % | 96.1 % | 363 | the last epoch, 3 kept 97.2 % 0.1175 6:20"),
        ("classes", "Afghan 10 70.0 63.0 to 77.0 87.5 77.7 | dingo 0 –"),
        ("confusion", "Afghan taken for borzoi 2 of 10 | 98.7 % | right: borzoi"),
        ("saliency", "what 2 methods say; bright counts most. Gradient: of the loss | SmoothGrad: the mean"),
        ("versions", "torch 2.14.1 | AMD EPYC, 2 cores"),
    ],
)
def test_the_numbers_are_in_their_sections(page: Page, section: str, texts: str) -> None:
    found = page.text(section).casefold()
    assert not [text for text in texts.casefold().split(" | ") if text not in found]


def weigh(run: Path, name: str, weight: float) -> str:
    """Write a checkpoint of one weight; its id."""
    checkpoint.save(run / name, {"network": {"w": torch.full((4,), weight)}})
    return checkpoint.weights_id(run / name)


def test_what_other_weights_gave_is_called_outdated_wherever_it_stands(run: Path) -> None:
    """swa.ckpt is what evaluation takes; then it is another one, and then there is none."""
    edit(run, "swa.json", after={"valid_loss": 0.1, "accuracy": 0.999, "n": 363})
    weights = weigh(run, "swa.ckpt", 1.0)
    assert weigh(run, "best.ckpt", 2.0) != weights
    measured = {"checkpoint": "swa", "after": "averaging", "weights": weights}
    edit(run, "eval.json", **measured)
    write(run, "saliency.json", measured | {"images": []})
    write(run, "eval-val.json", json.loads((run / "eval.json").read_text()) | {"split": "val"})
    fresh = Page(run)
    assert "Outdated" not in "".join(fresh.texts.values()) + fresh.texts["result"]
    assert "trained for 4 of 52 epochs on 2,540 images of 4 classes, names 90.1 % of test" in fresh.text("")
    assert "crops together, with its weights after averaging." in fresh.text("")
    weigh(run, "swa.ckpt", 3.0)
    old = Page(run)
    command = f"Measure again: greyhound eval --run {run.name}"
    of_eval = ("result", "mistakes", "classes", "confusion", "calibration")
    assert all(command in old.text(section) for section in of_eval)
    assert f"Measure again: greyhound explain --run {run.name}" in old.text("saliency")
    assert "swa, outdated" in old.text("result")
    assert "of 4 classes. What it reaches now has not been measured: the numbers below are of" in old.text("")
    assert "90.1" not in old.text("")
    (run / "swa.ckpt").unlink()
    (run / "swa.json").unlink()
    assert "Outdated" in Page(run).text("result")


def test_maps_of_unknown_methods_are_to_be_drawn_anew(page: Page, run: Path) -> None:
    assert "Grad-CAM" not in page.text("saliency"), "this network has none"
    (run / "saliency.json").unlink()
    said = Page(run).text("saliency")
    assert f"By which methods is not known here; draw it anew: greyhound explain --run {run.name}" in said
    assert "methods say" not in said


@pytest.mark.parametrize("asked", ["best", "last"])
def test_what_was_measured_by_name_is_outdated_when_that_checkpoint_is_another(run: Path, asked: str) -> None:
    edit(run, "swa.json", after={"valid_loss": 0.1, "accuracy": 0.999, "n": 363})
    weigh(run, "swa.ckpt", 1.0)
    weights = weigh(run, f"{asked}.ckpt", 2.0)
    edit(run, "eval.json", asked=asked, checkpoint=asked, after="epoch 3", weights=weights)
    assert "Outdated" not in Page(run).text("result")
    edit(run, "eval.json", asked="auto")
    assert "Outdated" in Page(run).text("result"), "now evaluation would take the average"
    edit(run, "eval.json", asked=asked)
    weigh(run, f"{asked}.ckpt", 3.0)
    assert "Outdated" in Page(run).text("result")


def test_the_total_says_of_how_many_classes_and_stands_beside_the_balanced_accuracy(run: Path) -> None:
    fit = {"temperature": 1.25, "images": 363, "why": "", "before": {"ece": 0.061, "nll": 0.3}}
    more = {"balanced_accuracy": 0.512, "ensemble_balanced_accuracy": 0.523, "classes_tested": 3}
    fits = fit | {"after": {"ece": 0.012, "nll": 0.2}}
    edit(run, "eval.json", **more, ensemble_macro_f1=0.475, calibration=fits)
    found = Page(run).text("result")
    for part in (
        "n = 720 of 3 of 4 classes",
        "52.3 %",
        "47.5 %",
        "(ECE), crops together, after the temperature 1.2 %",
    ):
        assert part in found, part
    none = fit | {"why": "3 validation images are too few", "after": fit["before"]}
    edit(run, "eval.json", calibration=none | {"before": FIT})
    page = Page(run)
    assert "(ECE), crops together 6.1 %" in page.text("result")
    assert "Temperature 1: 3 validation images are too few." in page.text("calibration")
    assert page.text("calibration").count("NLL") == 1


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (
            {"grid": 3, "from_pretrained": True},
            "grid of 3 x 3 cells, from the pretrained classifier; cross-validation on them chose this, and the penalty 0.3",
        ),
        (
            {"grid": 0, "from_pretrained": False},
            "images, the last layer's, from zero; cross-validation on them",
        ),
    ],
)
def test_a_run_without_epochs_shows_what_its_probe_chose_and_no_empty_sections(
    run: Path, chosen: dict[str, Any], says: str
) -> None:
    edit(run, "recipe.json", phases=[])
    edit(run, "recipe.json", averaging={"steps": 0})
    for name in ("metrics.jsonl", "times.jsonl", "swa.json", "lr.png"):
        (run / name).unlink()
    write(
        run,
        "probe.json",
        chosen | {"valid_loss": 0.2, "accuracy": 0.9, "n": 363, "images": 2540, "penalty": 0.3},
    )
    page = Page(run)
    assert page.sections() == list(SECTIONS)
    assert {value.removeprefix("#") for value in page.all("href", "a")} <= set(page.all("id"))
    assert "a linear probe, no epochs" in page.text("training")
    assert "2,540 training images" in page.text("training") and says in page.text("training")
    assert "missing" not in page.all("class")
    assert sum(text.count("trains no epochs") for text in page.texts.values()) == 1


def test_names_of_classes_and_files_stay_text(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", (NASTY, QUOTED, "\udcff", "w" * 300), path=f"{NASTY}/{QUOTED}")
    write(run, "versions.json", {NASTY: QUOTED})
    write(run, "recipe.json", RECIPE | {NASTY: QUOTED, "network": NASTY, "note": QUOTED, "name": QUOTED})
    page = Page(run)
    active = {"iframe", "object", "embed", "form", "base", "svg"}
    assert {tag for tag, _ in page.elements} & active == set()
    assert [tag for tag, _ in page.elements].count("script") == 1, "ours"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for section in ("classes", "data", "mistakes", "confusion", "settings", "versions"):
        assert NASTY in page.texts[section] and QUOTED in page.texts[section]
    assert f"{NASTY}/{QUOTED}" in page.all("title", "b")


def test_a_run_folder_of_any_name_stays_text(tmp_path: Path) -> None:
    run = full_run(tmp_path / "<i>'$(touch x)")
    (run / "eval.json").unlink()
    page = Page(run)
    assert "<i>'$(touch x)" in page.texts[""]
    quoted = "'" + run.name.replace("'", "'\"'\"'") + "'"
    assert f"greyhound eval --run {quoted}" in page.texts["result"]
    assert not page.all("class", "i")


def test_the_page_needs_nothing_but_itself(page: Page, run: Path) -> None:
    references = [*page.all("src"), *page.all("href", "link")]
    assert references and all(value.startswith("data:") for value in references)
    assert {value.removeprefix("#") for value in page.all("href", "a")} <= set(page.all("id"))
    source = re.sub(r"data:image/[a-z]+;base64,[\w+/=]+", "", report.build(run).read_text("utf-8"))
    script = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256("".join(script).encode()).digest()).decode()
    assert page.all("content")[0].startswith("default-src 'none'; img-src data:; style-src")
    assert page.all("content")[0].endswith(f"script-src 'sha256-{allowed}'")
    assert len(script) == 1 and source.count("<script") == 1
    assert not re.search(r"https?:|//|url\(|@import|file:|srcset", source.replace(script[0], ""))
    assert not re.search(r"https?:|fetch|XMLHttp|import|eval|innerHTML", script[0])
    assert str(run.parent) not in source and "/somewhere" not in source


def test_the_page_can_be_read_without_eyes(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert page.elements[0] == ("html", {"lang": "en"})
    assert {"main", "nav", "header", "footer"} <= set(tags) and tags.count("h1") == 1
    assert all("alt" in attributes for tag, attributes in page.elements if tag == "img")
    assert all(attributes.get("scope") for tag, attributes in page.elements if tag == "th")
    assert len(page.all("id")) == len(set(page.all("id")))
    assert set(page.all("aria-labelledby")) <= set(page.all("id"))


def test_a_new_run_says_which_command_makes_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "recipe.json", {"name": "paper"})
    page = Page(tmp_path)
    training = f"greyhound train paper --pack PACK --out {tmp_path.name} --resume"
    assert f"Not evaluated yet: greyhound eval --run {tmp_path.name}" in page.text("result")
    assert f"greyhound explain --run {tmp_path.name}" in page.text("saliency")
    assert page.sections() == [
        name for name in SECTIONS if name not in ("mistakes", "confusion", "classes", "calibration")
    ]
    assert page.text("training").count(training) == 3, "epochs, average, rate"
    assert all(training in page.text(name) for name in ("versions", "data", "augmented"))
    assert page.all("class").count("missing") == 8


def test_a_run_that_was_evaluated_before_pictures_were_kept_names_the_command(run: Path) -> None:
    (run / "mistakes.json").unlink()
    old = {"ece": 0.06, "nll": 0.3}
    fit = {"temperature": 1.25, "images": 363, "why": "", "before": old, "after": old}
    edit(run, "eval.json", calibration=fit)
    page = Page(run)
    command = f"greyhound eval --run {run.name}"
    assert f"The pictures of its mistakes are not there: {command}" in page.text("mistakes")
    assert f"Not drawn yet: {command}" in page.text("calibration")
    assert "Afghan taken for borzoi 2 of 10" in page.text("confusion")
    assert page.all("class").count("missing") == 2


@pytest.mark.parametrize("key", ["weights", "crops", "seed"])
def test_pictures_of_another_evaluation_are_not_shown(run: Path, key: str) -> None:
    edit(run, "mistakes.json", **{key: "x" if key == "weights" else 7})
    assert "The pictures of its mistakes are not there" in Page(run).text("mistakes")


@pytest.mark.parametrize(
    ("name", "section", "says"),
    [
        ("swa.json", "training", "greyhound train fast --pack 'dogs of mine.arrow' --out dogs --resume"),
        ("corrupt.json", "data", "^((?!orrupt).)*$"),
        ("times.jsonl", "training", "^((?!Where the time went 6).)*$"),
        ("eval.json", "result", f"flatters them 97.2 % 95 % interval .* n = 363 Mind {NOTE}"),
        *((name, "result", "") for name in ("versions.json", "pack.json", "metrics.jsonl", *report.PICTURES)),
    ],
)
def test_any_one_file_may_be_missing(run: Path, name: str, section: str, says: str) -> None:
    (run / name).unlink()
    page = Page(run)
    assert re.search(says, page.text(section))
    assert ("missing" in page.all("class")) == (name not in ("corrupt.json", "times.jsonl", "find-lr.png"))


def test_one_crop_is_told_once_and_without_a_note_nothing_is_said(run: Path) -> None:
    edit(run, "eval.json", crops=1, split="images")
    edit(run, "recipe.json", note="")
    page = Page(run)
    assert "together" not in page.text("result") and "together" not in page.text("classes")
    assert "given images" in page.text("")
    assert not [value for value in page.all("class") if value.startswith("caution")]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_break_nothing(run: Path, value: float | None) -> None:
    rows = epochs(5)
    rows[1] |= dict.fromkeys([*rows[0], *TIMES[0]], value) | {"epoch": 1, "n": None}
    write(run, "metrics.jsonl", rows)
    write(run, "swa.json", {"steps": None, "before": {"accuracy": value}, "after": None})
    result = evaluation(["a", "b"]) | {"accuracy": value, "interval": [value, value], "cross_entropy": value}
    result["classes"][0] |= {"accuracy": value, "interval": None, "ensemble_interval": [value, value]}
    write(run, "eval.json", result)
    page = Page(run)
    found = " ".join([*page.texts.values(), *page.all("style"), *page.all("alt")])
    assert not re.search(r"\b(nan|inf|None)\b", found)
    assert len([alt for alt in page.all("alt") if " by epoch: now " in alt]) == 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"epoch": 0}, {"epoch": 1, "accuracy": math.nan}], ["no values"] * 3),
        (
            epochs(1),
            ["One epoch: it ended at a training loss of 1.400", "loss was 0.470, the accuracy 89.0 %"],
        ),
    ],
)
def test_less_than_two_values_make_no_curve(run: Path, rows: list[dict[str, Any]], says: list[str]) -> None:
    write(run, "metrics.jsonl", rows)
    page = Page(run)
    assert all(page.text("training").count(text) >= says.count(text) for text in says)
    assert not [alt for alt in page.all("alt") if "by epoch" in alt]


@pytest.mark.parametrize("name", [*JSON, "metrics.jsonl", "times.jsonl"])
@pytest.mark.parametrize("damage", [b'{"n": ', b"\xff\xfe", b"[" * 100_000, b"null", b"7"])
def test_a_corrupt_file_is_named_in_one_line(run: Path, name: str, damage: bytes) -> None:
    (run / name).write_bytes(damage)
    with pytest.raises(RunError) as caught:
        report.build(run)
    message = str(caught.value)
    assert message.startswith(str(run / name)) and "expected" in message and "greyhound " in message
    assert "\n" not in message and len(message) < 600
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("eval.json", {"classes": [{"name": 7}]}, "eval.classes[0].name is 7; expected text"),
        ("eval.json", {"accuracy": "high"}, "eval.accuracy is high; expected a number"),
        ("eval.json", {"confusion": [[1, 2], None]}, "eval.confusion[1] is null; expected a list"),
        ("eval.json", {"n": True}, "eval.n is true; expected a whole number"),
        ("pack.json", {"splits": {"train": "many"}}, "pack.splits.train is many; expected a whole number"),
        ("pack.json", {"classes": "a b"}, 'pack.classes is "a b"; expected a list'),
        ("corrupt.json", {"left_out": [{"row": "7"}]}, 'corrupt.left_out[0].row is "7"; expected a whole'),
        ("recipe.json", {"note": ["x"]}, 'recipe.note is ["x"]; expected text'),
    ],
)
def test_a_value_of_another_kind_is_named(run: Path, name: str, change: dict[str, Any], message: str) -> None:
    edit(run, name, **change)
    with pytest.raises(RunError, match=rf"{re.escape(f'{run / name}: {message}')}.*; "):
        report.build(run)


def test_a_corrupt_file_is_made_again_where_that_is_possible() -> None:
    other = "train into another folder: greyhound train fast --pack PACK --out OTHER"
    assert report.remedy(Path("r/recipe.json")) == other
    assert report.remedy(Path("r/metrics.jsonl")) == f"put back what train wrote, or {other}"
    assert report.remedy(Path("r/eval.json")) == "delete it, then: greyhound eval --run r"
    assert report.remedy(Path("r/lr.png")) == "delete it: the report does without"


def test_what_is_no_run_and_no_picture_is_refused(run: Path, tmp_path: Path) -> None:
    there = list(tmp_path.iterdir())
    with pytest.raises(RunError, match="is no folder; expected a run folder"):
        report.build(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == there
    (run / "saliency.png").write_bytes(b"GIF89a")
    with pytest.raises(RunError, match=r"saliency\.png is no picture; .* then: greyhound explain"):
        report.build(run)


def test_a_report_that_fails_leaves_the_old_one(run: Path, monkeypatch: Patch) -> None:
    before = report.build(run).read_bytes()
    there = sorted(run.iterdir())

    def fail(self: Path, data: bytes) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(RunError, match="disk full"):
        report.build(run)
    monkeypatch.undo()
    assert (run / "report.html").read_bytes() == before
    assert sorted(run.iterdir()) == there


@pytest.mark.parametrize(
    ("probe", "metrics", "swa", "parts", "total"),
    [
        ({}, [], {}, [], 0),
        ({"elapsed": 9.0}, [], {}, [9], 9),
        ({"elapsed": 9.0, "seconds": {"features": 4.0, "fit": 2.0, "validation": 1.0}}, [], {}, [2, 4, 2, 1], 9),
        ({}, [{"seconds": 10.0, "waiting": 0.2, "elapsed": 15.0}], {}, [8, 2, 5], 15),
        (
            {"elapsed": 9.0},
            [{"seconds": 10.0, "elapsed": 20.0}, {"epoch": 1}, {"seconds": 12.0, "waiting": 0.5, "elapsed": 35.0}],
            {"after": {"elapsed": 40.0}},
            [9, 16, 6, 4, 5],
            40,
        ),
    ],
)  # fmt: skip
def test_the_time_is_shared_out_and_none_is_counted_twice(
    probe: dict[str, Any],
    metrics: list[dict[str, Any]],
    swa: dict[str, Any],
    parts: list[float],
    total: float,
) -> None:
    found = stages.spent(probe, metrics, swa)
    assert [seconds for _, seconds in found] == parts
    assert sum(parts) == total
    assert len({name for name, _ in found}) == len(found)


def test_a_training_that_diverged_says_where(run: Path) -> None:
    write(
        run,
        "diverged.json",
        {"epoch": 4, "images": 64, "learning_rate": 0.1, "paths": ["a/1.jpg", "b/2.jpg"]},
    )
    said = Page(run).text("result")
    assert "Diverged Training ended in epoch 4, after 64 images of it" in said
    assert "at a learning rate of 0.1. diverged.json names the 2 images of the batch" in said


@pytest.mark.parametrize(
    ("classes", "warned", "known"),
    [
        (
            ("n", "Shih_Tzu", "silky-terrier", "x"),
            True,
            "4 class names 2 are ImageNet's, so it probably has.",
        ),
        (("n01440764", "n02102040", "x"), True, "3 class names 2 are ImageNet's"),
        (("n02085620-Chihuahua", "n99999999-pug", "x"), True, "3 class names 2 are ImageNet's"),
        (("n99999999-x", "n02085620x", "x"), False, "3 class names 0 are ImageNet's"),
        (("dress", "T-shirt", "hat", "shoes"), False, "4 class names 1 is ImageNet's."),
    ],
)
def test_the_warning_of_imagenet_stands_where_half_of_the_classes_are_its(
    run: Path, classes: tuple[str, ...], warned: bool, known: str
) -> None:
    """Elsewhere a quiet sentence stands in the settings."""
    edit(run, "pack.json", classes=list(classes))
    page = Page(run)
    assert known in page.text("result" if warned else "settings")
    assert (NOTE in page.text("result"), NOTE in page.text("settings")) == (warned, not warned)


def test_a_note_of_something_else_stands_in_the_result(run: Path) -> None:
    edit(run, "recipe.json", note="Of drawn dogs.")
    edit(run, "pack.json", classes=["a", "b"])
    page = Page(run)
    assert "Mind Of drawn dogs. taken" in page.text("result")
    assert "drawn dogs" not in page.text("settings")


def test_a_pack_without_test_images_is_to_be_evaluated_on_the_others(run: Path) -> None:
    (run / "eval.json").unlink()
    edit(run, "pack.json", splits={"train": 2540, "val": 363, "test": 0})
    assert "No test images in the pack" in (said := Page(run).text("result"))
    assert f"greyhound eval --run {run.name} --split val" in said


def test_validation_chose_nothing_where_there_is_one_result(run: Path) -> None:
    for name in ("metrics.jsonl", "swa.json"):
        (run / name).unlink()
    assert "validation; n = 363 90.0 %" in Page(run).text("result")
    (run / "eval.json").unlink()
    assert "Validation 90.0 % 95 % interval" in (said := Page(run).text("result"))
    assert "flatters" not in said


@pytest.mark.parametrize(
    ("smoothing", "augment", "labels"),
    [
        (0.0, {}, "true labels"),
        (0.1, {"mixup": 0.0}, "smoothed labels"),
        (0.0, {"mixup": 0.2}, "mixed labels"),
        (0.1, {"cutmix": 1.0}, "smoothed and mixed labels"),
    ],
)
def test_the_training_loss_is_of_the_labels_that_it_had(
    run: Path, smoothing: float, augment: dict[str, float], labels: str
) -> None:
    edit(run, "recipe.json", label_smoothing=smoothing, augment=augment)
    said = Page(run).text("training")
    assert f"The training loss is of {labels} and augmented images" in said
    assert f"Training loss {labels}, augmented images" in said


def test_an_epochs_values_stand_where_they_were_measured(monkeypatch: Patch) -> None:
    """Epoch 0 is from 0 to 1; what was validated after it stands at 1, with steps and without."""
    drawn: list[list[float]] = []

    def draw(places: list[float], *_: Any) -> bytes:
        drawn.append(places)
        return b""

    monkeypatch.setattr(charts, "curve", draw)
    step = {"epoch": 0, "images": 5, "train_loss": 1.0}
    for steps in ([], [step, step]):
        found = charts.draw_charts(epochs(2), "true labels", steps, 10)
        assert drawn == [[0.5, 1.5], [1, 2], [1, 2]]
        assert ("thin: by step" in found[0].note) == bool(steps)
        drawn.clear()
    assert "thin" not in charts.draw_charts(epochs(2), "true labels", [step, step], None)[0].note


def test_absolute_paths_of_images_are_not_on_the_page(tmp_path: Path) -> None:
    """A manifest's images may be anywhere."""
    full_run(tmp_path / "run", path="/home/anna/My Photos/grey.jpg")
    page = report.build(tmp_path / "run").read_text()
    assert "anna" not in page and "My Photos" not in page and page.count("grey.jpg") > 8


def test_phases_without_epochs_and_losses_without_numbers_break_nothing(run: Path) -> None:
    edit(run, "recipe.json", phases=[{"high": 0.1}], patience=3)
    assert report.gather(run)["planned"] == 0
    for name in ("probe.json", "swa.json"):
        (run / name).unlink()
    write(run, "metrics.jsonl", [row | {"valid_loss": math.nan, "accuracy": math.nan} for row in epochs(2)])
    assert report.gather(run)["brought"] == ""


@pytest.mark.parametrize(
    ("rows", "patience", "said"),
    [
        (3, 2, "stopped after 3 of 9 epochs: 2 in a row without a better validation accuracy"),
        (3, 3, ""),
        (3, 0, ""),
        (0, 2, ""),
        (9, 2, ""),
    ],
)
def test_a_run_that_stopped_early_says_why(rows: int, patience: int, said: str) -> None:
    metrics = [{"epoch": n, "bad_epochs": 2} for n in range(rows)]
    assert stages.say_stopped(metrics, patience, 9, "accuracy") == said


def test_the_training_loss_is_drawn_by_step_within_the_one_epoch(run: Path) -> None:
    write(run, "metrics.jsonl", epochs(1))
    rows = [{"epoch": 0, "images": 508 * n, "train_loss": 3.0 / n, "learning_rate": 0.1} for n in range(1, 6)]
    write(run, "steps.jsonl", rows)
    page = Page(run)
    assert [alt.split(" by ")[0] for alt in page.all("alt") if "by epoch" in alt] == ["Training loss"]
    assert charts.by_step([*rows, {"epoch": 1, "images": 254, "train_loss": None}], 2540) == [
        pytest.approx((508 * n / 2540, 3.0 / n)) for n in range(1, 6)
    ]


def test_the_page_of_600_test_images_is_small(tmp_path: Path) -> None:
    """Pictures of noise are the largest that there are, and 24 mistakes and ten pairs the most that are shown."""
    classes = [f"class {k}" for k in range(120)]
    run, noise = (
        full_run(tmp_path / "run", tuple(classes)),
        np.random.default_rng(0).integers(0, 256, (128, 128, 3)),
    )
    stream = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).resize((64, 64)).resize((128, 128)).save(
        stream, "JPEG", quality=75
    )
    picture = {"thumbnail": base64.b64encode(stream.getvalue()).decode()}
    row = mistakes(classes, "a/" + "x" * 40)["images"][0] | picture
    pairs = [{"true": classes[k], "predicted": classes[k + 1], "images": [row] * 4} for k in range(10)]
    edit(run, "mistakes.json", images=[row] * 24, pairs=pairs)
    board = Image.fromarray(noise.astype(np.uint8)).resize((1222, 1891))
    board.save(run / "saliency.png")
    assert report.build(run).stat().st_size < 2_000_000
    assert Page(run).all("src").count(f"data:image/jpeg;base64,{picture['thumbnail']}") == 24 + 10 * 4


def test_lists_are_cut_short_and_name_the_file_that_has_all(run: Path) -> None:
    names = [f"class {k}" for k in range(report.ROWS + 5)]
    edit(
        run, "pack.json", classes=names, transcoded=[{"path": f"{k}.png", "reason": "r"} for k in range(150)]
    )
    edit(run, "eval.json", classes=[class_row(name, 10, 0.5) for name in names], confusion=[])
    page = Page(run)
    assert "5 more: eval.json has all." in page.text("classes") and "class 999" not in page.text("classes")
    assert "50 more: pack.json has all." in page.text("data") and "120.png" not in page.text("data")


@pytest.mark.parametrize(
    ("text_", "shown"),
    [
        ("/home/anna/weights.pth", "weights.pth"),
        ("the pack of /tmp/runs/dogs cannot be found at /data/anna/p.arrow; name it", "the pack of dogs cannot be found at p.arrow; name it"),
        ("a/b/c.jpg", "a/b/c.jpg"),
        ("cannot open /home/me/My Photos/x.arrow", "cannot open x.arrow"),
        ("at /data/a.arrow, 1/2 and p.arrow of /a b/c, 1/2", "at a.arrow, 1/2 and p.arrow of c, 1/2"),
        ("../dogs.arrow, 1/2 and n/a", "../dogs.arrow, 1/2 and n/a"),
        (None, ""),
    ],
)  # fmt: skip
def test_no_folder_of_this_machine_is_on_the_page(text_: str | None, shown: str) -> None:
    assert text.bare(text_) == shown


def test_many_excluded_images_are_cut_short_and_counted(run: Path) -> None:
    images = [{"path": f"{index}.jpg", "reason": "grayscale", "thumbnail": None} for index in range(60)]
    excluded = {"total": 60, "reasons": {"grayscale": 60}, "images": images}
    write(run, "pack.json", pack(["a"], "x") | {"excluded": excluded})
    (run / "corrupt.json").unlink()
    said = Page(run).text("data")
    assert f"{report.THUMBNAILS} of 60 shown" in said
    assert said.count(".jpg") == report.THUMBNAILS


def result(accuracy: float, loss: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "valid_loss": loss, "n": 100, "elapsed": 12.0}


PROBE = "the linear probe alone, nothing fine-tuned"
Pair: TypeAlias = tuple[float, float]


@pytest.mark.parametrize(
    ("select", "epochs", "averaged", "names", "best"),
    [
        ("loss", [(0.9, 0.2)], None, "linear probe|last epoch, 0", "the last epoch, 0"),
        ("loss", [], None, "linear probe", PROBE),
        (
            "loss",
            [(0.9, 0.1), (0.95, 0.2)],
            None,
            "linear probe|best epoch, 0|last epoch",
            "the best epoch, 0",
        ),
        ("accuracy", [(0.9, 0.1), (0.95, 0.2)], None, "linear probe|last epoch, 1", "the last epoch, 1"),
        ("loss", [(0.9, 0.4)], (0.9, 0.5), "linear probe|last epoch, 0|averaged", PROBE),
        ("loss", [(0.9, 0.1)], (0.8, 0.1), "linear probe|last epoch, 0|averaged", "averaged weights"),
        ("loss", [(0.9, 0.3)], None, "linear probe|last epoch, 0", PROBE),
    ],
)
def test_the_stage_that_is_kept_is_the_one_that_evaluation_takes(
    select: Literal["accuracy", "loss"], epochs: list[Pair], averaged: Pair | None, names: str, best: str
) -> None:
    metrics = [{"epoch": epoch} | result(*row) for epoch, row in enumerate(epochs)]
    swa = {"after": result(*averaged)} if averaged else None
    found = stages.stages(result(0.9, 0.3) | {"images": 40}, metrics, swa, select)
    assert all(name in stage.name for name, stage in zip(names.split("|"), found, strict=True))
    assert [stage.name for stage in found if stage.best] == [best]


@pytest.mark.parametrize(
    ("select", "probe", "epochs", "said"),
    [
        ("loss", (0.9, 0.13), [(0.2, 2027.0)], "fine-tuning brought nothing: validation cross entropy 0.13 after the linear probe, 2027 after epoch 0; the weights after the linear probe are kept"),
        ("loss", (0.9, 0.3), [(0.9, 0.25)], "fine-tuning: validation cross entropy 0.3 after the linear probe, 0.25 after epoch 0; the weights after epoch 0 are kept"),
        ("accuracy", (0.9, 0.3), [(0.95, 0.5), (0.92, 0.4)], "fine-tuning: validation accuracy 0.9 after the linear probe, 0.95 after epoch 0, 0.92 after epoch 1; the weights after epoch 0 are kept"),
        ("accuracy", None, [(0.5, 1.0), (0.25, 2.0)], "training: validation accuracy 0.5 after epoch 0, 0.25 after epoch 1; the weights after epoch 0 are kept"),
        ("loss", (0.9, 0.3), [], ""),
    ],
)  # fmt: skip
def test_a_line_says_what_fine_tuning_brought(
    select: Literal["accuracy", "loss"], probe: Pair | None, epochs: list[Pair], said: str
) -> None:
    metrics = [{"epoch": epoch} | result(*row) for epoch, row in enumerate(epochs)]
    reached = stages.stages(probe and result(*probe), metrics, None, select)
    assert stages.say_stages(reached, select) == said


def test_classes_come_worst_first_and_those_without_images_last() -> None:
    accuracies = {"b": 0.5, "none": None, "A": 0.5, "worst": 0.0, "unknown": math.nan}
    rows = [{"name": name, "accuracy": accuracy} for name, accuracy in accuracies.items()]
    assert [row["name"] for row in report.worst_first(rows)] == ["worst", "A", "b", "none", "unknown"]


def test_confusions_are_the_commonest_mistakes_and_nothing_right() -> None:
    content = {"classes": [{"name": "a", "n": 10}, {"name": "b", "n": 12}], "confusion": [[9, 1], [3, 9]]}
    shown = {"pairs": [{"true": "a", "predicted": "b", "images": [{"path": "x"}]}]}
    rows = [tuple(row.values()) for row in report.confusions(content, shown)]
    assert rows == [("b", "a", 3, 12, []), ("a", "b", 1, 10, [{"path": "x"}])]


def test_a_chart_names_its_last_and_its_best_value() -> None:
    loss = draw_chart("loss", "", range(4), [0.4, 0.2, math.nan, 0.3])
    assert (loss.last, loss.best) == ("0.300", "best 0.200 in epoch 1")
    accuracy = draw_chart("accuracy", "", range(3), [0.9, 1.0, 0.95], percents=True)
    assert accuracy.best.replace("\u202f", " ") == "best 100.0 % in epoch 1"
    assert loss.picture and accuracy.picture and loss.picture != accuracy.picture


@pytest.mark.parametrize(
    ("by", "value", "expected"),
    [
        (text.clock, 8.4, "0:08"),
        (text.clock, 59.6, "1:00"),
        (text.clock, 725, "12:05"),
        (text.clock, 12000, "3:20:00"),
        (text.clock, None, "–"),
        (text.percent, 0.9306, "93.1\u202f%"),
        (text.percent, True, "–"),
        (text.percent, 4999 / 5000, ">99.9\u202f%"),
        (text.percent, 1.0, "100.0\u202f%"),
        (text.percent, 0.9999999999999999, "100.0\u202f%"),
        (text.share, 1.2, "1.0000"),
        (text.share, None, "0"),
        (text.number, 0.0, "0.000"),
        (text.number, 1e-10, "1.00e-10"),
        (text.number, 1234567, "1.23e+06"),
        (text.count, 12345, "12,345"),
        (text.size, 0, "0 bytes"),
        (text.size, 999, "999 bytes"),
        (text.size, 1000, "1.0 kB"),
        (text.size, 2.2e9, "2.2 GB"),
        (text.day, "2026-11-29T20:01:31+00:00", "29 November 2026, 20:01 UTC"),
        (text.day, "lately", "lately"),
        (text.duration, 91.93, "91.9 s"),
        (text.duration, 720, "12 min"),
        (text.duration, 12000, "3 h 20 min"),
        (text.duration, "soon", "–"),
        (text.scalar, 1e-10, "1e-10"),
        (text.scalar, [1, [2.5, True]], "1, 2.5, yes"),
        (text.scalar, "", "none"),
    ],
)
def test_values_are_written_for_people(by: Callable[[object], str], value: object, expected: str) -> None:
    assert by(value) == expected


SHOWN = """(() => { const all = (name) => [...document.querySelectorAll(name)];
return [innerWidth, document.documentElement.scrollWidth, all("section").length,
all("img").filter(i => i.loading != "lazy" && !i.naturalWidth).length, window.pwned || 0] })()"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=WHY)
def test_a_browser_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    classes = ("<img src=x onerror=window.pwned=1>", "w" * 200, "under_score", "a b " * 50)
    path = report.build(full_run(tmp_path / "run", classes, path="p" * 200))
    with browser(tmp_path / "profile", tmp_path / "downloads") as page:
        for width in (360, 1400):
            page.resize(width, 900)
            page.open(path.as_uri())
            inner, scroll, *found = page.ask(SHOWN)
            assert scroll <= inner == width
            assert found == [len(SECTIONS), 0, 0], "sections, unseen pictures, scripts that ran"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=WHY)
def test_the_table_of_classes_is_sorted_by_the_head_that_is_pressed(run: Path) -> None:
    rows = [
        class_row(name, n, accuracy)
        for name, n, accuracy in (("b", 1000, 0.1), ("C", 9, 0.5), ("a", 0, None))
    ]
    edit(run, "eval.json", classes=rows, confusion=[])
    with browser(run / "profile", run / "downloads") as page:
        page.open(report.build(run).as_uri())

        def press(column: int) -> list[str]:
            page.click(f"#classes th:nth-child({column}) button")
            names: list[str] = page.ask(
                "[...document.querySelectorAll('#classes tbody th')].map(e => e.textContent)"
            )
            return names

        assert page.ask("document.querySelector('#classes tbody th').textContent") == "b", "the worst first"
        assert (press(1), press(1)) == (["a", "b", "C"], ["C", "b", "a"])
        assert (press(2), press(2)) == (["a", "C", "b"], ["b", "C", "a"])
        page.open((run / "report.html").as_uri())
        assert press(3) == ["C", "b", "a"], "it was sorted so, the other way round"
        assert page.ask("document.querySelectorAll('#classes thead button').length") == 6, "not the bars"
        press(1)
        assert (press(3), press(3)) == (["b", "C", "a"], ["C", "b", "a"]), "none is last, either way"
        assert page.ask("document.querySelector('#classes [aria-sort]').ariaSort") == "descending"
        page.ask("location.hash = '#data'")
        page.wait("document.querySelector('#data').checkVisibility()")
        assert page.errors == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=WHY)
def test_on_a_phone_no_table_scrolls_sideways(run: Path) -> None:
    names = ("Old_English_sheepdog", "w" * 60, "\u05db\u05dc\u05d1 \u05e8\u05d5\u05e2\u05d9\u05dd", "dingo")
    rows = [class_row(name, 1000, 1.0) | {"ensemble_precision": 1.0, "ensemble_f1": 1.0} for name in names]
    edit(run, "eval.json", classes=[row | {"ensemble_interval": [1, 1]} for row in rows])
    write(
        run,
        "eval-val.json",
        json.loads((run / "eval.json").read_text()) | {"split": "val", "data": "x.arrow"},
    )
    with browser(run / "profile", run / "downloads") as page:
        page.resize(390, 800)
        page.open(report.build(run).as_uri())
        page.ask("document.querySelectorAll('details').forEach(e => { e.open = true })")
        wide = """[...document.querySelectorAll('table')].map(e => e.closest('.scroll'))
        .filter(e => e.scrollWidth > e.clientWidth).map(e => e.firstElementChild.ariaLabel)"""
        assert page.ask(wide) == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=WHY)
def test_the_table_of_classes_is_whole_on_a_laptop(tmp_path: Path) -> None:
    """Also where every number is as long as it can be."""
    names = ("Old_English_sheepdog", "Australian_terrier", "Rhodesian_ridgeback", "dingo")
    run = full_run(tmp_path / "run", names)
    rows = [class_row(name, 1000, 1.0) for name in names]
    edit(run, "eval.json", classes=[row | {"interval": [1, 1], "ensemble_interval": [1, 1]} for row in rows])
    path = report.build(run)
    with browser(tmp_path / "profile", tmp_path / "downloads") as page:
        page.resize(1280, 900)
        page.open(path.as_uri())
        shown, whole = page.ask(
            "[...document.querySelectorAll('#classes .scroll')].flatMap((e) => [e.clientWidth, e.scrollWidth])"
        )
        assert whole <= shown
