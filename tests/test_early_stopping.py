"""`patience`: training ends where validation no longer improves, at the same epoch however it was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, Capture, Patch, never, tiny_job

from greyhound import begin, train
from greyhound.cache.store import Pack
from greyhound.model import checkpoint
from greyhound.model.run import BEST, LAST, METRICS, SWA, Run
from greyhound.model.schedule import Phase
from greyhound.model.state import CheckpointSaver, TrainState
from greyhound.recipe import Averaging, Recipe
from greyhound.session import TrainContext

ACCURACIES = (0.5, 0.7, 0.7, 0.6, 0.9, 0.9, 0.8, 0.8)
"""Of each epoch's validation: the best of the first four is epoch 1's, and a tie with it is no better."""


def early(patience: int = 2, epochs: int = 6, steps: int = 1) -> Recipe:
    phases = (Phase(epochs=epochs, high=0.02, low=0.002, cycles=0.5),)
    return replace(TINY, patience=patience, phases=phases, averaging=Averaging(steps=steps, rate=0.002))


@pytest.fixture(autouse=True)
def scripted(monkeypatch: Patch) -> None:
    """A validation is as good as `ACCURACIES` says of its epoch; no pictures."""

    def validate(context: TrainContext, network: object, title: str) -> dict[str, Any]:
        epoch = min(context.state.epoch, len(ACCURACIES)) - 1
        return {"valid_loss": 1.0, "accuracy": ACCURACIES[epoch], "n": 6}

    monkeypatch.setattr(TrainContext, "validate", validate)
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)


def go(pack: Pack, out: Path, recipe: Recipe, resume: bool = False, force: bool = False) -> None:
    options = replace(tiny_job(pack.path, out, resume, recipe), force=("recipe",) if force else ())
    assert train.train(options, never) == 0


def counts(out: Path) -> list[int]:
    return [row["bad_epochs"] for row in Run(out).rows(METRICS)]


@pytest.fixture(scope="module")
def stopped(colour_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after epoch 3 of 0..5."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        scripted.__wrapped__(patch)  # type: ignore[attr-defined]
        go(colour_pack, out, early())
    return out


def test_training_ends_where_validation_no_longer_improves(
    stopped: Path, colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    assert counts(stopped) == [0, 0, 1, 2]
    assert (stopped / SWA).exists()
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    capsys.readouterr()
    go(colour_pack, out, early(), resume=True)
    said = capsys.readouterr().out
    assert "this run is finished: nothing is left" in said
    line = "stopped after 4 of 6 epochs: 2 in a row without a better validation accuracy"
    assert f"\n{line}\n" in said
    assert f"{line.capitalize()} (patience 2)." in (out / "report.html").read_text()
    assert counts(out) == [0, 0, 1, 2]


def test_without_patience_every_epoch_is_trained_and_nothing_is_said(
    colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    go(colour_pack, tmp_path / "run", early(patience=0, epochs=5, steps=0))
    rows = Run(tmp_path / "run").rows(METRICS)
    assert len(rows) == 5 and not any("bad_epochs" in row for row in rows)
    assert "stopped" not in capsys.readouterr().out


class Killed(BaseException):
    """As kill -9: nothing is written any more."""


def killed(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_killed_after_best_was_written_and_last_was_not_it_stops_at_the_same_epoch(
    stopped: Path, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch, epoch: int
) -> None:
    out, save_last = tmp_path / "run", CheckpointSaver.save_last

    def kill(saver: CheckpointSaver, state: TrainState) -> None:
        if state.epoch == epoch + 1:
            saver.wait()
            raise Killed
        save_last(saver, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointSaver, "save_last", kill)
        go(colour_pack, out, early(steps=0))
    go(colour_pack, out, early(steps=0), resume=True)
    assert (out / METRICS).read_bytes() == (stopped / METRICS).read_bytes()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # Patience 3: as if it had been 3 from the start, epoch 4 is the third; it is better, so all are trained.
        ({"patience": 3}, [0, 0, 1, 2, 0, 1]),
        # More epochs: the count begins anew, and what was the best stays so.
        ({"epochs": 8}, [0, 0, 1, 2, 0, 1, 2]),
    ],
)
def test_more_patience_or_more_epochs_go_on(
    stopped: Path, colour_pack: Pack, tmp_path: Path, more: dict[str, int], expected: Sequence[int]
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    go(colour_pack, out, early(**more), resume=True, force=True)
    assert counts(out) == expected


def test_killed_right_after_it_was_given_more_epochs_it_still_goes_on(
    stopped: Path, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(begin, "restore_best", killed)
        go(colour_pack, out, early(epochs=8), resume=True, force=True)
    go(colour_pack, out, early(epochs=8), resume=True)
    assert counts(out) == [0, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("place", ["save_last", "save_best", "train_epoch"])
def test_a_score_of_another_kind_is_no_bar(
    stopped: Path, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch, place: str
) -> None:
    """Forced to select by loss, the best is measured by it: -1 is the bar, and not 0.7; killed at once, too."""
    out, recipe = Path(shutil.copytree(stopped, tmp_path / "run")), replace(early(patience=5), select="loss")
    saves = getattr(CheckpointSaver, place, None)

    def kill(saver: CheckpointSaver, *rest: Any) -> None:
        if saves:
            saves(saver, *rest)
            saver.wait()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointSaver if saves else train, place, kill)
        go(colour_pack, out, recipe, resume=True, force=True)
    go(colour_pack, out, recipe, resume=True)
    assert checkpoint.load(out / LAST)["progress"]["top"] == -1.0


def test_without_a_best_there_is_no_bar_either(stopped: Path, colour_pack: Pack, tmp_path: Path) -> None:
    out, recipe = Path(shutil.copytree(stopped, tmp_path / "run")), replace(early(patience=5), select="loss")
    (out / BEST).unlink()
    go(colour_pack, out, recipe, resume=True, force=True)
    assert checkpoint.load(out / LAST)["progress"]["top"] == -1.0
