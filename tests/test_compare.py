"""compare.py and the page about several runs: differences beyond chance alone are called ones."""

from __future__ import annotations

import csv
import json
import math
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, WHY, browser
from PIL import Image
from runs import Here, Patch
from scipy.stats import binomtest

from greyhound.model.metrics import mcnemar, wilson
from greyhound.model.report import compare, figures
from greyhound.model.report.report import Group

RECIPE: dict[str, Any] = {
    "name": "fine",
    "network": "lite0",
    "note": "one",
    "batch_size": 32,
    "augment": {"size": 160, "scale": [1.0, 1.25]},
    "phases": [{"epochs": 2, "high": 0.004}],
}
CLASSES = ("a cat", "b dog")
EPOCHS = [
    {"epoch": n, "train_loss": 1 / (n + 1), "valid_loss": 0.5, "accuracy": 0.6 + n / 10, "n": 50}
    for n in (0, 1)
]


def right(score: int, n: int = 100, first: int = 0) -> set[int]:
    """Which images a network names right: `score` of them, from the `first` on."""
    return {(first + index) % n for index in range(score)}


def a_run(folder: Path, named: set[int], n: int = 100, told: bool = True, **recipe: Any) -> Path:
    """A run that was evaluated on n images, half of each class, and names those right. told: one by one."""
    folder.mkdir(parents=True)
    classes = []
    for label, name in enumerate(CLASSES):
        of = [index for index in range(n) if index % 2 == label]
        classes.append({"name": name, "n": len(of), "ensemble_accuracy": len(named & {*of}) / len(of)})
    files: dict[str, Any] = {
        "recipe.json": RECIPE | recipe,
        "versions.json": {"torch": "2.14", "date": folder.name},
        "pack.json": {"digest": "0123456789abcdef", "classes": CLASSES, "splits": {"train": 40}},
        "metrics.jsonl": EPOCHS,
        "times.jsonl": [{"epoch": n, "elapsed": 60.0 * n, "images_per_second": 20.0 + n} for n in (0, 1, 2)],
        "eval.json": {
            "crops": 10,
            "n": n,
            "accuracy": 0.5,
            "ensemble_accuracy": len(named) / n,
            "classes": classes,
        },
    }
    if told:
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "true", "predicted", "probability", "loss"])
            for index in range(n):
                true = index % 2
                guess = true if index in named else 1 - true
                writer.writerow([f"{index}.jpg", CLASSES[true], CLASSES[guess], 0.5, 0.7])
        files["eval.json"]["predictions_sha256"] = sha256(
            (folder / "predictions.csv").read_bytes()
        ).hexdigest()
    for name, content in files.items():
        rows = content if name.endswith(".jsonl") else [content]
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def edit(run: Path, name: str, **change: Any) -> None:
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | change))


DRAWN: list[bytes] = []


@pytest.fixture(autouse=True)
def curves_are_drawn_once(monkeypatch: Patch) -> None:
    """A picture takes a third of a second, and most tests look at none."""

    def once(*values: Any, **more: Any) -> bytes:
        DRAWN.extend([] if DRAWN else [figures.curves(*values, **more)])
        return DRAWN[0]

    monkeypatch.setattr(compare, "curves", once)


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 3, 10 / 16), (2, 2, 1.0)]
)
def test_mcnemar_by_hand(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == p


def test_mcnemar_of_a_large_test_is_soon_known() -> None:
    started = time.process_time()
    assert mcnemar(6000, 6100) == pytest.approx(0.3685, abs=1e-3)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(("one", "other"), [(3, 15), (40, 61), (900, 1100)])
def test_mcnemar_is_the_binomial_test(one: int, other: int) -> None:
    assert mcnemar(one, other) == pytest.approx(binomtest(one, one + other, 0.5).pvalue, rel=1e-9)


def test_the_best_is_named_only_beyond_chance(tmp_path: Path) -> None:
    """Of 6 images that one alone names right, all 6 are more than chance (p = 1/32), 5 of 5 are not (1/16)."""
    runs = [
        a_run(tmp_path / name, right(score)) for name, score in (("low", 80), ("middle", 85), ("high", 86))
    ]
    found = compare.gather([runs[0], runs[2]])
    assert (found["first"].name, found["best"], found["against"]["low"].p) == ("high", True, 1 / 32)
    found = compare.gather(runs[1:])
    assert (found["first"].name, found["best"], found["against"]["middle"].p) == ("high", False, 1.0)
    assert not compare.gather(runs[:2])["best"]
    assert not compare.gather([runs[0], runs[2], runs[1]])["against"]["low"].beyond, (
        "of three pairs one is so by chance"
    )


def test_a_run_that_was_not_evaluated_is_said_and_has_its_curves(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, right(80)) for name in ("one", "two", "new run")]
    (runs[2] / "eval.json").unlink()
    found = compare.gather(runs)
    assert [run.name for run in found["shown"]] == ["one", "two", "new run"]
    (line,) = found["notes"]
    assert line.startswith("new run was not evaluated")
    assert line.endswith(f": greyhound eval --run '{runs[2]}'")


def test_without_predictions_the_intervals_must_be_apart(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / str(score), right(score), told=False) for score in (80, 86, 97)]
    found = compare.gather(runs)
    assert {name: (each.p, each.beyond) for name, each in found["against"].items()} == {
        "86": (None, True),
        "80": (None, True),
    }
    assert found["best"]
    assert wilson(86, 100)[1] < wilson(97, 100)[0]
    assert not compare.gather(runs[:2])["best"]
    assert "predictions.csv" in found["notes"][-1]


def test_predictions_of_another_test_are_left_out(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one", right(80)), a_run(tmp_path / "other", right(90))
    assert compare.gather([one, other])["against"]["one"].p is not None
    (one / "predictions.csv").write_bytes((other / "predictions.csv").read_bytes())
    assert compare.gather([one, other])["against"]["one"].p is None
    with (other / "predictions.csv").open("a") as file:
        file.write("new.jpg,a cat,a cat,0.5,0.7\n")
    assert not compare.gather([one, other])["runs"][1].named


def test_runs_of_other_packs_are_shown_and_not_ranked(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one", right(50)), a_run(tmp_path / "other", right(99))
    edit(other, "pack.json", digest="f" * 16, classes=["b dog", "c cow"])
    edit(other, "eval.json", classes=[{"name": "b dog", "n": 50, "ensemble_accuracy": 1.0}])
    found = compare.gather([one, other])
    assert (found["best"], found["against"], found["disagree"]) == (False, {}, [])
    assert found["notes"][:2] == [
        "The runs are of 2 packs. Their images may differ: no run is called the best.",
        "The runs do not have the same classes. Only those that all have are compared.",
    ]
    assert [(name, beyond) for name, _, _, beyond in found["classes"]] == [("b dog", False)]
    assert ("pack", ["0123456789ab", "f" * 12]) in found["settings"]
    page = compare.build([one, other], tmp_path / "page.html", "Two").path.read_text()
    assert "no run is called the best" in page and "has the highest" not in page
    assert (found["verdict"], "McNemar" in page) == ("", False), "none was tested against another"
    assert ('data-label="test accuracy"' in page, 'data-label="against' in page) == (True, False)


def test_only_what_differs_is_a_setting(tmp_path: Path) -> None:
    one = a_run(tmp_path / "one", right(80))
    assert compare.gather([one, a_run(tmp_path / "same", right(80), note="another")])["settings"] == []
    augment = RECIPE["augment"] | {"scale": [0.8, 1.2], "flip": 0.5}
    other = a_run(tmp_path / "other", right(80), name="fast", phases=[], batch_size=16, augment=augment)
    edit(other, "versions.json", torch="2.15")
    assert compare.gather([one, other])["settings"] == [
        ("recipe", ["fine", "fast"]),
        ("batch-size", ["32", "16"]),
        ("augment.scale", ["1, 1.25", "0.8, 1.2"]),
        ("phases.0.epochs", ["2", "–"]),
        ("phases.0.high", ["0.004", "–"]),
        ("augment.flip", ["–", "0.5"]),
        ("torch", ["2.14", "2.15"]),
    ]


def test_a_run_without_phases_keeps_its_column(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "plain", right(80), phases=[]), a_run(tmp_path / "longer", right(80))]
    page = compare.build(runs, tmp_path / "page.html", "Two").path.read_text()
    assert '<td role="cell" data-label="plain">–</td><td role="cell" data-label="longer">0.004</td>' in page


def test_settings_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    """By the folders that differ, and by all digits."""
    files = ["/home/x/one/w.safetensors", "/home/x/two/w.safetensors", "auto"]
    runs = [
        a_run(tmp_path / str(n), right(80), weights=file, lr=0.1 + n * 1e-9) for n, file in enumerate(files)
    ]
    assert compare.gather(runs)["settings"] == [
        ("weights", ["one/w.safetensors", "two/w.safetensors", "auto"]),
        ("lr", ["0.1", "0.100000001", "0.100000002"]),
    ]
    assert compare.gather(runs[1:])["settings"][0] == ("weights", ["w.safetensors", "auto"])


def test_what_may_be_chance_is_said_so_and_mixed_labels_are_no_plain_loss(tmp_path: Path) -> None:
    augment = RECIPE["augment"] | {"mixup": 0.2}
    runs = [a_run(tmp_path / "a", right(80)), a_run(tmp_path / "b", right(81), augment=augment)]
    page = compare.build(runs, tmp_path / "page.html", "Two").path.read_text()
    assert "81.0\u202f%; against a that may be chance." in page
    assert "Training losses are of different settings here" in page


def test_classes_that_moved_most_come_first(tmp_path: Path) -> None:
    """Of the dogs, one image in two, the second names 20 more; of the cats one less."""
    one = a_run(tmp_path / "one", {index for index in range(100) if index % 2 == 0})
    other = a_run(tmp_path / "other", {index for index in range(98) if index % 2 == 0 or index < 40})
    found = [
        (name, n, [score.accuracy for score in scores], beyond)
        for name, n, scores, beyond in compare.gather([one, other])["classes"]
    ]
    assert found == [("b dog", 50, [0.0, 0.4], True), ("a cat", 50, [1.0, 0.98], False)]


def test_runs_that_name_the_same_images_moved_no_class(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, right(80)) for name in ("one", "other")]
    assert compare.gather(runs)["classes"] == []
    page = compare.build(runs, tmp_path / "page.html", "Two").path.read_text()
    assert "<p>one and other name the same images right.</p>" in page
    assert "Classes that moved" not in page


def test_images_that_one_alone_names_right(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one", right(90)), a_run(tmp_path / "other", right(70, first=25))
    ((run, found),) = compare.gather([one, other])["disagree"]
    assert run.name == "other"
    assert (found.one, found.other) == (
        [f"{index}.jpg" for index in range(25)],
        [f"{index}.jpg" for index in range(90, 95)],
    )
    page = compare.build([one, other], tmp_path / "page.html", "Two").path.read_text()
    assert "25 images that one names right and other does not" in page
    assert '<li>1.jpg: <span class="quiet">a cat, it is b dog</span></li>' in page
    assert "and 15 more" in page


def test_points_count_epochs_from_the_start(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "one", right(80))
    (folder / "probe.json").write_text(
        json.dumps({"accuracy": 0.55, "valid_loss": math.nan, "n": 50, "elapsed": 8.0})
    )
    steps = [{"epoch": 1, "images": 10, "train_loss": 0.3, "learning_rate": 1e-3}]
    (folder / "steps.jsonl").write_text(json.dumps(steps[0]) + "\n")
    run = compare.read(folder, "one")
    assert list(compare.points(run, "metrics.jsonl", "accuracy")) == [(0, 0.55), (1, 0.6), (2, 0.7)]
    assert list(compare.points(run, "metrics.jsonl", "valid_loss")) == [(1, 0.5), (2, 0.5)]
    assert list(compare.points(run, "metrics.jsonl", "train_loss")) == [(0.5, 1.0), (1.5, 0.5)]
    assert list(compare.points(run, "steps.jsonl", "train_loss")) == [(1.25, 0.3)]
    assert (run.seconds, run.speed) == (120.0, 21.0)
    titles = [title for title, _, _ in compare.charts([run])]
    assert titles == ["Validation accuracy", "Validation loss"][::-1], "one step makes no curve"
    (folder / "steps.jsonl").unlink()
    titles = [f"{title}, {about}" for title, about, _ in compare.charts([compare.read(folder, "one")])]
    assert titles[0] == "Training loss, of each epoch"


def test_any_name_is_drawn_and_all_curves_differ(tmp_path: Path) -> None:
    names = ["$x^$", "_hidden", "plain", "ünïcode 名", "e" * 80, "f"]
    lines = [(name, [(0.0, 50.0), (1.0, 50.0 + n)]) for n, name in enumerate(names)]
    (tmp_path / "curves.png").write_bytes(figures.curves(lines, percents=True))
    with Image.open(tmp_path / "curves.png") as picture:
        seen = {colour for count, colour in picture.convert("RGB").getcolors(1 << 20) or [] if count > 100}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in figures._LINES} <= seen


def test_a_run_in_the_making_or_without_epochs_has_dashes(tmp_path: Path) -> None:
    made, bare = a_run(tmp_path / "made", right(80)), tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.json").write_text(json.dumps(RECIPE))
    found = compare.gather([made, bare])
    assert "bare has no result yet: it ended, or still runs, before its first one." in found["notes"]
    assert (found["first"].name, found["best"]) == ("made", False)
    page = compare.build([made, bare], tmp_path / "page.html", "Two").path.read_text()
    assert page.count("<img") == 3
    assert 'data-label="time">–</td>' in page
    assert "Classes that moved" not in page, "there is nothing to move from"
    for run in (made, bare):
        for name in ("metrics.jsonl", "times.jsonl"):
            (run / name).unlink(missing_ok=True)
    page = compare.build([made, bare], tmp_path / "page.html", "Two").path.read_text()
    assert "No run trained an epoch" in page
    assert 'data-label="time"' not in page, "a column that is all dashes is left out"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    assert compare.names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert compare.names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == [
        f"{tmp_path.name}/{k}/run" for k in "ab"
    ]
    assert compare.names([tmp_path / "a", tmp_path / "a" / "a"]) == ["a", "a/a"]


def test_the_page_says_what_it_is_told_first(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, right(80)) for name in ("<b>bold</b>", "two")]
    table = Group("Trials", columns=("trial", "lr"), rows=(("0", "0.1"),))
    page = compare.build(
        runs, tmp_path / "page.html", "A <title>", ["Before & after.", table]
    ).path.read_text()
    assert page.index("Before &amp; after.") < page.index("<h3>Trials</h3>") < page.index("What each reached")
    assert '<td role="cell" data-label="lr">0.1</td>' in page
    assert "<b>" not in page.replace("<b></b>", "")
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("one", "name two run folders or more: greyhound compare RUN RUN --out compare.html"),
        ("one one/../one", "one is named twice; expected different runs"),
        ("one nowhere", "nowhere is no folder; expected a run folder, as made by: greyhound train fast --pack PACK --out RUN"),
        ("one several", "several is a folder of runs, several/fold-0; name one of them"),
        ("one two --out one", "one cannot be written (Is a directory); name another place"),
    ],
)  # fmt: skip
def test_refusals(words: str, says: str, here: Here, tmp_path: Path) -> None:
    for name in ("one", "two"):
        a_run(tmp_path / name, right(80))
    a_run(tmp_path / "several" / "fold-0", right(80))
    assert here("compare.py", *words.split()).error.strip() == says
    assert not list(tmp_path.glob("*.html"))


def test_the_command_writes_the_page(here: Here, tmp_path: Path) -> None:
    for name, score in (("one", 80), ("two", 95)):
        a_run(tmp_path / name, right(score))
    answer = here("compare.py", "one", "two")
    said = "two is the best: 95.0 % of its test images. Against every other run that is more than chance."
    assert (answer.code, answer.out) == (0, f"{said}\npage: compare.html\n")
    page = (tmp_path / "compare.html").read_text()
    assert "two is the best: 95.0" in page
    assert ("McNemar" in page, "do not overlap" in page) == (True, False)
    (tmp_path / "one" / "eval.json").unlink()
    answer = here("compare.py", "one", "two", "--out", "more.html")
    said = "one and two have the same validation accuracy, 70.0 %."
    assert (answer.code, answer.out) == (0, f"{said}\npage: more.html\n")
    assert answer.err.startswith("note: one was not evaluated")
    page = (tmp_path / "more.html").read_text()
    assert ("McNemar" in page, "do not overlap" in page) == (False, True)


def test_runs_that_reach_the_same_are_said_to(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, right(n)) for name, n in (("a", 80), ("b", 81), ("c", 81))]
    expected = "b and c have the same test accuracy, 81.0\u202f%; against a that may be chance."
    assert compare.gather(runs)["verdict"] == expected


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=WHY)
def test_a_browser_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    names = ("w" * 120, "<img src=x onerror=window.pwned=1>", "three", "four", "five", "six", "seven")
    runs = [a_run(tmp_path / name, right(80 + n), batch_size=n + 1) for n, name in enumerate(names)]
    path = compare.build(runs, tmp_path / "page.html", "Seven").path
    with browser(tmp_path / "profile", tmp_path / "downloads") as page:
        for width in (360, 1280):
            page.resize(width, 900)
            page.open(path.as_uri())
            assert page.ask("document.documentElement.scrollWidth") <= width
            assert (
                page.ask("[...document.querySelectorAll('img')].map((each) => each.naturalWidth > 0)")
                == [True] * 3
            )
            assert page.ask("window.pwned || 0") == 0
    assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []
    assert page.errors == []
