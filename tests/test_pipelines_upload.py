"""pipelines/upload.py: nobody waits for a copy, and its source is held until it is made."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from greyhound.pipelines.engine import ToDevice


class Event:
    """As torch.cuda.Event, of a stream that comes by when the test says so."""

    made: list[Event]

    def __init__(self) -> None:
        self.recorded = self.passed = False
        self.made.append(self)

    def record(self) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.passed


def test_the_source_of_a_copy_is_held_until_the_copy_is_made() -> None:
    Event.made = []
    upload, sources = ToDevice(torch.device("meta"), Event), []  # any device that is not the host's
    for turn in range(3):
        tensor = torch.full((2,), float(turn))
        sources.append(weakref.ref(tensor))
        assert upload(tensor).device.type == "meta"
        del tensor
        if turn == 1:
            Event.made[0].passed = True
    gc.collect()
    assert [event.recorded for event in Event.made] == [True] * 3
    assert [source() is None for source in sources] == [True, False, False]


def test_what_is_there_already_is_handed_back() -> None:
    tensor = torch.ones(2)
    assert ToDevice(torch.device("cpu"))(tensor) is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_copy_to_a_gpu_does_not_wait_for_what_is_queued_before_it() -> None:
    upload, source = ToDevice(torch.device("cuda")), torch.ones(1000).pin_memory()
    upload(source)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # type: ignore[no-untyped-call]
    found, busy = upload(source), not torch.cuda.current_stream().query()
    assert busy, "the copy is still queued behind the pause"
    assert found.sum().item() == 1000
