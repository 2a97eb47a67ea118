#!/usr/bin/env bash
# OpenCV: the squared L2 norm of whole numbers is often not a whole number; it is the square of a rounded root.
#
# Run to its end on 2026-11-30, Python 3.11, exit 0; the versions are in the output:
#   opencv 5.0.0, numpy 2.4.6
#   expected: NORM_L2SQR of uint8 is the sum of squares, which is a whole number
#   2 ones: 2.0000000000000004
#   3 ones: 2.9999999999999996
#   5 ones: 5.000000000000001
#   differences of two random pictures of 64 x 64: 159 of 400 are not the exact sum
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile \
    opencv-python-headless==5.0.0.93 numpy==2.4.6
venv/bin/python - <<'END'
import cv2
import numpy as np

print(f"opencv {cv2.__version__}, numpy {np.__version__}")
print("expected: NORM_L2SQR of uint8 is the sum of squares, which is a whole number")
for count in (2, 3, 5):
    print(f"{count} ones: {cv2.norm(np.ones((1, count), np.uint8), cv2.NORM_L2SQR)!r}")
draws = np.random.default_rng(0)
wrong = 0
for _ in range(400):
    one, other = draws.integers(0, 256, (2, 64, 64), dtype=np.uint8)
    exact = int(((one.astype(np.int64) - other) ** 2).sum())
    wrong += cv2.norm(one, other, cv2.NORM_L2SQR) != exact
print(f"differences of two random pictures of 64 x 64: {wrong} of 400 are not the exact sum")
assert cv2.norm(np.ones((1, 2), np.uint8), cv2.NORM_L2SQR) != 2, "squared norms are whole now"
assert wrong > 100, "squared norms are whole now"
END
