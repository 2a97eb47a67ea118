#!/usr/bin/env bash
# OpenCV: INTER_AREA rounds halves up at 1/2 and to even at every other factor, so halving alone makes pictures brighter.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   opencv 5.0.0, numpy 2.4.6
#   expected: area means of random pixels keep the mean level at any factor
#   1/2: +0.13 levels; a block whose mean is 2.5 gives 3, one of 3.5 gives 4
#   1/4: +0.00 levels; a block whose mean is 2.5 gives 2, one of 3.5 gives 4
#   1/8: +0.00 levels; a block whose mean is 2.5 gives 2, one of 3.5 gives 4
#   three times 1/2: +0.37 levels
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
print("expected: area means of random pixels keep the mean level at any factor")
pixels = np.random.default_rng(0).integers(0, 256, (4096, 4096), dtype=np.uint8)


def reduced(picture, factor):
    """Both sides divided by `factor`."""
    return cv2.resize(picture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)


def brighter(picture):
    """By how many levels, on average, beyond the pixels it was made of."""
    return float(picture.mean()) - float(pixels.mean())


def block(factor, low):
    """Half of the pixels `low`, half `low` + 1: what their mean becomes."""
    half = np.repeat(np.array([low, low + 1], dtype=np.uint8), factor // 2)
    return int(reduced(np.tile(half, (8 * factor, 8)), factor)[0, 0])


found = {factor: (brighter(reduced(pixels, factor)), block(factor, 2), block(factor, 3)) for factor in (2, 4, 8)}
for factor, (more, first, second) in found.items():
    print(f"1/{factor}: {round(more, 2) + 0.0:+.2f} levels; a block whose mean is 2.5 gives {first}, one of 3.5 gives {second}")
thrice = brighter(reduced(reduced(reduced(pixels, 2), 2), 2))
print(f"three times 1/2: {thrice:+.2f} levels")
assert found[2][0] > 0.12 and found[2][1:] == (3, 4), "halving rounds as other factors do now"
assert abs(found[4][0]) < 0.01 and found[4][1:] == found[8][1:] == (2, 4)
assert thrice > 0.36
END
