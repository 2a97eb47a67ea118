"""The training loop waits for no value of the device between two batches: losses add up there and are read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reads import WATCHED, host_reads, syncs_raise, walk
from runs import TINY, Patch, never, tiny_job

from greyhound import train
from greyhound.cache.machine import has_dali
from greyhound.cache.store import Pack
from greyhound.model.report import figures, report
from greyhound.model.schedule import Phase
from greyhound.model.state import TrainState
from greyhound.pipelines.engine import EngineName
from greyhound.recipe import Averaging

READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": torch.Tensor.item,
    "float": float,
    "if": bool,
    "tolist": torch.Tensor.tolist,
    "numpy": torch.Tensor.numpy,
    "cpu": torch.Tensor.cpu,
    "equal": lambda value: torch.equal(value, value),
    "nonzero": torch.Tensor.nonzero,
    "mask": lambda value: value[value > 0],
    "print": str,
}


@pytest.mark.parametrize("read", READS)
def test_every_way_to_read_is_seen(read: str) -> None:
    value = torch.ones(3 if read == "mask" else ())
    with host_reads() as found:
        value * 2 + 1
        assert not found
        READS[read](value)
    assert found


def test_a_step_reads_nothing(colour_pack: Pack) -> None:
    assert walk(colour_pack, "cpu", host_reads) == []


def test_a_step_that_reads_is_seen(colour_pack: Pack, monkeypatch: Patch) -> None:
    record = TrainState.record

    def record_and_look(state: TrainState, loss: torch.Tensor, *rest: int) -> None:
        record(state, loss, *rest)
        assert loss.item() > 0

    monkeypatch.setattr(TrainState, "record", record_and_look)
    assert walk(colour_pack, "cpu", host_reads) == ["aten._local_scalar_dense.default"] * WATCHED


def test_what_a_training_reads_does_not_grow(tmp_path: Path, colour_pack: Pack, monkeypatch: Patch) -> None:
    """A whole training of one epoch in 2 steps, and in 11, without its pictures: as much is read in both."""
    for module, name in ((report, "build"), (figures, "learning_rate"), (figures, "image_sheet")):
        monkeypatch.setattr(module, name, lambda *_: None)
    phases, averaging = (Phase(epochs=1, high=0.01, low=0.002),), Averaging(steps=0)
    counts = []
    for batch_size in (21, 4):
        recipe = replace(TINY, batch_size=batch_size, linear_probe=True, phases=phases, averaging=averaging)
        with host_reads() as found:
            train.train(tiny_job(colour_pack.path, tmp_path / str(batch_size), recipe=recipe), never)
        counts.append(len(found) - found.count("numpy"))  # a ring of host memory says it once a batch
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and has_dali()), reason="needs an NVIDIA GPU and DALI")
@pytest.mark.parametrize("engine", ["dali", "threads"])
def test_a_step_on_a_gpu_waits_for_nothing(colour_pack: Pack, engine: EngineName) -> None:
    assert walk(colour_pack, "gpu", syncs_raise, engine) == []
