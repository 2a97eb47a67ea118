#!/usr/bin/env bash
# torch: on a CPU the norm of order infinity takes many times what the smallest and largest value together take.
#
# Run to its end on 2026-11-30, Python 3.11, exit 0; the versions are in the output:
#   torch 2.14.1+cu130
#   expected: the largest absolute value costs no more than the smallest and the largest value, or a sum of squares
#   get_total_norm of order infinity, as clip_grad_norm_ asks for it: 5.7 times aminmax
#   and 7.0 times the norm of order 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import time

import torch
from torch.nn.utils import get_total_norm

print("torch", torch.__version__)
print("expected: the largest absolute value costs no more than the smallest and the largest value, or a sum of squares")
torch.set_num_threads(1)
torch.manual_seed(0)
gradients = [torch.randn(200_000) for _ in range(50)]  # as of a network of ten million weights


def milliseconds(function):
    function()
    times = []
    for _ in range(9):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def largest():
    return torch.stack([torch.stack(each.aminmax()).abs().max() for each in gradients]).max()


assert get_total_norm(gradients, torch.inf) == largest()
norms = {order: milliseconds(lambda: get_total_norm(gradients, order)) for order in (torch.inf, 2.0)}
ends = milliseconds(largest)
print(f"get_total_norm of order infinity, as clip_grad_norm_ asks for it: {norms[torch.inf] / ends:.1f} times aminmax")
print(f"and {norms[torch.inf] / norms[2.0]:.1f} times the norm of order 2")
assert norms[torch.inf] > 2 * ends, "the norm of order infinity is no slower than aminmax now"
END
