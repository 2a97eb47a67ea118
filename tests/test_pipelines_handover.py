"""The hand-over to torch: no batch is overwritten while anyone holds it, and the look would find one that is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines import STREAMS, needs_dali, needs_gpu
from numpy.typing import NDArray
from watermark import overwritten

from greyhound.cache.store import Pack
from greyhound.pipelines import dali, threads
from greyhound.pipelines.engine import Engine

BATCHES = 10_000


@pytest.mark.parametrize("engine", STREAMS)
def test_no_batch_is_overwritten_while_it_is_held(coded_pack: Pack, engine: Engine) -> None:
    assert overwritten(coded_pack, engine, "cpu", BATCHES // 5) == 0


@needs_gpu
@pytest.mark.parametrize("engine", STREAMS)
def test_no_batch_is_overwritten_on_a_gpu_unless_nobody_waits(coded_pack: Pack, engine: Engine) -> None:
    assert overwritten(coded_pack, engine, "gpu", BATCHES) == 0
    assert overwritten(coded_pack, engine, "gpu", 1000, careless=True) > 0, "a careless consumer is found"


def test_a_pool_that_overwrites_is_found(coded_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(pool: threads.BufferPool, batch: NDArray[Any], count: int) -> torch.Tensor:
        pool._free.append(batch)
        return torch.from_numpy(batch[:count])

    monkeypatch.setattr(threads.BufferPool, "wrap", wrap)
    assert overwritten(coded_pack, threads.stream, "cpu", 200) > 0


@needs_dali
def test_an_output_shares_its_memory_with_dali(coded_pack: Pack) -> None:
    """No copy: the tensor begins where DALI's output begins."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=2, num_threads=1, device_id=None, exec_dynamic=True)  # type: ignore[untyped-decorator]
    def constant() -> Any:
        return types.Constant(1.5, shape=[4], dtype=types.FLOAT) + fn.random.uniform(range=[0.0, 1.0])

    pipeline = constant()
    outputs = pipeline.run()
    tensor = dali.hand_over(SimpleNamespace(run=lambda _: outputs), "cpu")
    assert tensor.data_ptr() == outputs[0].as_tensor().data_ptr()
