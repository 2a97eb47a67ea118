"""model/targets.py: soft targets by hand, for one view and for several."""

from __future__ import annotations

import pytest
import torch

from model.targets import SoftTargets

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
