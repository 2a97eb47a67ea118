#!/usr/bin/env bash
# Pillow: convert('RGB') of grey with more than 8 bits cuts at 255 instead of scaling, from every format: a ramp is white.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   pillow 13.0.0
#   expected: a ramp from black to white has a mean of 127.5 after convert('RGB'), as in colour
#   PNG, 16 bits: mode I;16, mean after convert('RGB') 254.0
#   TIFF, 16 bits: mode I;16, mean after convert('RGB') 254.0
#   JPEG 2000, 16 bits: mode I;16, mean after convert('RGB') 254.0
#   PGM, 12 bits: mode I, mean after convert('RGB') 254.0
#   PPM, 12 bits, in colour: mode RGB, mean after convert('RGB') 127.5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'END'
import io

import numpy as np
import PIL
from PIL import Image
print("pillow", PIL.__version__)
print("expected: a ramp from black to white has a mean of 127.5 after convert('RGB'), as in colour")
ramp = np.tile(np.linspace(0, 1, 256), (64, 1))
deep = (ramp * 65535).round().astype(np.uint16)


def saved(format):
    stream = io.BytesIO()
    Image.fromarray(deep).save(stream, format)
    return stream.getvalue()


colour = b"P6 256 64 4095\n" + np.repeat((ramp * 4095).round().astype(">u2"), 3).tobytes()
files = {
    "PNG, 16 bits": saved("PNG"),
    "TIFF, 16 bits": saved("TIFF"),
    "JPEG 2000, 16 bits": saved("JPEG2000"),
    "PGM, 12 bits": b"P5 256 64 4095\n" + (ramp * 4095).round().astype(">u2").tobytes(),
    "PPM, 12 bits, in colour": colour,
}
means = {}
for name, data in files.items():
    image = Image.open(io.BytesIO(data))
    means[name] = np.asarray(image.convert("RGB")).mean()
    print(f"{name}: mode {image.mode}, mean after convert('RGB') {means[name]:.1f}")
assert abs(means.pop("PPM, 12 bits, in colour") - 127.5) < 1
assert min(means.values()) > 250, "deep grey is scaled now"
END
