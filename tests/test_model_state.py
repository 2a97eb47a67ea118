"""model/state.py: when last.ckpt is due, by steps or minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from greyhound.model.run import Run
from greyhound.model.state import CheckpointSaver
from greyhound.recipe import Checkpoints


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
