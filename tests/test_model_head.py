"""The solved head is the logistic regression, to the last class."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from model.head import features, solve
from model.network import build


class Flat(nn.Module):
    """As much of a timm network as the head needs: the pixels, doubled and with BatchNorm, are the features."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(width)
        self.fc = nn.Linear(width, classes)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(2 * images.flatten(1))
        return normed

    def forward_head(self, pooled: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        result: torch.Tensor = pooled if pre_logits else self.fc(pooled)
        return result

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Linear:
        return self.fc


def blobs(classes: list[int], width: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """30 features of each class around a place of its own, the columns of very different scale."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.array(classes), 30)
    centres = random.normal(size=(max(classes) + 1, width))
    rows = centres[labels] + random.normal(size=(len(labels), width))
    return (rows * 10.0 ** (np.arange(width) % 6 - 3) + 5).astype(np.float32), labels


def logits(network: nn.Module, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.no_grad():
        head = network.get_submodule("fc")
        result: NDArray[np.float64] = head.double()(torch.from_numpy(rows).double()).numpy()
    return result


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_logits_are_sklearns_decision_function(strength: float) -> None:
    rows, labels = blobs([0, 1, 2, 3])
    network = Flat(6, 4)
    solve(network, rows, labels, strength)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=10_000))
    expected = reference.fit(rows.astype(np.float64), labels).decision_function(rows.astype(np.float64))
    np.testing.assert_allclose(logits(network, rows), expected, atol=2e-4)


def test_two_classes() -> None:
    rows, labels = blobs([0, 1])
    network = Flat(6, 2)
    solve(network, rows, labels)
    reference = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows.astype(np.float64), labels)
    found = logits(network, rows)
    expected = reference.decision_function(rows.astype(np.float64))
    np.testing.assert_allclose(found[:, 1] - found[:, 0], expected, atol=2e-4)
    np.testing.assert_allclose(found.sum(1), 0, atol=2e-4)


@pytest.mark.parametrize("present", [[0, 2, 5], [1, 3]])
def test_a_class_without_images_is_never_predicted(present: list[int]) -> None:
    rows, labels = blobs(present)
    network = Flat(6, 6)
    solve(network, rows, labels)
    found = logits(network, rows)
    absent = [label for label in range(6) if label not in present]
    assert np.isfinite(found).all()
    assert set(found.argmax(1)) == set(present)
    np.testing.assert_allclose(found[:, absent], found[:, present].min() - 10, atol=1e-3)
    alone = Flat(6, len(present))
    solve(alone, rows, np.searchsorted(present, labels))
    np.testing.assert_allclose(found[:, present], logits(alone, rows), atol=1e-3)


def test_a_feature_that_never_changes() -> None:
    rows, labels = blobs([0, 1, 2], width=20)
    rows[:, 0] = 3
    network = Flat(20, 3)
    solve(network, rows, labels)
    assert network.fc.weight[:, 0].tolist() == [0, 0, 0]
    assert (logits(network, rows).argmax(1) == labels).mean() > 0.8


def test_separable_features_warn_of_nothing() -> None:
    """Warnings are errors here; without a limit on the weights the optimum lies at infinity."""
    rows, labels = blobs([0, 1, 2])
    rows[:, 5] = 1000 * labels
    solve(Flat(6, 3), rows, labels, strength=1e12)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 3], "0 to 3; expected 0 to 2"),
        ([-1, 0, 1], "-1 to 1; expected"),
        ([1, 1, 1], "all labels are 1"),
    ],
)
def test_labels_that_no_head_fits(labels: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        solve(Flat(2, 3), np.eye(3, 2, dtype=np.float32), np.array(labels))


def test_a_head_that_is_not_linear() -> None:
    network = Flat(2, 3)
    network.fc = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the head is Identity; expected a linear layer"):
        solve(network, np.eye(3, 2, dtype=np.float32), np.arange(3))


@pytest.mark.parametrize("training", [True, False])
def test_features_are_what_the_head_sees(training: bool) -> None:
    network = Flat(12, 3).train(training)
    network.get_buffer("norm.running_mean").add_(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    batches = [(images[start:stop], labels[start:stop]) for start, stop in pairwise((0, 3, 4, 7))]
    rows, found = features(network, batches, bf16=False)
    np.testing.assert_allclose(rows, (2 * images.flatten(1).numpy() - 1) / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert found.tolist() == [2, 0, 1, 1, 0, 2, 2]
    assert [rows.dtype.name, found.dtype.name] == ["float32", "int64"]
    assert network.norm.training is training
    for key, value in network.state_dict().items():
        assert value.equal(before[key])
    assert network.fc.weight.grad is None


def test_a_timm_network_predicts_with_the_solved_head() -> None:
    torch.manual_seed(0)
    network = build("test_efficientnet", 3, "none")
    labels = torch.arange(30) % 3
    images = torch.rand(30, 3, 32, 32) + labels.view(-1, 1, 1, 1) / 2
    solve(network, *features(network, [(images, labels)], bf16=False), strength=100.0)
    with torch.no_grad():
        assert network.eval()(images).argmax(1).equal(labels)


class Deep(Flat):
    """A layer before it that autocast computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.layer = nn.Linear(12, 8)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(images.flatten(1))
        return hidden


def test_bfloat16_is_near_and_comes_back_as_float32() -> None:
    network = Deep()
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    exact, _ = features(network, [(images, torch.arange(2))], bf16=False)
    coarse, _ = features(network, [(images, torch.arange(2))], bf16=True)
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.02 * np.abs(exact).max()


def test_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        features(Flat(2, 2), [], bf16=False)
