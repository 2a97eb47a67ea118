"""model/linear_probe.py: the fitted layer is the logistic regression; soft targets by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reads import host_reads
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from greyhound.model.linear_probe import (
    FOLDS,
    PENALTIES,
    SoftTargets,
    Solution,
    _likeliest,
    features,
    fit,
    solve,
)
from greyhound.model.network import Linear, build


class Flat(nn.Module):
    """As much of a timm network as the probe needs: features are the doubled pixels after BatchNorm."""

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


def solved(network: Flat, rows: NDArray[np.float32], labels: NDArray[np.int64], **more: Any) -> Solution:
    return solve(network, torch.from_numpy(rows), torch.from_numpy(labels), **more)


@pytest.mark.parametrize("penalty", [100.0, 1.0])
def test_a_fit_is_sklearns_logistic_regression(penalty: float) -> None:
    rows, labels = blobs([0, 1, 2, 3])
    scaled = StandardScaler().fit_transform(rows.astype(np.float64))
    expected = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-8).fit(scaled, labels)
    offset = torch.zeros(len(labels), 4, dtype=torch.float64)
    found = fit(torch.from_numpy(scaled), torch.from_numpy(labels), offset, penalty).numpy()
    np.testing.assert_allclose(found[:-1].T, expected.coef_, atol=2e-4)
    np.testing.assert_allclose(found[-1] - found[-1].mean(), expected.intercept_, atol=2e-4)


def test_the_head_is_the_regression_of_the_penalty_that_predicts_best_out_of_fold() -> None:
    rows, labels = blobs([0, 1, 2, 3])
    network = Flat(6, 4)
    solution = solved(network, rows, labels)
    assert not solution.from_pretrained
    order = [np.flatnonzero(labels == label) for label in range(4)]
    fold = np.empty(len(labels), dtype=np.int64)
    for members in order:
        fold[members] = np.arange(len(members)) % FOLDS
    losses, chances = {}, {}
    scaled = StandardScaler().fit_transform(rows.astype(np.float64))
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / penalty, max_iter=10_000)
        chances[penalty] = cross_val_predict(
            model, scaled, labels, cv=PredefinedSplit(fold), method="predict_proba"
        )
        losses[penalty] = log_loss(labels, chances[penalty])
    assert solution.penalty == min(losses, key=lambda penalty: losses[penalty])
    assert solution.cross_entropy == pytest.approx(losses[solution.penalty], rel=1e-2)
    np.testing.assert_allclose(solution.probabilities, chances[solution.penalty], atol=0.02)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / solution.penalty, max_iter=10_000))
    expected = reference.fit(rows.astype(np.float64), labels).decision_function(rows.astype(np.float64))
    found = logits(network, rows)
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected, atol=2e-3)


def test_a_pretrained_classifier_that_knows_the_classes_is_where_the_head_starts() -> None:
    """On a tenth of the images the regression alone stays far behind the classifier that made the labels."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 60))
    rows = random.normal(size=(4000, 60)).astype(np.float32)
    taken = (rows @ weight.T).argmax(1)
    known = [7, 23, 31]
    chosen = np.isin(taken, known)
    rows, labels = rows[chosen], np.searchsorted(known, taken[chosen])
    pretrained = Linear(torch.from_numpy(weight), torch.zeros(40, dtype=torch.float64))
    alone, started = Flat(60, 3), Flat(60, 3)
    solved(alone, rows[:60], labels[:60])
    solution = solved(started, rows[:60], labels[:60], pretrained=pretrained)
    assert solution.from_pretrained
    right = [(logits(network, rows[60:]).argmax(1) == labels[60:]).mean() for network in (alone, started)]
    assert right[1] > right[0] + 0.05
    assert right[1] > 0.97


def test_a_pretrained_classifier_that_misleads_is_left_alone() -> None:
    rows, labels = blobs([0, 1, 2])
    random = np.random.default_rng(3)
    weight = torch.from_numpy(100 * random.normal(size=(50, 6)))
    network, alone = Flat(6, 3), Flat(6, 3)
    solution = solved(network, rows, labels, pretrained=Linear(weight, weight.new_zeros(50)))
    assert not solution.from_pretrained
    solved(alone, rows, labels)
    np.testing.assert_allclose(logits(network, rows), logits(alone, rows), atol=1e-6)


@pytest.mark.parametrize("penalty", [1e12, 30.0])
def test_the_head_is_the_optimum_around_the_pretrained_rows(
    penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it stands, the penalty on the way from the pretrained rows balances the gradient of the loss."""
    rows, labels = blobs([0, 1, 2])
    chosen = Solution(penalty, True, 0.0, 0.0, torch.zeros(len(rows), 3))
    monkeypatch.setattr("greyhound.model.linear_probe._search", lambda *_: chosen)
    scale = rows.astype(np.float64).std(0)
    random = np.random.default_rng(5)
    weight, bias = random.normal(size=(9, 6)) / scale, random.normal(size=9)
    taken = (rows @ weight.T + bias).argmax(1)
    likeliest = [np.bincount(taken[labels == label], minlength=9).argmax() for label in range(3)]
    network = Flat(6, 3)
    solved(network, rows, labels, pretrained=Linear(torch.from_numpy(weight), torch.from_numpy(bias)))
    away = (network.fc.weight.detach().numpy() - weight[likeliest]) * scale
    found = logits(network, rows)
    chances = np.exp(found - found.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    wrong = chances - np.eye(3)[labels]
    np.testing.assert_allclose(wrong.sum(0), 0, atol=0.05)  # the biases are free
    if penalty > 1e6:
        np.testing.assert_allclose(away, 0, atol=1e-5)
        return
    scaled = (rows - rows.astype(np.float64).mean(0)) / scale
    assert np.abs(away).max() > 0.1
    np.testing.assert_allclose(-(wrong.T @ scaled), penalty * away, atol=0.05)


def test_pretrained_rows_are_chosen_with_their_biases() -> None:
    """Of rows that differ in nothing but the bias the one with the largest is what images are taken for."""
    rows, labels = blobs([0, 1])
    weight = torch.zeros(3, 6, dtype=torch.float64)
    bias = torch.tensor([0.0, 5.0, 1.0], dtype=torch.float64)
    start = _likeliest(torch.from_numpy(rows).double(), torch.from_numpy(labels), 2, Linear(weight, bias))
    assert start.bias.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1], [0, 0, 0, 1]])
def test_a_head_of_very_few_images(labels: list[int]) -> None:
    network = Flat(4, 3)
    rows = np.eye(len(labels), 4, dtype=np.float32)
    solution = solved(network, rows, np.array(labels))
    assert np.isfinite(solution.cross_entropy)
    assert (logits(network, rows).argmax(1) == labels).mean() >= 0.5


def test_two_classes() -> None:
    rows, labels = blobs([0, 1])
    network = Flat(6, 2)
    penalty = solved(network, rows, labels).penalty
    # of two classes sklearn gives the difference of their rows, which has twice the square of both
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=2 / penalty)).fit(rows, labels)
    found = logits(network, rows)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], reference.decision_function(rows), atol=5e-3)


@pytest.mark.parametrize("present", [[0, 2, 5], [1, 3]])
def test_a_class_without_images_is_never_predicted(present: list[int]) -> None:
    rows, labels = blobs(present)
    network = Flat(6, 6)
    solution = solved(network, rows, labels)
    found = logits(network, rows)
    absent = [label for label in range(6) if label not in present]
    assert (solution.probabilities[:, absent] == 0).all()
    torch.testing.assert_close(solution.probabilities.sum(1), torch.ones(len(rows)))
    assert np.isfinite(found).all()
    assert set(found.argmax(1)) == set(present)
    np.testing.assert_allclose(found[:, absent], found[:, present].min() - 10, atol=1e-3)
    alone = Flat(6, len(present))
    solved(alone, rows, np.searchsorted(present, labels))
    np.testing.assert_allclose(found[:, present], logits(alone, rows), atol=1e-3)


def test_a_feature_that_never_changes() -> None:
    rows, labels = blobs([0, 1, 2], width=20)
    rows[:, 0] = 3
    network = Flat(20, 3)
    solved(network, rows, labels)
    assert network.fc.weight[:, 0].tolist() == [0, 0, 0]
    assert (logits(network, rows).argmax(1) == labels).mean() > 0.8


def test_separable_features_have_a_finite_head() -> None:
    rows, labels = blobs([0, 1, 2])
    rows[:, 5] = 1000 * labels
    network = Flat(6, 3)
    solved(network, rows, labels)
    assert np.isfinite(logits(network, rows)).all()
    assert (logits(network, rows).argmax(1) == labels).mean() > 0.9


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
        solved(Flat(2, 3), np.eye(3, 2, dtype=np.float32), np.array(labels))


def test_a_head_that_is_not_linear() -> None:
    network = Flat(2, 3)
    network.fc = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the head is Identity; expected a linear layer"):
        solved(network, np.eye(3, 2, dtype=np.float32), np.arange(3))


@pytest.mark.parametrize("training", [True, False])
def test_features_are_what_the_head_sees(training: bool) -> None:
    network = Flat(12, 3).train(training)
    network.get_buffer("norm.running_mean").add_(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    batches = [(images[start:stop], labels[start:stop]) for start, stop in pairwise((0, 3, 4, 7))]
    rows, found = features(network, batches, bf16=False)
    np.testing.assert_allclose(
        rows.numpy(), (2 * images.flatten(1).numpy() - 1) / np.sqrt(1 + 1e-5), rtol=1e-5
    )
    assert found.tolist() == [2, 0, 1, 1, 0, 2, 2]
    assert [rows.dtype, found.dtype] == [torch.float32, torch.int64]
    assert network.norm.training is training
    for key, value in network.state_dict().items():
        assert value.equal(before[key])
    assert network.fc.weight.grad is None


def test_a_timm_network_predicts_with_the_solved_head() -> None:
    torch.manual_seed(0)
    network = build("test_efficientnet", 3, "none")
    labels = torch.arange(30) % 3
    images = torch.rand(30, 3, 32, 32) + labels.view(-1, 1, 1, 1) / 2
    solve(network, *features(network, [(images, labels)], bf16=False))
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
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().max() < 0.02 * exact.abs().max()


def test_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        features(Flat(2, 2), [], bf16=False)


# --- soft targets -----------------------------------------------------------------------------------------


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
    """One between two of ours and one after the last, as when an image was corrupt at the linear probe."""
    found = TARGETS.of(torch.tensor([4, 901, 3]), torch.tensor([2, 1, 0]))
    assert found.tolist() == [[0, 0, 1], [0, 1, 0], pytest.approx([0.75, 0.15, 0.1])]


def test_the_share_of_a_rank_is_every_so_many_of_a_batch() -> None:
    """Torch warns of ids that do not lie side by side, and warnings are errors here."""
    ids = torch.tensor([900, 3, 5, 900])[::2]
    assert not ids.is_contiguous()
    assert TARGETS.of(ids, torch.tensor([2, 1])).shape == (2, 3)


def test_nothing_is_read_from_the_device() -> None:
    with host_reads() as found:
        TARGETS.of(torch.tensor([5, 3]), torch.tensor([1, 1, 0, 0]))
    assert found == []
