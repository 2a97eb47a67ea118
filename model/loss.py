"""The training loss: cross entropy against smoothed targets.

Before it: logits from a network. After it: train and swa step along its gradient.
"""

from __future__ import annotations

from torch import nn


def smoothed_cross_entropy(epsilon: float, classes: int) -> nn.CrossEntropyLoss:
    """Mean cross entropy of logits `[B, K]` against 1 - e on the true class and e / (K - 1) on each other one.

    Torch spreads its smoothing over all K classes, the true one among them, so it must be given e * K / (K - 1)
    (Szegedy et al. 2016, section 7, is torch's form). Raises ValueError unless 0 <= e <= (K - 1) / K, where the true
    class is no less likely than another.
    """
    if classes < 2:
        raise ValueError(f"label smoothing over {classes} classes; expected at least 2")
    if not 0 <= epsilon <= (classes - 1) / classes:
        raise ValueError(f"label smoothing of {epsilon}; expected 0 to {(classes - 1) / classes:.3g}")
    return nn.CrossEntropyLoss(label_smoothing=min(1.0, epsilon * classes / (classes - 1)))
