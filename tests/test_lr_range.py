"""The range test: its arithmetic by hand, and that it leaves no run behind but a folder that can become one."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from runs import TINY, Capture, Patch, never, tiny_job

from greyhound import train, try_out
from greyhound.cache.store import Pack
from greyhound.model import lr_range
from greyhound.model.report import report
from greyhound.model.run import FIND_LR, LOCK, Run, RunError
from greyhound.recipe import Averaging, Recipe, TrainOptions

BEFORE = "The range test that came before"


def test_the_rate_grows_by_one_factor_from_the_lowest_to_the_highest() -> None:
    rates = [lr_range.rate_at(step) for step in range(lr_range.STEPS)]
    assert rates[0] == lr_range.LOW and rates[-1] == pytest.approx(lr_range.HIGH)
    assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([10 ** (6 / 99)] * 99)


def test_the_mean_begins_with_the_first_loss_and_follows_the_later_ones() -> None:
    assert lr_range.smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert lr_range.smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.8 * 1 + 2) / 1.8])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 0.5, 0.5], 3),
        ([1.0, 0.5, math.nan, 0.5], 2),
        ([1.0, 0.5, math.inf], 2),
        ([1.0, 1.0, 20.0, 1.0], 2),  # smoothed 8.8, and 4 times the least is 4
        ([math.nan, 1.0], 0),
    ],
)
def test_steps_count_until_the_loss_is_far_worse_or_no_number(losses: list[float], expected: int) -> None:
    assert lr_range.usable(losses) == expected


def test_the_suggestion_is_a_hundredth_of_the_rate_at_which_it_went_wrong() -> None:
    rates = [0.001, 0.01, 0.1, 1.0]
    assert lr_range.suggest(rates, [1.0, 0.9, 0.8, 99.0]) == pytest.approx(0.01)
    assert lr_range.suggest(rates, [1.0, 0.9, 99.0, 0.9]) == pytest.approx(0.001)
    assert lr_range.suggest(rates, [1.0, 0.9, 0.8, 0.7]) == pytest.approx(0.01)  # it never did


def options(pack: Pack, out: Path, recipe: Recipe) -> TrainOptions:
    return replace(tiny_job(pack.path, out, recipe=recipe), find_lr=True)


def test_it_leaves_a_curve_in_a_folder_that_a_training_then_takes(
    colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    out, recipe = tmp_path / "run", replace(TINY, linear_probe=True, averaging=Averaging(steps=0))
    assert train.train(options(colour_pack, out, recipe), never) == 0
    said = capsys.readouterr().out
    assert said.startswith("linear probe: 42 images")  # from where training starts
    assert {path.name for path in out.iterdir()} == {FIND_LR, "find-lr.png", LOCK}
    found = Run(out).read(FIND_LR)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) >= 50
    assert found["rates"][:6] == pytest.approx([lr_range.rate_at(step) for step in range(6)])
    assert found["rates"][-1] > 1e-3 and all(map(math.isfinite, found["losses"]))
    assert f"suggested: --lr {found['suggested']:g}, " in said and "this is a guess" in said
    assert train.train(tiny_job(colour_pack.path, out, recipe=recipe), never) == 0
    assert (out / "find-lr.png").exists()
    assert BEFORE in (out / "report.html").read_text()
    of = {name: value for name, value in found["of"].items() if name != "max_grad_norm"}
    Run(out).write(FIND_LR, found | {"of": of})  # of an earlier version
    assert BEFORE in report.build(out).read_text()
    Run(out).write(FIND_LR, found | {"of": found["of"] | {"network": "another"}})
    assert BEFORE not in report.build(out).read_text()


def test_it_depends_on_the_recipe_but_for_what_comes_after_or_is_a_draw() -> None:
    recipe, tests = asdict(TINY), lr_range.depends_on
    same = {
        "phases": (),
        "averaging": {},
        "select": "loss",
        "patience": 3,
        "seed": 1,
        "name": "b",
        "note": "",
    }
    assert tests(recipe | same, "a") == tests(recipe, "a") != tests(recipe, "b")
    assert tests(recipe | {"batch_size": 9}, "a") != tests(recipe, "a")


def test_where_it_cannot_write_is_found_before_the_steps(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(try_out, "find_lr", lambda *_: pytest.fail("took steps"))
    with pytest.raises(RunError, match=r"cannot be made or written .*; name another folder: --out"):
        train.train(options(colour_pack, tmp_path / "file" / "run", TINY), never)


def test_a_recipe_without_epochs_has_no_rate_to_find(colour_pack: Pack, tmp_path: Path) -> None:
    recipe = replace(TINY, phases=(), linear_probe=True)
    with pytest.raises(
        RunError, match="--find-lr takes steps, and this recipe has no epochs; add --epochs 1"
    ):
        train.train(options(colour_pack, tmp_path / "run", recipe), never)


def test_it_starts_from_the_beginning(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--find-lr starts from the beginning; leave out --resume"):
        TrainOptions(out=tmp_path, resume=True, find_lr=True)
