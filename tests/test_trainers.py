"""The comparison of trainers: what it measures and tabulates; the trainers themselves are not run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from trainers import Row, draw, measured, tabulate

from greyhound.cache.errors import UserError


def test_the_cost_is_that_of_the_command_and_of_what_it_started() -> None:
    """A second of work in a child's child is counted, and its memory is, where it is the largest."""
    busy = "import time; held = b'x' * 300_000_000\nwhile time.process_time() < 1: pass"
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}]); print(7)",
    ]
    said, seconds, memory = measured(command)
    assert (said, 1 <= seconds < 3, memory > 300e6) == ("7\n", True, True)
    with pytest.raises(UserError, match="failed: no such luck"):
        measured([sys.executable, "-c", "import sys; sys.exit('no such luck')"])


def test_the_table_has_the_mean_over_splits_and_the_range(tmp_path: Path) -> None:
    rows = [
        Row("shirts-0", "timm-1", 0.5, 1.0, 10, 300.0, 2_000_000_000, "slow"),
        Row("shirts-1", "timm-1", 0.6, 1.2, 10, 200.0, 1_000_000_000, "quick"),
        Row("shirts-0", "fast", 0.75, 0.5, 10, 20.0, 1_000_000_000, "slow", 0.8, 0.6),
        Row("shirts-1", "fast", 0.85, 0.3, 10, 30.0, 1_500_000_000, "slow", 0.9, 0.4),
        Row("shirts-1", "fast", 0.85, 0.3, 10, 10.0, 1_500_000_000, "quick", 0.9, 0.4),
        Row("trousers-0", "timm-1", 0.5, 1.0, 10, 7.0, 1_000_000_000, "quick"),
    ]
    assert tabulate(rows) == [
        "| set | trainer | splits | accuracy | cross entropy | ten crops | quick | slow | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
        "| shirts | fast | 2 | 0.800 (0.750 to 0.850) | 0.400 | 0.850, 0.500 | 1.0 | 1.0 | 1.5 |",
        "| shirts | timm-1 | 2 | 0.550 (0.500 to 0.600) | 1.100 |  | 20.0 | 12.0 | 2.0 |",
        "| trousers | timm-1 | 1 | 0.500 (0.500 to 0.500) | 1.000 |  |  |  | 1.0 |",
    ]
    draw(rows, tmp_path / "trainers.png")
    assert (tmp_path / "trainers.png").read_bytes().startswith(b"\x89PNG")
    draw(rows[:2], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists(), "no cost is relative to one of `fast`"
