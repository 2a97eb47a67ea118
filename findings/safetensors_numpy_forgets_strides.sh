#!/usr/bin/env bash
# safetensors: a transposed NumPy array comes back with its numbers in other places, without an error.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   safetensors 0.8.0 numpy 2.4.6
#   expected: the array that was saved, or a refusal, as the same library's torch functions give
#   as it is: shape (3, 4), the same
#   transposed: shape (4, 3), OTHER NUMBERS, first row [0.0, 1.0, 2.0]
#   [H, W, C] to [C, H, W]: shape (3, 2, 2), OTHER NUMBERS, first row [[0, 1], [2, 3]]
#   np.asfortranarray: shape (3, 4), OTHER NUMBERS, first row [0.0, 4.0, 8.0, 1.0]
#   np.ascontiguousarray of the transposed: shape (4, 3), the same
#   first row that was expected of the transposed: [0.0, 4.0, 8.0]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'END'
import numpy as np
import safetensors
from safetensors.numpy import load, save
print("safetensors", safetensors.__version__, "numpy", np.__version__)
print("expected: the array that was saved, or a refusal, as the same library's torch functions give")
kernel = np.arange(12, dtype=np.float32).reshape(3, 4)  # in, out: as another framework keeps it


def keeps(name, array):
    back = load(save({"weight": array}))["weight"]
    same = np.array_equal(back, array)
    print(f"{name}: shape {back.shape}, {'the same' if same else 'OTHER NUMBERS, first row ' + str(back[0].tolist())}")
    return same


assert keeps("as it is", kernel)
transposed = keeps("transposed", kernel.T)
channels = keeps("[H, W, C] to [C, H, W]", np.arange(12, dtype=np.uint8).reshape(2, 2, 3).transpose(2, 0, 1))
fortran = keeps("np.asfortranarray", np.asfortranarray(kernel))
assert keeps("np.ascontiguousarray of the transposed", np.ascontiguousarray(kernel.T))
print("first row that was expected of the transposed:", kernel.T[0].tolist())
assert not (transposed or channels or fortran), "strides are heeded now"
END
