"""The range test: its arithmetic by hand, and that it leaves no run behind but a folder that can become one."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from runs import TINY, Capture, never, tiny_job

from greyhound import train
from greyhound.cache.store import Pack
from greyhound.model import lr_range
from greyhound.model.run import RunError
from greyhound.recipe import Averaging, Recipe, TrainOptions


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
    assert {path.name for path in out.iterdir()} == {"find-lr.json", "find-lr.png"}
    found = json.loads((out / "find-lr.json").read_text())
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) >= 50
    assert found["rates"][:6] == pytest.approx([lr_range.rate_at(step) for step in range(6)])
    assert found["rates"][-1] > 1e-3 and all(map(math.isfinite, found["losses"]))
    assert f"suggested: --lr {found['suggested']:g}, " in said and "this is a guess" in said
    assert train.train(tiny_job(colour_pack.path, out, recipe=recipe), never) == 0
    assert (out / "find-lr.png").exists()
    assert "The range test that came before" in (out / "report.html").read_text()


def test_a_recipe_without_epochs_has_no_rate_to_find(colour_pack: Pack, tmp_path: Path) -> None:
    recipe = replace(TINY, phases=(), linear_probe=True)
    with pytest.raises(
        RunError, match="--find-lr takes steps, and this recipe has no epochs; add --epochs 1"
    ):
        train.train(options(colour_pack, tmp_path / "run", recipe), never)


def test_it_starts_from_the_beginning(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--find-lr starts from the beginning; leave out --resume"):
        TrainOptions(out=tmp_path, resume=True, find_lr=True)
