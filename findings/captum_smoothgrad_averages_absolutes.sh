#!/usr/bin/env bash
# captum: NoiseTunnel around Saliency averages absolute gradients, so noise does not cancel as in SmoothGrad's paper.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   captum 0.9.0, torch 2.14.1
#   expected: smoothgrad is the mean of the gradients of noisy copies; of x * x at 0 it goes to 0 with more copies
#   as it comes: 1.60 from 2000 copies, 1.60 from 8000: the mean of |2 * noise|
#   with abs=False for each copy: 0.03 from 2000 copies, 0.02 from 8000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile captum==0.9.0 torch==2.14.1
venv/bin/python - <<'END'
import warnings
from importlib.metadata import version

import torch
from captum.attr import NoiseTunnel, Saliency

warnings.simplefilter("ignore")
print(f"captum {version('captum')}, torch {version('torch').split('+')[0]}")
print("expected: smoothgrad is the mean of the gradients of noisy copies; of x * x at 0 it goes to 0 with more copies")


def smoothed(copies, **options):
    """The mean over 64 places of |SmoothGrad| of x * x at 0, by noise of standard deviation 1."""
    torch.manual_seed(0)
    tunnel = NoiseTunnel(Saliency(lambda x: (x * x).sum(1)))
    found = tunnel.attribute(
        torch.zeros(1, 64), nt_type="smoothgrad", nt_samples=copies, nt_samples_batch_size=500, stdevs=1.0, **options
    )
    return float(found.abs().mean())


plain = smoothed(2000), smoothed(8000)
signed = smoothed(2000, abs=False), smoothed(8000, abs=False)
print(f"as it comes: {plain[0]:.2f} from 2000 copies, {plain[1]:.2f} from 8000: the mean of |2 * noise|")
print(f"with abs=False for each copy: {signed[0]:.2f} from 2000 copies, {signed[1]:.2f} from 8000")
assert min(plain) > 1.5, "noise cancels by default now"
assert signed[1] < signed[0] < 0.1
END
