"""tests/soak.py: it finds a leak, and whatever two runs do not have in common."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from kills import bits
from soak import GROWTH, different, summarise, work

from greyhound.cache.store import Pack
from greyhound.model import checkpoint
from greyhound.model.run import AVERAGED, BEST, EVALUATION, LAST, METRICS, PROBE, STEPS, SWA


def memory(seconds: int, leak: float, noise: float = 6.0) -> list[float]:
    """Samples of a process that takes 900 MiB, loses so many MiB a second, and breathes."""
    generator = random.Random(0)
    return [900 + leak * second + generator.uniform(-noise, noise) for second in range(seconds)]


@pytest.mark.parametrize(("minutes", "leak"), [(30, 4.0), (30, 0.05), (2, 4.0), (2, 1.0)])
def test_a_leak_is_found(minutes: int, leak: float) -> None:
    found = summarise(memory(60 * minutes, leak), epochs=1)
    assert found.growth > GROWTH
    assert found.late - found.early == pytest.approx(leak * 60 * minutes * 2 / 3, rel=0.05)


@pytest.mark.parametrize("minutes", [2, 30])
def test_what_breathes_and_does_not_grow_is_flat(minutes: int) -> None:
    found = summarise(memory(60 * minutes, 0.0, noise=60.0), epochs=1)
    assert (found.samples, found.minutes) == (60 * minutes, minutes)
    assert found.growth == pytest.approx(1, abs=0.03)


def test_too_few_samples_prove_nothing() -> None:
    with pytest.raises(SystemExit, match="2 looks at the memory are too few"):
        summarise([900.0, 900.0], epochs=1)


def test_whatever_two_runs_do_not_have_in_common_is_named(colour_pack: Pack, tmp_path: Path) -> None:
    """A run with all that a recipe can ask for, and a copy of it in which one thing of each was changed."""
    shutil.copy(colour_pack.path, tmp_path / "images.arrow")
    whole, threads = tmp_path / "whole", torch.get_num_threads()
    work(None, whole, epochs=1)
    torch.set_num_threads(threads)
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))

    def edit(name: str, key: str) -> None:
        (copy / name).write_text((copy / name).read_text().replace(f'"{key}": ', f'"{key}": 9', 1))

    edit(PROBE, "elapsed")
    edit(SWA, "elapsed")
    assert different(whole, copy) == []
    for name, key in ((PROBE, "valid_loss"), (SWA, "rate"), (EVALUATION, "n")):
        edit(name, key)
    for name in (METRICS, STEPS):
        (copy / name).write_text((copy / name).read_text() + "\n")
    for name in (LAST, BEST, AVERAGED):
        content = checkpoint.load(copy / name)
        next(iter(content["network"].values())).add_(1)
        if name == LAST:
            next(iter(content["momentum"].values())).add_(1)
        if name == BEST:
            content["score"] += 1
        checkpoint.save(copy / name, content)
    (copy / ".left").touch()
    named = {LAST, BEST, AVERAGED, METRICS, STEPS, PROBE, SWA, EVALUATION, "momentum", "best", "left"}
    assert set(different(whole, copy)) == named == set(bits(whole)), "all that is compared"
    assert json.loads((whole / EVALUATION).read_text())["n"] == 12
