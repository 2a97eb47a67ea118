#!/usr/bin/env bash
# torch: the best of topk(5) is not argmax where scores tie, and bfloat16 probabilities tie often.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   torch 2.14.1+cu130
#   expected: topk(k)[0], argmax and max name the same class; of equal scores the first
#   120 equal scores: argmax 0 and the first of topk(k), by k: {1: 0, 2: 81, 5: 79}
#   top-1 of one tensor of bfloat16 probabilities: 0.9926 by argmax, 0.9930 by topk(5)
#   rows where the two name different classes: 0.0065
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import torch

print("torch", torch.__version__)
print("expected: topk(k)[0], argmax and max name the same class; of equal scores the first")
scores = torch.zeros(1, 120)
best = {k: scores.topk(k, dim=1).indices[0, 0].item() for k in (1, 2, 5)}
print("120 equal scores: argmax", scores.argmax(1).item(), "and the first of topk(k), by k:", best)

torch.manual_seed(0)
logits = torch.randn(20_000, 120) / 2  # an undecided network
labels = logits.argmax(1)  # so that the accuracy of these logits is 1
probabilities = logits.softmax(1).bfloat16()
by_argmax = (probabilities.argmax(1) == labels).float().mean().item()
by_topk = (probabilities.topk(5, dim=1).indices[:, 0] == labels).float().mean().item()
apart = (probabilities.argmax(1) != probabilities.topk(5, dim=1).indices[:, 0]).float().mean().item()
print(f"top-1 of one tensor of bfloat16 probabilities: {by_argmax:.4f} by argmax, {by_topk:.4f} by topk(5)")
print(f"rows where the two name different classes: {apart:.4f}")
assert best[5] != scores.argmax(1).item(), "the first of topk(5) is argmax now"
assert apart > 0.001, "the two agree now"
END
