"""Fit the last layer to frozen features before fine-tuning, and make soft targets on the way.

Before it: a pretrained network with a random head. After it: train fine-tunes the whole network, whose
gradients no longer start from a random head (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
Features").

The head is a logistic regression. Its prior is the pretrained classifier: each class starts from the
pretrained class that its images are most often taken for, and the penalty is on the distance from there
(L2-SP, Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks").
Cross-validation chooses between that start and zero.

A network that is fitted to labels alone soon memorises a few thousand images. Soft targets leave less to
memorise (self-distillation: Furlanello et al. 2018, "Born-Again Neural Networks"). They are out-of-fold
predictions, because a head is overconfident about the images that it was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from greyhound.model.checkpoint import CheckpointError, load, save
from greyhound.model.network import Linear, eval_mode
from greyhound.model.run import RunError
from greyhound.model.step import Pairs

Rows: TypeAlias = torch.Tensor
"""Float `[n, D]`: what the head sees of n images."""

PENALTIES: Final = (1e5, 1e4, 1e3, 1e2, 1e1)
"""On half the squared distance of the weights, of standardised features, from where they start."""
FOLDS: Final = 3
_STEPS: Final = 500
_ROUGHLY: Final = 20
"""Steps that are enough to compare penalties."""
_ABSENT: Final = 10.0
"""How far below the lowest logit of any image a class without images is put."""


@dataclass(frozen=True)
class Solution:
    """How a head was solved, and what such heads say of the images out of their fold.

    probabilities: float32 `[n, K]`, of the images in their order, in host memory. cross_entropy (nats) and
    accuracy: theirs; the first one decided.
    """

    penalty: float
    from_pretrained: bool
    cross_entropy: float
    accuracy: float
    probabilities: Rows = field(repr=False, compare=False)

    def __str__(self) -> str:
        """For the log."""
        begun = "the pretrained classifier" if self.from_pretrained else "zero"
        return f"from {begun}, penalty {self.penalty:g}, out of fold acc = {self.accuracy:.3f}"


@torch.no_grad()
def features(network: nn.Module, batches: Pairs, bf16: bool) -> tuple[Rows, torch.Tensor]:
    """What the head sees, float32 `[n, D]`, and the labels, int64 `[n]`, of one pass over `batches`.

    network: a timm network; it is left as it was. bf16: compute in bfloat16 where autocast allows. Both
    results are on the network's device. Raises ValueError if there is no batch.
    """
    parts = []
    with eval_mode(network):
        for images, labels in batches:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                pooled = _pooled(network, images)
            parts.append((pooled.float(), labels))
    if not parts:
        raise ValueError("there are no images to solve the head on; expected at least one batch")
    rows, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    return rows, targets


def solve(
    network: nn.Module, features: Rows, labels: torch.Tensor, pretrained: Linear | None = None
) -> Solution:
    """Set the head to the penalised logistic regression of labels int64 `[n]`, 0..K-1, on features float32
    `[n, D]`.

    pretrained: the classifier that the network was trained with, of C classes. The penalty, and whether to
    start from the pretrained rows, are what predicts best over `FOLDS` folds. The features are standardised
    for the penalty; the scaling is folded into the weights. A class without images gets a constant logit
    below all others. Raises ValueError if the labels are not of two classes or more in 0..K-1.
    """
    head = classifier(network)
    _check(labels, head.out_features)
    present, targets = torch.unique(labels, return_inverse=True)
    rows = features.double()
    mean, scale = _moments(rows)
    starts = _starts(rows, targets, len(present), pretrained)
    standardised = (rows - mean) / scale
    solution = _search(standardised, targets, [start(rows) for start in starts], _folds(targets))
    start = starts[solution.from_pretrained]
    # Single precision goes most of the way in a third of the time.
    near = fit(standardised.float(), targets, start(rows).float(), solution.penalty)
    found = fit(standardised, targets, start(rows), solution.penalty, near.double())
    weight = start.weight + (found[:-1] / scale[:, None]).T
    bias = start.bias + found[-1] - (mean / scale) @ found[:-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(float((rows @ weight.T + bias).min()) - _ABSENT)
        head.weight[present] = weight.to(head.weight)
        head.bias[present] = bias.to(head.bias)
    spread = torch.zeros(len(features), head.out_features)
    spread[:, present.cpu()] = solution.probabilities
    return replace(solution, probabilities=spread)


def solve_all(
    network: nn.Module, seen: list[tuple[torch.Tensor, ...]], pretrained: Linear | None
) -> tuple[Solution, torch.Tensor]:
    """`solve` on all that was seen so far, features, labels and rows, part by part. Also returns the rows,
    `[n]`.

    They are sorted by row of the pack: the head depends on the images, not on the order in which they were
    seen.
    """
    features, labels, rows = (torch.cat(column) for column in zip(*seen, strict=True))
    rows, order = rows.sort()
    order = order.to(features.device)
    return solve(network, features[order], labels[order], pretrained), rows


def out_of_fold(
    features: Rows, labels: torch.Tensor, folds: torch.Tensor, pretrained: Linear | None = None
) -> Solution:
    """How heads that are each solved without a fold do on it: the best penalty and start, and its
    probabilities.

    features: float32 `[n, D]`. labels: int64 `[n]`, 0..K-1, each of them there. folds: int64 `[n]`, 0..F-1.
    Penalty and start are chosen as in `solve`, over these folds. Raises ValueError if there are fewer than
    two classes.
    """
    _check(labels, int(labels.max()) + 1)
    rows = features.double()
    mean, scale = _moments(rows)
    starts = _starts(rows, labels, int(labels.max()) + 1, pretrained)
    return _search((rows - mean) / scale, labels, [start(rows) for start in starts], folds)


def fit(
    rows: Rows,
    targets: torch.Tensor,
    offset: torch.Tensor,
    penalty: float,
    begin: torch.Tensor | None = None,
    steps: int = _STEPS,
) -> torch.Tensor:
    """`[D + 1, K]`, weights and below them biases, that minimise the penalised cross entropy, by L-BFGS.

    That is the sum over the images of the cross entropy of `offset + rows @ weights + biases` against targets
    int64 `[n]`, and penalty / 2 times the sum of the squared weights. offset: `[n, K]`. begin: where to
    begin; default zero.
    """
    found = rows.new_zeros(rows.shape[1] + 1, offset.shape[1]) if begin is None else begin.clone()
    found.requires_grad_()
    search = torch.optim.LBFGS(
        [found],
        max_iter=steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        fitted = functional.cross_entropy(offset + rows @ found[:-1] + found[-1], targets)
        value = fitted + penalty / (2 * len(rows)) * found[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return found.detach()


def classifier(network: Any) -> nn.Linear:
    """The head of a timm network. Raises ValueError if it cannot be solved, because it is not linear."""
    head = network.get_classifier()
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"the head is {type(head).__name__}; expected a linear layer with a bias: train without "
            "linear_probe"
        )
    return head


def _search(rows: Rows, targets: torch.Tensor, offsets: list[torch.Tensor], folds: torch.Tensor) -> Solution:
    """The start and the penalty whose images out of fold have the least cross entropy."""
    best: Solution | None = None
    for index, offset in enumerate(offsets):
        for penalty, logits in _logits_out_of_fold(rows.float(), targets, offset.float(), folds).items():
            loss = float(functional.cross_entropy(logits, targets))
            if best is None or loss < best.cross_entropy:
                right = float((logits.argmax(1) == targets).float().mean())
                best = Solution(penalty, index == 1, loss, right, logits.softmax(1).cpu())
    assert best is not None
    return best


def _logits_out_of_fold(
    rows: Rows, targets: torch.Tensor, offset: torch.Tensor, folds: torch.Tensor
) -> dict[float, torch.Tensor]:
    """For each penalty the logits `[n, K]` of every image, fitted roughly to the other folds."""
    logits = {penalty: torch.empty_like(offset) for penalty in PENALTIES}
    for fold in torch.unique(folds).tolist():
        kept, left = folds != fold, folds == fold
        found: torch.Tensor | None = None
        for penalty in PENALTIES:  # from strong to weak, each from where the one before ended
            found = fit(rows[kept], targets[kept], offset[kept], penalty, found, _ROUGHLY)
            logits[penalty][left] = offset[left] + rows[left] @ found[:-1] + found[-1]
    return logits


def _folds(targets: torch.Tensor) -> torch.Tensor:
    """A fold for every image, int64 `[n]`: the images of each class are dealt out in turn."""
    folds = torch.empty_like(targets)
    folds[targets.argsort(stable=True)] = torch.arange(len(targets), device=targets.device) % FOLDS
    return folds


def _moments(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of every feature, `[D]`; the scale of one that never changes is 1."""
    scale = rows.std(0, correction=0)
    scale[scale == 0] = 1
    return rows.mean(0), scale


def _starts(rows: Rows, targets: torch.Tensor, classes: int, pretrained: Linear | None) -> list[Linear]:
    """Where a head may start: from zero, and from the pretrained rows."""
    starts = [_zero(rows, classes)]
    return starts if pretrained is None else [*starts, _likeliest(rows, targets, classes, pretrained)]


def _zero(rows: Rows, classes: int) -> Linear:
    return Linear(rows.new_zeros(classes, rows.shape[1]), rows.new_zeros(classes))


def _likeliest(rows: Rows, targets: torch.Tensor, classes: int, pretrained: Linear) -> Linear:
    """For each class the row of the pretrained class that most of its images are taken for."""
    taken_for = Linear(pretrained.weight.to(rows), pretrained.bias.to(rows))(rows).argmax(1)
    counts = rows.new_zeros(classes, len(pretrained.bias))
    counts.index_put_((targets, taken_for), rows.new_ones(len(rows)), accumulate=True)
    likeliest = counts.argmax(1)
    return Linear(pretrained.weight.to(rows)[likeliest], pretrained.bias.to(rows)[likeliest])


def _pooled(network: Any, images: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return pooled


def _check(labels: torch.Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels go from {low} to {high}; expected 0 to {classes - 1}")
    if low == high:
        raise ValueError(f"all labels are {low}; expected images of at least two classes")


def write_targets(path: Path, targets: SoftTargets, pack: str) -> None:
    """Keep them for as long as the run lasts, once: of many images they are larger than a network. Raises
    CheckpointError.

    pack: the digest of the pack that the images are of.
    """
    save(path, {"ids": targets.ids, "probabilities": targets.probabilities.cpu(), "pack": pack})


def read_targets(path: Path, share: float, pack: str, classes: int) -> SoftTargets | None:
    """What `write_targets` kept, at the recipe's share; None of another pack. Raises RunError."""
    remedy = "go on without it, --distillation 0 --force recipe, or train into another folder"
    try:
        content = load(path)
        found = SoftTargets(content["ids"], content["probabilities"], share)
        fitting = found.probabilities.shape == (*found.ids.shape, classes) and found.ids.ndim == 1
        fitting &= found.ids.dtype == torch.int64 and found.probabilities.is_floating_point()
    except CheckpointError as error:
        raise RunError(
            f"distillation is {share}, and only a run's start makes its targets: {error}; or {remedy}"
        ) from None
    except (KeyError, TypeError, AttributeError):
        fitting = False
    if not fitting:
        raise RunError(
            f"{path} holds no targets of {classes} classes; put back the file that train wrote, or {remedy}"
        )
    return found if content.get("pack") == pack else None


@dataclass(frozen=True)
class SoftTargets:
    """A target for every image of `ids`, int64 `[n]`, ascending: `share` of its probabilities, the rest its
    label.

    probabilities: float32 `[n, K]`, on the network's device, in the order of ids.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor
    share: float

    def to(self, device: torch.device) -> SoftTargets:
        """The same, its probabilities on that device."""
        return replace(self, probabilities=self.probabilities.to(device))

    def of(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The targets, float32 `[B * V, K]`, of a batch: ids int64 `[B]`, in host memory; labels `[B * V]`, V
        views each.

        Of an image that is none of ours, as one that was corrupt when the head was solved, the target is its
        label.
        """
        rows = torch.searchsorted(self.ids, ids.contiguous())
        ours = self.ids[rows.clamp(max=len(self.ids) - 1)] == ids
        rows = torch.where(ours, rows, -1).to(labels.device, non_blocking=True)
        rows = rows.repeat_interleave(len(labels) // max(1, len(ids)))
        known = self.probabilities[rows.clamp(min=0)]
        target = torch.zeros_like(known).scatter_(1, labels[:, None], 1.0)
        return target.lerp(known, self.share * (rows >= 0)[:, None])
