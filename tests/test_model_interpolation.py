"""model/interpolation.py: weights on the line, buffers of its end, both ends left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from greyhound.model.averaging import interpolated


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_lie_on_the_line_and_buffers_at_its_end(share: float) -> None:
    first, last = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    last.load_state_dict(last.state_dict() | {"1.running_mean": torch.ones(3)})
    before = [{key: value.clone() for key, value in end.state_dict().items()} for end in (first, last)]
    found = interpolated(first, last, share).state_dict()
    for key in ("0.weight", "0.bias", "1.weight"):
        torch.testing.assert_close(found[key], (1 - share) * before[0][key] + share * before[1][key])
    assert found["1.running_mean"].tolist() == [1, 1, 1]
    for end, was in zip((first, last), before, strict=True):
        assert all(value.equal(was[key]) for key, value in end.state_dict().items())
