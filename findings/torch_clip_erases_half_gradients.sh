#!/usr/bin/env bash
# torch: clip_grad_norm_ turns finite float16 gradients to zero where their norm is above float16's largest number.
#
# Run to its end on 2026-11-30, Python 3.11, exit 0; the versions are in the output:
#   torch 2.14.1+cu130
#   expected: gradients of 0.25, scaled by 1024 for float16, come out with the norm asked for, whatever their type
#   torch.float16: norm reported inf, norm after clipping to 1: 0.000, of 200000 gradients 200000 are zero
#   torch.bfloat16: norm reported 114176, norm after clipping to 1: 1.003, of 200000 gradients 0 are zero
#   torch.float32: norm reported 114487, norm after clipping to 1: 1.000, of 200000 gradients 0 are zero
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import torch

SCALE = 1024  # what a loss is multiplied with, so that small gradients of float16 do not vanish
print("torch", torch.__version__)
print("expected: gradients of 0.25, scaled by 1024 for float16, come out with the norm asked for, whatever their type")
erased = {}
for kind in (torch.float16, torch.bfloat16, torch.float32):
    weights = [torch.nn.Parameter(torch.zeros(100_000, dtype=kind)) for _ in range(2)]
    for weight in weights:
        (SCALE * 0.25 * weight.sum(dtype=torch.float32)).backward()
        assert weight.grad.dtype == kind and weight.grad.isfinite().all()
    norm = float(torch.nn.utils.clip_grad_norm_(weights, 1.0))
    after = torch.cat([weight.grad.double() for weight in weights])
    erased[kind] = int((after == 0).sum())
    print(
        f"{kind}: norm reported {norm:.0f}, norm after clipping to 1: {after.norm():.3f}, "
        f"of {len(after)} gradients {erased[kind]} are zero"
    )
assert erased == {torch.float16: 200_000, torch.bfloat16: 0, torch.float32: 0}, "float16 gradients survive now"
END
