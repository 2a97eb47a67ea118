"""model/step.py: one step by hand, and validation against torch's own functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from greyhound.model.step import loss_again, train_step, validate


def test_a_step_moves_against_the_gradient_at_the_rate_asked_for() -> None:
    network = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=123.0)
    images, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    loss = train_step(network, optimizer, images, labels, nn.CrossEntropyLoss(), 0.5, bf16=False)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)  # ln 2: both classes are as likely
    assert not loss.requires_grad
    assert network.weight.tolist() == [[0.25, 0.5], [-0.25, -0.5]]  # 0.5 times (1 - 1/2) times the image


def test_each_group_moves_at_its_share_of_the_rate() -> None:
    first, second = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    groups = [{"params": [first], "lr_scale": 0.5}, {"params": [second], "lr_scale": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0)

    class Sum(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images @ (first + second).T

    images, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    train_step(Sum(), optimizer, images, labels, nn.CrossEntropyLoss(), 0.5, bf16=False)
    assert second.tolist() == [[0.25, 0.5], [-0.25, -0.5]]
    assert first.tolist() == [[0.125, 0.25], [-0.125, -0.25]]


@pytest.mark.parametrize(("clip", "share"), [(0.0, 1.0), (2.0, 1.0), (0.5, 0.5 / 2.5**0.5)])
def test_a_longer_gradient_is_made_as_long_as_the_clip(clip: float, share: float) -> None:
    network = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    images, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    train_step(network, optimizer, images, labels, nn.CrossEntropyLoss(), 1.0, bf16=False, clip=clip)
    unclipped = torch.tensor([[0.5, 1.0], [-0.5, -1.0]])  # of length sqrt(2.5)
    torch.testing.assert_close(network.weight.detach(), share * unclipped)


def test_a_step_forgets_the_gradient_of_the_one_before() -> None:
    """Before it calls the network: in CUDA graphs that gradient is memory which the call writes to."""
    network = nn.Linear(2, 2, bias=False)
    network.register_forward_pre_hook(lambda *_: found.append(network.weight.grad))
    found: list[torch.Tensor | None] = []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    images, labels = torch.rand(4, 2), torch.tensor([0, 1, 1, 0])
    gradients = []
    for _ in range(2):
        train_step(network, optimizer, images, labels, nn.CrossEntropyLoss(), 0.0, bf16=False)
        assert network.weight.grad is not None
        gradients.append(network.weight.grad.clone())
    assert gradients[0].equal(gradients[1])
    assert found == [None, None]


def test_the_loss_after_a_step_is_that_of_the_next_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    images, labels = torch.rand(4, 2), torch.tensor([0, 1, 1, 0])
    train_step(network, optimizer, images, labels, nn.CrossEntropyLoss(), 0.5, bf16=False)
    before, random = (
        {name: value.clone() for name, value in network.state_dict().items()},
        torch.get_rng_state(),
    )
    found = loss_again(network, images, labels, nn.CrossEntropyLoss(), bf16=False)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert torch.get_rng_state().equal(random)
    assert found.equal(train_step(network, optimizer, images, labels, nn.CrossEntropyLoss(), 0.5, bf16=False))
    assert not network.state_dict()["1.running_mean"].equal(before["1.running_mean"])


def test_validation_is_torchs_cross_entropy_and_accuracy_over_uneven_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    images, labels = torch.rand(11, 5), torch.arange(11) % 3
    batches = [(images[start:stop], labels[start:stop]) for start, stop in ((0, 6), (6, 10), (10, 11))]
    found = validate(network.train(), batches, bf16=False)
    with torch.no_grad():
        logits = network.eval()(images)
    assert found["n"] == 11
    assert found["valid_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_no_images_to_validate_on() -> None:
    with pytest.raises(ValueError, match="no images to validate on"):
        validate(nn.Linear(1, 2), [], bf16=False)
