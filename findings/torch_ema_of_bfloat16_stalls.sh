#!/usr/bin/env bash
# torch: AveragedModel's moving average of bfloat16 weights stops far from the weights, however long it runs.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   torch 2.14.1+cu130
#   expected: weights that stay at 1 for 20 times the average's memory bring it to 1, within the type's precision
#   torch.float32, decay 0.999, 20,000 updates: 1.0000
#   torch.float16, decay 0.999, 20,000 updates: 0.7559
#   torch.bfloat16, decay 0.999, 20,000 updates: 0.2500
#   each step rounds to nothing once it is below half a unit in the last place; nothing warns
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

print("torch", torch.__version__)
print("expected: weights that stay at 1 for 20 times the average's memory bring it to 1, within the type's precision")


def average(dtype, decay=0.999, updates=20_000):
    model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    model.weight.data.fill_(0)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ema.update_parameters(model)  # the first update copies
    model.weight.data.fill_(1)
    for _ in range(updates):
        ema.update_parameters(model)
    return ema.module.weight.item()


found = {dtype: average(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
for dtype, value in found.items():
    print(f"{dtype}, decay 0.999, 20,000 updates: {value:.4f}")
print("each step rounds to nothing once it is below half a unit in the last place; nothing warns")
assert found[torch.float32] > 0.9999
assert found[torch.bfloat16] < 0.5, "the average of bfloat16 weights arrives now"
assert found[torch.float16] < 0.9, "the average of float16 weights arrives now"
END
