"""Fit the last layer to frozen features: a logistic regression, its settings chosen by cross-validation.

Before it: a pretrained network with a random head. After it: the network is a classifier; train may
fine-tune all of it, from a head that is no longer random (Kumar et al. 2022, "Fine-Tuning can Distort
Pretrained Features").

Three things are chosen by what predicts best out of fold. Which features: the last layer's alone, or beside
them the last stages' on a grid (`network.GridFeatures`). The penalty. And where the weights start: from zero,
or from the pretrained class that the images of each class are most often taken for (L2-SP, Li et al. 2018,
"Explicit Inductive Bias for Transfer Learning with Convolutional Networks").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from greyhound.model.imports import without_compiler
from greyhound.model.network import Linear, eval_mode
from greyhound.model.precision import exact_products, forward
from greyhound.model.run import RecipeError

Rows: TypeAlias = torch.Tensor
"""Float `[n, D]`: what the head sees of n images."""

PENALTIES: Final = (1e5, 3e4, 1e4, 3e3, 1e3, 3e2, 1e2, 3e1, 1e1, 3e0, 1e0, 3e-1, 1e-1)
"""On half the squared distance of the weights, of standardised features, from where they start."""
FOLDS: Final = 3
SAMPLE: Final = 1000
"""Of more images than these, about so many choose features and start; all choose the penalty, and are fitted.

It costs as much as the images times the features. 1,000 is a guess from four sets (docs/log.md).
"""
_STEPS: Final = 500
_ROUGHLY: Final = 20
"""Steps that are enough to compare penalties."""
_ABSENT: Final = 10.0
"""How far below the lowest logit of any image a class without images is put."""
_ROUNDING: Final = 1e-6
"""A spread that is less than this share of a feature's mean is float32's rounding."""
_RIDGE: Final = 1e-8
"""Added to the products of images, as a share: some images depend on others, and float64 rounds."""


@dataclass(frozen=True)
class Solution:
    """A head, how it was chosen, and what such heads say of the images out of their fold.

    grid: of the features, see `network.GridFeatures`. probabilities: float32 `[n, K]`, of the images in their
    order, in host memory. cross_entropy (nats) and accuracy: theirs; the first one decided.
    """

    grid: int
    penalty: float
    from_pretrained: bool
    cross_entropy: float
    accuracy: float
    probabilities: Rows = field(repr=False, compare=False)

    def __str__(self) -> str:
        """For the log."""
        start = "the pretrained classifier" if self.from_pretrained else "zero"
        grid = f"stages on a {self.grid} x {self.grid} grid, " if self.grid else ""
        ends = {PENALTIES[0]: " (the highest tried)", PENALTIES[-1]: " (the lowest tried)"}
        penalty = f"penalty {self.penalty:g}{ends.get(self.penalty, '')}"
        return f"{grid}from {start}, {penalty}, out of fold acc = {self.accuracy:.3f}"


@torch.no_grad()
def features(
    network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], bf16: bool
) -> tuple[Rows, torch.Tensor, torch.Tensor]:
    """What the head sees, float32 `[n, D]`, the labels, int64 `[n]`, and the ids, `[n]`, of one pass.

    network: gives features, see `network.features_of`; it is left as it was. batches: images, labels, ids.
    bf16: compute in bfloat16 where autocast allows. Raises ValueError if there is no batch.
    """
    parts = []
    with eval_mode(network):
        for images, labels, ids in batches:
            parts.append((forward(network, images, bf16), labels, ids))
    if not parts:
        raise ValueError("there are no images to fit a linear probe to; expected at least one batch")
    values, targets, rows = (torch.cat(column) for column in zip(*parts, strict=True))
    return values, targets, rows


@exact_products()
def solve(
    features: Rows,
    labels: torch.Tensor,
    ids: torch.Tensor,
    classes: int,
    columns: Mapping[int, torch.Tensor],
    pretrained: Linear | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[Solution, Linear]:
    """The penalised logistic regression of labels int64 `[n]`, 0..K-1, on features float32 `[n, D]`.

    ids: int64 `[n]`; the result depends on the images, not on their order. columns: the features of each
    grid to choose among, see `GridFeatures.columns`. pretrained: the classifier that the network was trained
    with, on the features of grid 0. weights: `[n]`, by which an image's cross entropy is multiplied, in
    fitting and in choosing; their mean is 1, and an image of weight 0 is left out. The features are
    standardised for the penalty, and the head takes them as they are. A class without images gets a constant
    logit below all others. Raises
    ValueError if the labels are not of two classes or more in 0..K-1, RecipeError if a feature is not finite.
    """
    _check(labels, classes)
    if not features.isfinite().all():
        wrong = ids[~features.isfinite().all(1).cpu()].tolist()
        what = f"the features of {len(wrong)} images are not finite, of row {wrong[0]} for one"
        raise RecipeError(f"{what}; add --precision fp32, or choose another --network or --weights")
    order = ids.argsort().to(labels.device)
    if weights is not None:
        weights = weights.to(features.device)
        order = order[weights[order] > 0]
        weights = weights[order].double()
    present, targets = torch.unique(labels[order], return_inverse=True)
    values = features[order]
    starts, some = _starts(values, targets, len(present), pretrained), _sample(targets)
    of_some = None if weights is None else weights[some]
    of_all = len(some) == len(targets)
    found, problem, start = _choose(
        values if of_all else values[some], targets[some], columns, starts, _folds(targets[some]), of_some
    )
    if not of_all:
        chosen_columns, chosen_starts = {found.grid: columns[found.grid]}, {found.from_pretrained: start}
        found, problem, start = _choose(
            values, targets, chosen_columns, chosen_starts, _folds(targets), weights, found.penalty
        )
    # Single precision goes most of the way in a third of the time.
    offset = _offset(start, values)
    near = fit(problem.rows.float(), targets, offset.float(), found.penalty, weights=weights)
    fitted = fit(problem.rows, targets, offset, found.penalty, near.double(), weights=weights)
    weight, bias = problem.head(fitted)
    weight[:, : start.weight.shape[1]] += start.weight
    bias += start.bias
    chosen = values[:, columns[found.grid].to(values.device)].double()
    head = Linear(weight.new_zeros(classes, weight.shape[1]), bias.new_zeros(classes))
    head.bias.fill_(float((chosen @ weight.T + bias).min()) - _ABSENT)
    head.weight[present], head.bias[present] = weight, bias
    return found, Linear(head.weight.cpu(), head.bias.cpu())


@exact_products()
def out_of_fold(
    features: Rows, labels: torch.Tensor, folds: torch.Tensor, pretrained: Linear | None = None
) -> Solution:
    """How heads that are each fitted without a fold do on it: the best settings, and the probabilities.

    features: float32 `[n, D]`. labels: int64 `[n]`, 0..K-1, each of them there. folds: int64 `[n]`, 0..F-1.
    Penalty and start are chosen as in `solve`, over these folds. Raises ValueError if there are fewer than
    two classes.
    """
    _check(labels, int(labels.max()) + 1)
    columns = {0: torch.arange(features.shape[1])}
    starts = _starts(features, labels, int(labels.max()) + 1, pretrained)
    return _choose(features, labels, columns, starts, folds)[0]


def set_head(network: nn.Module, head: Linear) -> None:
    """Give a network's head these weights. Raises ValueError if it is not linear."""
    layer = classifier(network)
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        layer.bias.copy_(head.bias)


def fit(
    rows: Rows,
    targets: torch.Tensor,
    offset: torch.Tensor,
    penalty: float,
    begin: torch.Tensor | None = None,
    steps: int = _STEPS,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[D + 1, K]`, weights and below them biases, that minimise the penalised cross entropy, by L-BFGS.

    That is the sum over the images of the cross entropy of `offset + rows @ weights + biases` against targets
    int64 `[n]`, and penalty / 2 times the sum of the squared weights. offset: `[n, K]`. begin: where to
    begin; default zero. weights: `[n]`, of each image's cross entropy; their mean is 1.
    """
    found = rows.new_zeros(rows.shape[1] + 1, offset.shape[1]) if begin is None else begin.clone()
    found.requires_grad_()
    with without_compiler():
        search = torch.optim.LBFGS(
            [found],
            max_iter=steps,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

    def loss() -> torch.Tensor:
        found.grad = None  # `zero_grad` would import torch's compiler
        fitted = _cross_entropy(offset + rows @ found[:-1] + found[-1], targets, weights)
        value = fitted + penalty / (2 * len(rows)) * found[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return found.detach()


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The mean over the images, each times its weight."""
    if weights is None:
        return functional.cross_entropy(logits, targets)
    return (functional.cross_entropy(logits, targets, reduction="none") * weights.to(logits)).mean()


def classifier(network: Any) -> nn.Linear:
    """The head of a timm network. Raises ValueError if it cannot be solved, because it is not linear."""
    head = network.get_classifier()
    if not isinstance(head, nn.Linear) or head.bias is None:
        found = f"the head is {type(head).__name__}; expected a linear layer with a bias"
        raise ValueError(f"{found}: add --no-linear-probe --epochs 1, or choose another --network")
    return head


class _Problem:
    """Standardised features, `rows` `[n, r]`, in as few columns as they need: no more than there are images.

    A rotation changes no penalty. So of more features than images, the triangle L of the images' products,
    L L^T, is enough: its rows have the same lengths and angles.
    """

    def __init__(self, values: Rows) -> None:
        """values: `[n, D]`."""
        self.mean, self.scale = values.mean(0), values.std(0, correction=0)
        self.scale[self.scale <= _ROUNDING * self.mean.abs()] = 1
        self.rows = self._features = (values - self.mean) / self.scale
        if self.rows.shape[0] < self.rows.shape[1]:
            self.rows = _triangle(self.rows @ self.rows.T)

    def head(self, fitted: Rows) -> tuple[Rows, Rows]:
        """Weights `[K, D]` and biases `[K]` for the features as they were, of what `fit` found."""
        weights = fitted[:-1]
        if self.rows is not self._features:
            weights = self._features.T @ torch.linalg.solve_triangular(self.rows.T, weights, upper=True)
        weights = weights / self.scale[:, None]
        return weights.T.contiguous(), fitted[-1] - self.mean @ weights


def _triangle(products: torch.Tensor) -> torch.Tensor:
    """The lower triangle L with L L^T = products, `[n, n]`, to which a ridge is added, in place."""
    ridge = _RIDGE * products.diagonal().mean().clamp(min=1)
    while True:
        products.diagonal().add_(ridge)
        triangle: torch.Tensor
        triangle, failed = torch.linalg.cholesky_ex(products)
        if not failed:
            return triangle
        ridge *= 10


def _choose(
    values: Rows,
    targets: torch.Tensor,
    columns: Mapping[int, torch.Tensor],
    starts: Mapping[bool, Linear],
    folds: torch.Tensor,
    weights: torch.Tensor | None = None,
    penalty: float | None = None,
) -> tuple[Solution, _Problem, Linear]:
    """The settings whose images out of fold have the least cross entropy, their features, and their start.

    starts: by whether they are of the pretrained classifier. penalty: where to begin; default the middle.
    """
    best: tuple[Solution, _Problem, Linear] | None = None
    middle = len(PENALTIES) // 2 if penalty is None else PENALTIES.index(penalty)
    places = dict.fromkeys(starts, middle)  # where the search was last: near to where the next one ends
    for grid, chosen in columns.items():
        problem = _Problem(values[:, chosen.to(values.device)].double())
        rows = problem.rows.float()
        for from_pretrained, start in starts.items():
            offset = _offset(start, values).float()
            place = places[from_pretrained]
            place, logits, loss = _best_penalty(rows, targets, offset, folds, place, weights)
            places[from_pretrained] = place
            if best is None or loss < best[0].cross_entropy:
                right = float((logits.argmax(1) == targets).float().mean())
                probabilities = logits.softmax(1).cpu()
                found = Solution(grid, PENALTIES[place], from_pretrained, loss, right, probabilities)
                best = found, problem, start
    assert best is not None
    return best


def _best_penalty(
    rows: Rows,
    targets: torch.Tensor,
    offset: torch.Tensor,
    folds: torch.Tensor,
    place: int,
    weights: torch.Tensor | None,
) -> tuple[int, torch.Tensor, float]:
    """The best of `PENALTIES`, looked for from `place` on, first among weaker ones; its logits and loss."""
    fitted: dict[int, list[torch.Tensor]] = {}
    found: dict[int, tuple[torch.Tensor, float]] = {}

    def loss_at(place: int, nearby: int) -> float:
        if place not in found and 0 <= place < len(PENALTIES):
            logits, fitted[place] = _logits_out_of_fold(
                rows, targets, offset, folds, PENALTIES[place], fitted.get(nearby), weights
            )
            found[place] = logits, float(_cross_entropy(logits, targets, weights))
        return found[place][1] if place in found else math.inf

    loss_at(place, place)
    for step in (1, -1):
        while loss_at(place + step, place) < found[place][1]:
            place += step
    return place, *found[place]


def _logits_out_of_fold(
    rows: Rows,
    targets: torch.Tensor,
    offset: torch.Tensor,
    folds: torch.Tensor,
    penalty: float,
    begin: list[torch.Tensor] | None,
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits `[n, K]` of every image, fitted roughly to the other folds, and what was fitted."""
    logits, fitted = torch.empty_like(offset), []
    for index, fold in enumerate(torch.unique(folds).tolist()):
        kept, left = folds != fold, folds == fold
        near, of_kept = begin[index] if begin else None, None if weights is None else weights[kept]
        found = fit(rows[kept], targets[kept], offset[kept], penalty, near, _ROUGHLY, of_kept)
        logits[left] = offset[left] + rows[left] @ found[:-1] + found[-1]
        fitted.append(found)
    return logits, fitted


def _sample(targets: torch.Tensor) -> torch.Tensor:
    """Rows, int64, ascending: all, or about SAMPLE, spread evenly over each class, at least FOLDS of it."""
    kept = []
    for label in torch.unique(targets).tolist():
        rows = (targets == label).nonzero()[:, 0]
        count = min(len(rows), max(FOLDS, round(SAMPLE * len(rows) / len(targets))))
        kept.append(rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).round().long()])
    return torch.cat(kept).sort().values if len(targets) > SAMPLE else torch.arange(len(targets)).to(targets)


def _folds(targets: torch.Tensor) -> torch.Tensor:
    """A fold for every image, int64 `[n]`: the images of each class are dealt out in turn."""
    folds = torch.empty_like(targets)
    folds[targets.argsort(stable=True)] = torch.arange(len(targets), device=targets.device) % FOLDS
    return folds


def _starts(rows: Rows, targets: torch.Tensor, classes: int, pretrained: Linear | None) -> dict[bool, Linear]:
    """Where a head may start: at zero, and, True, at the pretrained rows, which see the first features."""
    zero = Linear(*(rows.new_zeros(*shape, dtype=torch.float64) for shape in ((classes, 0), (classes,))))
    return (
        {False: zero}
        if pretrained is None
        else {False: zero, True: _likeliest(rows, targets, classes, pretrained)}
    )


def _offset(start: Linear, values: Rows) -> torch.Tensor:
    """The logits `[n, K]` where the head starts."""
    return start(values[:, : start.weight.shape[1]].double())


def _likeliest(rows: Rows, targets: torch.Tensor, classes: int, pretrained: Linear) -> Linear:
    """For each class the row of the pretrained class that most of its images are taken for."""
    known = Linear(*(part.to(rows.device, torch.float64) for part in pretrained))
    taken_for = _offset(known, rows).argmax(1)
    counts = rows.new_zeros(classes, len(known.bias))
    counts.index_put_((targets, taken_for), rows.new_ones(len(rows)), accumulate=True)
    likeliest = counts.argmax(1)
    return Linear(known.weight[likeliest], known.bias[likeliest])


def _check(labels: torch.Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels go from {low} to {high}; expected 0 to {classes - 1}")
    if low == high:
        raise ValueError(f"all labels are {low}; expected images of at least two classes")
