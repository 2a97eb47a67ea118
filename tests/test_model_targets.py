"""model/targets.py: soft targets by hand, for one view and for several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from greyhound.model.linear_probe import SoftTargets

PROBABILITIES = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.1, 0.1, 0.8]])
TARGETS = SoftTargets(torch.tensor([3, 5, 900]), PROBABILITIES, 0.5)


def test_a_target_lies_between_the_label_and_the_probabilities() -> None:
    found = TARGETS.of(torch.tensor([900, 3]), torch.tensor([0, 1]))
    assert found.tolist() == [pytest.approx([0.55, 0.05, 0.4]), pytest.approx([0.25, 0.65, 0.1])]


def test_every_view_of_an_image_has_its_target() -> None:
    found = TARGETS.of(torch.tensor([5, 3]), torch.tensor([1, 1, 0, 0]))
    assert found.tolist() == [[0, 1, 0], [0, 1, 0], *[pytest.approx([0.75, 0.15, 0.1])] * 2]


@pytest.mark.parametrize(("share", "expected"), [(0.0, [[0, 0, 1]]), (1.0, PROBABILITIES[:1].tolist())])
def test_no_share_is_the_label_and_a_whole_one_the_probabilities(
    share: float, expected: list[list[float]]
) -> None:
    targets = SoftTargets(TARGETS.ids, PROBABILITIES, share)
    assert targets.of(torch.tensor([3]), torch.tensor([2])).tolist() == expected


def test_a_rank_without_a_share_of_the_batch() -> None:
    assert TARGETS.of(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)).shape == (
        0,
        3,
    )


def test_an_image_without_a_target_of_its_own_has_its_label() -> None:
    """One between two of ours, and one after the last, as when an image was damaged while the head was solved."""
    found = TARGETS.of(torch.tensor([4, 901, 3]), torch.tensor([2, 1, 0]))
    assert found.tolist() == [[0, 0, 1], [0, 1, 0], pytest.approx([0.75, 0.15, 0.1])]


def test_the_share_of_a_rank_is_every_so_many_of_a_batch() -> None:
    """Torch warns of ids that do not lie side by side, and warnings are errors here."""
    ids = torch.tensor([900, 3, 5, 900])[::2]
    assert not ids.is_contiguous()
    assert TARGETS.of(ids, torch.tensor([2, 1])).shape == (2, 3)


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the reads of single values, for which a GPU's host would wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device() -> None:
    with Reads() as reads:
        TARGETS.of(torch.tensor([5, 3]), torch.tensor([1, 1, 0, 0]))
    assert reads.count == 0
