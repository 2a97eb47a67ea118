"""The GPU check, rehearsed on the CPU: the same code, its certificate, and that it finds what is broken."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import gpu_check
import pytest
import torch
from engines import needs_dali
from gpu_check import CHECKS, Outcome, Setup, certify, examine
from runs import TINY, Capture, Here, Patch, tiny_job

from greyhound.cache.store import Pack
from greyhound.model.report import figures, report
from greyhound.model.schedule import Phase
from greyhound.pipelines import dali, doctor
from greyhound.pipelines.augment import Augment
from greyhound.recipe import Averaging

ROOT = Path(__file__).parents[1]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


@pytest.fixture
def given(colour_pack: Pack, tmp_path: Path) -> Setup:
    recipe = replace(TINY, phases=(Phase(epochs=1, high=0.01, low=0.002),), averaging=Averaging(steps=0))
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe)
    return Setup(colour_pack, "cpu", tmp_path, job, images=6, batches=50, epochs=10, seconds=0.1)


@needs_dali
def test_the_rehearsal_passes_and_says_so(given: Setup, tmp_path: Path, monkeypatch: Patch) -> None:
    for module, name in ((report, "build"), (figures, "learning_rate"), (figures, "image_sheet")):
        monkeypatch.setattr(module, name, lambda *_: None)
    outcomes = examine(given, {name: check for name, check in CHECKS.items() if name != "tests"})
    assert {name: outcome.found for name, outcome in outcomes.items() if not outcome.passed} == {}
    assert certify(given, outcomes, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "gpu-report.json").read_text())
    assert (content["device"], content["passed"]) == ("cpu", True)
    assert set(content["checks"]) == set(CHECKS) - {"tests"}
    assert content["checks"]["throughput"]["figures"]["threads, decoded"] > 0
    assert content["checks"]["step"]["figures"]["as it is"] > 0
    assert content["facts"]["versions"]["torch"]
    text = (tmp_path / "out" / "gpu-report.md").read_text()
    assert text.startswith("# GPU check, rehearsed on the CPU: nothing here was measured on a GPU\n")
    assert "All checks passed" in text


def test_every_check_that_is_written_is_made() -> None:
    functions = inspect.getmembers(gpu_check, inspect.isfunction)
    takes_and_gives = {name: list(function.__annotations__.values()) for name, function in functions}
    assert {name for name, types in takes_and_gives.items() if types == ["Setup", "Outcome"]} == set(CHECKS)


@needs_dali
@pytest.mark.parametrize("check", ["decoder", "operators"])
def test_pixels_that_are_wrong_fail(given: Setup, monkeypatch: Patch, check: str) -> None:
    real = dali.hand_over
    monkeypatch.setattr(dali, "hand_over", lambda *arguments: real(*arguments).flip(-1))
    assert not CHECKS[check](given).passed


def test_a_check_that_raises_has_failed(given: Setup, tmp_path: Path, capsys: Capture) -> None:
    broken = mock.Mock(side_effect=RuntimeError("CUDA error:\n an illegal memory access"))
    outcomes = examine(given, {"broken": broken, "sound": lambda _: Outcome(True, "well", {"MiB": 1.5})})
    assert outcomes["broken"] == Outcome(False, "RuntimeError: CUDA error: an illegal memory access")
    assert capsys.readouterr().out.splitlines()[1] == "passed: sound: well"
    assert not certify(given, outcomes, tmp_path)
    text = (tmp_path / "gpu-report.md").read_text()
    assert "NOT all checks passed" in text
    assert "| broken | **failed** | RuntimeError: CUDA error: an illegal memory access |" in text
    assert "| sound | MiB | 1.5 |" in text


def test_a_driver_that_is_not_known_fails(given: Setup, monkeypatch: Patch) -> None:
    here = doctor.learn()
    for known, passed in ((None, False), ("580.95.05", True)):
        monkeypatch.setattr(doctor, "learn", lambda known=known: replace(here, driver=known))
        assert gpu_check.driver(replace(given, device="gpu")).passed is passed


@pytest.mark.parametrize("grows", ["host", "GPU"])
def test_memory_that_grows_fails(given: Setup, monkeypatch: Patch, grows: str) -> None:
    monkeypatch.setattr(gpu_check, "Augment", lambda: Augment(size=32))
    flat, taken = {"host": 0, "GPU": 0}, iter(range(0, 10 * gpu_check.GROWTH, gpu_check.GROWTH))
    monkeypatch.setattr(gpu_check, "memory_in_use", lambda _: flat | {grows: next(taken)})
    outcome = gpu_check.memory(given)
    assert not outcome.passed
    assert outcome.figures == {"host, MiB": 0, "GPU, MiB": 0} | {f"{grows}, MiB": 8 * 64}


@no_gpu
def test_without_a_gpu_it_says_so(here: Here, tmp_path: Path) -> None:
    answer = here("tests/gpu_check.py")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: gpu-check: torch finds no CUDA GPU here, so nothing was checked")
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@no_gpu
def test_a_skipped_gpu_test_is_a_failed_one_where_a_gpu_is_required(
    monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setenv("REQUIRE_GPU", "1")
    monkeypatch.chdir(ROOT)
    assert pytest.main(["-q", "-m", "gpu", "tests/test_pipelines_handover.py"]) == 1
    said = capsys.readouterr().out
    assert "2 errors" in said  # skipped while they were set up
    assert "REQUIRE_GPU=1, and this was skipped" in said
