"""model/state.py: when last.ckpt is due, by steps or minutes; the rows of steps.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, Patch, never, tiny_job

from greyhound import begin, train
from greyhound.cache.cli import Stopped
from greyhound.cache.store import Pack
from greyhound.model import state
from greyhound.model.report import report
from greyhound.model.run import METRICS, STEPS, Run
from greyhound.model.state import CheckpointSaver, Counters, TrainState, drop_later_rows
from greyhound.recipe import Averaging, Checkpoints


def test_checkpoints_are_due_by_steps_and_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saver(**interval: int) -> CheckpointSaver:
        return CheckpointSaver(Run(tmp_path), **interval)

    now = [100.0]
    monkeypatch.setattr("greyhound.model.state.time.perf_counter", lambda: now[0])
    steps = saver(steps=3)
    assert [steps.should_save() for _ in range(7)] == [False, False, True, False, False, True, False]
    minutes = saver(minutes=2)
    assert not minutes.should_save()
    now[0] += 120
    assert minutes.should_save()
    assert not minutes.should_save()
    assert not any(saver().should_save() for _ in range(10))


@pytest.mark.parametrize(
    "numbers", [{"minutes": -1.0}, {"minutes": float("nan")}, {"steps": -1}, {"keep": 0}]
)
def test_a_checkpoint_interval_that_is_none_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"checkpoints\.\w+ is .*; expected"):
        Checkpoints(**numbers)  # type: ignore[arg-type]


LOSSES = (0.1, 0.2, 0.7, 0.4, 1e9, 0.3, 1e-9)
"""Of the steps of an epoch of 14 images, two a step. Their sums depend on their order."""


def walk(stops: Sequence[int] = (), rows: int = 3) -> tuple[TrainState, list[list[dict[str, Any]]]]:
    """An epoch over `LOSSES`, stopped and gone on after some of its steps; its state, and the rows each time."""
    found, counters = [], Counters()
    for first, last in zip((0, *stops), (*stops, len(LOSSES)), strict=True):
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        progress = {name: getattr(counters, name) for name in vars(Counters())}
        going = TrainState(network=network, optimizer=optimizer, **progress)
        going.begin_epoch(14, 1)
        for step in range(first, last):
            optimizer.param_groups[0]["lr"] = step / 10
            going.record(torch.tensor(LOSSES[step]), 1)
            going.record(torch.tensor(LOSSES[step]), 1)
            going.advance(*((1, 0) if step + 1 == len(LOSSES) else (0, 2 * step + 2)))
        going.flush()
        found.append(going.steps())
        counters = going
    return going, found


def test_rows_of_steps_are_means_over_parts_of_the_epoch(monkeypatch: Patch) -> None:
    monkeypatch.setattr(state, "MOST_ROWS", (3, 10))
    (rows,) = walk()[1]
    assert [(row["epoch"], row["images"], row["learning_rate"]) for row in rows] == [
        (0, 6, 0.2),
        (0, 10, 0.4),
        (0, 14, 0.6),
    ]
    assert [row["train_loss"] for row in rows] == pytest.approx([1 / 3, (0.4 + 1e9) / 2, 0.15])


def test_of_few_steps_each_has_its_row_and_of_many_epochs_each_has_fewer(monkeypatch: Patch) -> None:
    (rows,) = walk()[1]
    assert [row["images"] for row in rows] == [2, 4, 6, 8, 10, 12, 14]
    assert [row["train_loss"] for row in rows] == pytest.approx(LOSSES)
    counts = {}
    for epochs in (1, 20, 5000):
        begun = walk()[0]
        begun.begin_epoch(10_000, epochs)
        for step in range(1, 10_000):
            begun.advance(0, step)
        counts[epochs] = len(begun.curve)
    assert counts == {1: 1000, 20: 500, 5000: 50}


@pytest.mark.parametrize("stops", [(1,), (2,), (3,), (5,), (6,), (1, 2, 4)])
def test_rows_of_steps_are_equal_wherever_the_epoch_was_stopped(
    monkeypatch: Patch, stops: Sequence[int]
) -> None:
    monkeypatch.setattr(state, "MOST_ROWS", (3, 10))
    (whole,) = walk()[1]
    *before, after = walk(stops)[1]
    assert after == whole
    assert all(rows == whole[: len(rows)] for rows in before), "what is written is written for good"
    assert [row["images"] for row in walk((5,))[1][0]] == [6], "a part of the epoch that may go on is no row"


def test_steps_are_on_disk_at_every_checkpoint_and_equal_after_a_resume(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(report, "build", lambda run: run)
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    whole, out = tmp_path / "whole", tmp_path / "run"
    recipe = replace(TINY, averaging=Averaging(steps=0))
    train.train(tiny_job(colour_pack.path, whole, recipe=recipe), never)
    expected = Run(whole).rows(STEPS)
    assert [row["images"] for row in expected] == [7, 14, 21, 28, 35, 42] * 2
    assert sum(row["train_loss"] for row in expected[:6]) / 6 == pytest.approx(
        Run(whole).rows(METRICS)[0]["train_loss"]
    )
    asked = iter([None] * 4 + [15] * 99)
    with pytest.raises(Stopped):
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), lambda: next(asked))
    assert Run(out).rows(STEPS) == expected[:3], "of four steps; the fourth may be part of a row"
    # As a killed run leaves it: further than its checkpoint, and then elsewhere.
    Run(out).write_rows(STEPS, [*expected[:4], expected[4] | {"train_loss": 9.0}])
    train.train(tiny_job(colour_pack.path, out, True, recipe), never)
    assert (out / STEPS).read_bytes() == (whole / STEPS).read_bytes()


def test_rows_behind_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    going, run = walk((3,))[0], Run(tmp_path)
    rows = [{"epoch": epoch, "images": images} for epoch in (0, 1) for images in (6, 14)]
    for place, left in (((0, 6), 1), ((0, 7), 1), ((1, 0), 2), ((1, 6), 3)):
        run.write_rows(STEPS, rows)
        going.epoch, going.images = place
        drop_later_rows(run, going)
        assert run.rows(STEPS) == rows[:left]
