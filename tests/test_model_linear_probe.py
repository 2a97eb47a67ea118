"""model/linear_probe.py: the fitted layer is the logistic regression of the features that predict best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from runs import Patch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from greyhound.model import linear_probe
from greyhound.model.linear_probe import (
    FOLDS,
    PENALTIES,
    Solution,
    _likeliest,
    features,
    fit,
    set_head,
    solve,
)
from greyhound.model.network import GridFeatures, GridNetwork, Linear, build, features_of
from greyhound.model.run import RunError


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


def solved(
    network: Flat, rows: NDArray[np.float32], labels: NDArray[np.int64], pretrained: Linear | None = None
) -> Solution:
    """Solve on all columns, and give the network the head."""
    columns = {0: torch.arange(rows.shape[1])}
    ids, classes = torch.arange(len(labels)), network.fc.out_features
    found, head = solve(torch.from_numpy(rows), torch.from_numpy(labels), ids, classes, columns, pretrained)
    set_head(network, head)
    return found


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
def test_the_head_is_the_optimum_around_the_pretrained_rows(penalty: float, monkeypatch: Patch) -> None:
    """Where it stands, the penalty on the way from the pretrained rows balances the gradient of the loss."""
    rows, labels = blobs([0, 1, 2])
    monkeypatch.setattr("greyhound.model.linear_probe.PENALTIES", (penalty,))
    monkeypatch.setattr("greyhound.model.linear_probe._starts", lambda *given: {True: _likeliest(*given)})
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
        set_head(network, Linear(torch.zeros(3, 2), torch.zeros(3)))


@pytest.mark.parametrize("training", [True, False])
def test_features_are_what_the_head_sees(training: bool) -> None:
    network = Flat(12, 3).train(training)
    network.get_buffer("norm.running_mean").add_(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.tensor([2, 0, 1, 1, 0, 2, 2]), torch.arange(7) + 40
    batches = zip(*(torch.tensor_split(part, 3) for part in (images, labels, ids)), strict=True)
    rows, found, seen = features(features_of(network), batches, bf16=False)
    np.testing.assert_allclose(
        rows.numpy(), (2 * images.flatten(1).numpy() - 1) / np.sqrt(1 + 1e-5), rtol=1e-5
    )
    assert (found.tolist(), seen.tolist()) == (labels.tolist(), ids.tolist())
    assert [rows.dtype, found.dtype] == [torch.float32, torch.int64]
    assert network.norm.training is training
    for key, value in network.state_dict().items():
        assert value.equal(before[key])
    assert network.fc.weight.grad is None


# --- the last stages on a grid ------------------------------------------------------------------------------


def stages(network: Any, images: torch.Tensor, grid: int) -> torch.Tensor:
    """What a head of this grid sees, by hooks on the last two stages and slices of their maps."""
    seen: list[torch.Tensor] = []
    hooks = [
        network.get_submodule(info["module"]).register_forward_hook(lambda *found: seen.append(found[-1]))
        for info in network.feature_info[-2:]
    ]
    columns = [network.forward_head(network.forward_features(images), pre_logits=True)]
    for hook in hooks:
        hook.remove()
    for maps in seen if grid else []:
        edges = [(k * maps.shape[-1] // grid, -(-(k + 1) * maps.shape[-1] // grid)) for k in range(grid)]
        cells = [
            maps[:, :, top:bottom, left:right].mean((2, 3)) for top, bottom in edges for left, right in edges
        ]
        columns.append(torch.stack(cells, dim=2).flatten(1))
    return torch.cat(columns, dim=1)


@torch.no_grad()
def test_grid_features_are_the_means_of_the_stages_cells() -> None:
    torch.manual_seed(0)
    network = build("test_efficientnet", 3, "none").eval()
    images = torch.rand(2, 3, 96, 96)
    seen = GridFeatures(network, (0, 1, 3))
    values, columns = seen(images), seen.columns()
    assert values.shape[1] == columns[3].max() + 1
    for grid in (0, 1, 3):
        torch.testing.assert_close(values[:, columns[grid]], stages(network, images, grid))
    torch.testing.assert_close(GridFeatures(network, (3,))(images), stages(network, images, 3))


@torch.no_grad()
@pytest.mark.parametrize("grid", [0, 1, 3])
def test_a_timm_network_predicts_with_the_solved_head(grid: int) -> None:
    torch.manual_seed(0)
    network = build("test_efficientnet", 3, "none")
    labels = torch.arange(30) % 3
    images = torch.rand(30, 3, 64, 64) + labels.view(-1, 1, 1, 1) / 2
    seen = GridFeatures(network, [grid])
    rows = features(seen, [(images, labels, torch.arange(30))], bf16=False)
    found, head = solve(*rows, 3, seen.columns())
    network = GridNetwork(network, grid, 3) if grid else network
    set_head(network, head)
    assert found.grid == grid
    assert network.eval()(images).argmax(1).equal(labels)
    torch.testing.assert_close(network(images).double(), head(rows[0].double()), atol=1e-4, rtol=1e-4)
    again = build("test_efficientnet", 3, "none", grid=grid)
    again.load_state_dict(network.state_dict())
    assert again.eval()(images).equal(network(images))


def test_the_grid_that_predicts_best_is_chosen() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(120) % 2
    rows = random.normal(size=(120, 180)).astype(np.float32)
    columns = {
        grid: torch.cat([torch.arange(20), torch.arange(20, 100) + start])
        for grid, start in ((1, 0), (3, 80))
    }
    columns = {0: torch.arange(20)} | columns
    for grid, told in ((0, 1), (1, 30), (3, 130)):
        there = rows.copy()
        there[:, told] += 3 * labels
        found, head = solve(torch.from_numpy(there), torch.from_numpy(labels), torch.arange(120), 2, columns)
        assert found.grid == grid
        assert head.weight.shape == (2, len(columns[grid]))


def test_more_features_than_images_are_the_same_regression(monkeypatch: Patch) -> None:
    """Sklearn fits all 200 columns; we fit the triangle of the products of the 90 images."""
    rows, labels = blobs([0, 1, 2], width=200)
    network = Flat(200, 3)
    monkeypatch.setattr("greyhound.model.linear_probe.PENALTIES", (30.0,))
    solved(network, rows, labels)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / 30, max_iter=10_000, tol=1e-8))
    expected = reference.fit(rows.astype(np.float64), labels).decision_function(rows.astype(np.float64))
    found = logits(network, rows)
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected, atol=2e-3)


@pytest.mark.parametrize("rank", [0, 1, 30])
def test_the_triangle_has_the_products_of_images_that_depend_on_each_other(rank: int) -> None:
    rows = torch.randn(40, rank, dtype=torch.float64) @ torch.randn(rank, 60, dtype=torch.float64)
    products = rows @ rows.T
    triangle = linear_probe._triangle(products.clone())
    assert torch.equal(triangle, triangle.tril())
    found, scale = triangle @ triangle.T, max(1.0, float(products.diagonal().mean()))
    torch.testing.assert_close(found, products, rtol=0, atol=1e-7 * scale)


def test_a_triangle_that_rounding_forbids_gets_a_larger_ridge() -> None:
    products = torch.ones(3, 3, dtype=torch.float64) - 1e-6 * torch.eye(3, dtype=torch.float64)
    triangle = linear_probe._triangle(products.clone())
    torch.testing.assert_close(triangle @ triangle.T, products, rtol=0, atol=2e-5)


def test_images_that_are_all_alike_have_a_head_of_biases() -> None:
    rows, labels = torch.full((12, 40), 3.0), torch.arange(12) % 3
    _, head = solve(rows, labels, torch.arange(12), 3, {0: torch.arange(40)})
    assert not head.weight.any()
    torch.testing.assert_close(
        head.bias - head.bias.mean(), torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_each_start_is_searched_from_where_its_last_search_ended(monkeypatch: Patch) -> None:
    begun: list[tuple[int, int]] = []
    search = linear_probe._best_penalty

    def watched(*arguments: Any) -> tuple[int, torch.Tensor, float]:
        found = search(*arguments)
        begun.append((arguments[4], found[0]))
        return found

    monkeypatch.setattr(linear_probe, "_best_penalty", watched)
    rows, labels = (torch.from_numpy(part) for part in blobs([0, 1, 2], width=20))
    known = Linear(torch.randn(5, 10), torch.randn(5))
    solve(rows, labels, torch.arange(len(rows)), 3, {0: torch.arange(10), 1: torch.arange(20)}, known)
    (of_zero, of_known), later = begun[:2], begun[2:]
    assert [place for place, _ in later] == [of_zero[1], of_known[1]]
    assert of_zero[1] != of_known[1]


def test_features_that_are_not_finite_are_refused_by_row() -> None:
    rows, labels = (torch.from_numpy(part) for part in blobs([0, 1, 2]))
    rows[4, 2] = torch.nan
    with pytest.raises(
        RunError, match="features of 1 images are not finite, of row 1004 for one; add --precision"
    ):
        solve(rows, labels, torch.arange(len(rows)) + 1000, 3, {0: torch.arange(6)})


def test_the_order_of_the_images_does_not_matter() -> None:
    rows, labels = (torch.from_numpy(part) for part in blobs([0, 1, 2]))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    columns, ids = {0: torch.arange(6)}, torch.arange(len(rows))
    one, other = (solve(rows[way], labels[way], ids[way], 3, columns)[1] for way in (ids, order))
    assert one.weight.equal(other.weight)
    assert one.bias.equal(other.bias)


def test_a_feature_that_is_rounding_alone_has_no_weight() -> None:
    rows, labels = blobs([0, 1, 2])
    rows[:, 0] = np.float32(3000) + np.float32(2**-12) * (labels == 1)
    network = Flat(6, 3)
    solved(network, rows, labels)
    assert network.fc.weight[:, 0].abs().max() < 0.1, "standardised it would be in the thousands"


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
    batches = [(images, torch.arange(2), torch.arange(2))]
    exact, coarse = (features(features_of(network), batches, bf16)[0] for bf16 in (False, True))
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().max() < 0.02 * exact.abs().max()


def test_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        features(features_of(Flat(2, 2)), [], bf16=False)


def test_class_weights_count_as_copies_of_the_images_would() -> None:
    """Six images of one class, two of the other, each as heavy as three: as if they were there three times."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0] * 6 + [1] * 2)
    copied = torch.cat([rows, rows[6:], rows[6:]]), torch.cat([targets, targets[6:], targets[6:]])
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)[targets] * 8 / 12
    nothing = torch.zeros(12, 2, dtype=torch.float64)
    expected = fit(*copied, nothing, 12.0)
    found = fit(rows, targets, nothing[:8], 8.0, weights=weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_images_of_weight_0_change_no_head_and_weights_go_with_their_images() -> None:
    """In any order; the third class has images of weight 0 alone, and is as one without images."""
    generator = torch.Generator().manual_seed(0)
    labels, weights = torch.tensor([0, 1] * 15 + [2] * 6), torch.tensor([1.0, 2.0, 0.5] * 10 + [0.0] * 6)
    rows = torch.randn(36, 4, generator=generator) + 1.2 * labels[:, None]
    columns, order = {0: torch.arange(4)}, torch.randperm(36, generator=generator)
    expected = solve(rows[:30], labels[:30], torch.arange(30), 3, columns, None, weights[:30])
    found = solve(rows[order], labels[order], order, 3, columns, None, weights[order])
    plain = solve(rows[:30], labels[:30], torch.arange(30), 3, columns)
    assert found[0] == expected[0]
    assert found[1].weight.equal(expected[1].weight) and found[1].bias.equal(expected[1].bias)
    assert (plain[1].weight - expected[1].weight).abs().max() > 0.01


def test_a_rare_class_is_found_where_classes_weigh_the_same() -> None:
    """Two classes that overlap, 190 images and 10: the plain head calls all common."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 190 + [1] * 10)
    rows = torch.randn(200, 4, generator=generator) + 1.2 * labels[:, None]
    columns, ids = {0: torch.arange(4)}, torch.arange(200)
    recalls = []
    for weights in (None, torch.tensor([200 / 380, 200 / 20])):
        of_images = None if weights is None else weights[labels]
        _, head = solve(rows, labels, ids, 2, columns, None, of_images)
        recalls.append(float((head(rows.double()).argmax(1) == 1)[labels == 1].float().mean()))
    assert recalls[1] >= recalls[0] + 0.1
    assert recalls[1] >= 0.8


def test_a_penalty_at_the_end_of_its_range_is_said() -> None:
    said = [
        str(linear_probe.Solution(0, penalty, False, 0.1, 0.9, torch.zeros(1, 2)))
        for penalty in (linear_probe.PENALTIES[0], 3.0, linear_probe.PENALTIES[-1])
    ]
    assert said == [
        "from zero, penalty 100000 (the highest tried), out of fold acc = 0.900",
        "from zero, penalty 3, out of fold acc = 0.900",
        "from zero, penalty 0.1 (the lowest tried), out of fold acc = 0.900",
    ]
