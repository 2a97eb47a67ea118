#!/usr/bin/env bash
# OpenCV: imread brings 16 bits down to 8 by the high byte, imwrite to a format of 8 bits cuts at 255: mid-grey is white.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   opencv 5.0.0
#   expected: 16 bits become 8 the same way on reading and on writing: 32896 becomes 128
#   16-bit PNG, read with IMREAD_COLOR: 128
#   written as .jpg and read again: 255
#   written as .webp and read again: 255
#   written as .bmp and read again: 255
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile opencv-python-headless==5.0.0.93 numpy==2.4.6
venv/bin/python - <<'END'
import cv2
import numpy as np
print("opencv", cv2.__version__)
print("expected: 16 bits become 8 the same way on reading and on writing: 32896 becomes 128")
grey = np.full((16, 16, 3), 32896, np.uint16)
read = cv2.imdecode(cv2.imencode(".png", grey)[1], cv2.IMREAD_COLOR)[0, 0, 0].item()
print("16-bit PNG, read with IMREAD_COLOR:", read)
written = {}
for suffix in (".jpg", ".webp", ".bmp"):
    encoded = cv2.imencode(suffix, grey)[1]  # OpenCV warns on stderr that it falls back to 8 bits
    written[suffix] = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[0, 0, 0].item()
    print(f"written as {suffix} and read again:", written[suffix])
assert read == 128
assert set(written.values()) == {255}, "writing scales now"
END
