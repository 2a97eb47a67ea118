#!/usr/bin/env bash
# pillow-heif: quality=-1, its lossless setting, is tens of levels off; it takes two more settings to be lossless.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   pillow-heif 1.8.1 libheif 1.23.6
#   expected: what is saved losslessly is read back bit for bit
#   {'quality': -1}: 75802 bytes, at most 29 levels off
#   {'quality': -1, 'chroma': 444}: 141414 bytes, at most 1 levels off
#   {'quality': -1, 'chroma': 444, 'matrix_coefficients': 0}: 162057 bytes, at most 0 levels off
#   the coder alone is lossless: colours are halved in size, and rounded to YCbCr, before it sees them
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile pillow-heif==1.8.1 pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'END'
import io

import numpy as np
import pillow_heif
from PIL import Image
print("pillow-heif", pillow_heif.__version__, "libheif", pillow_heif.libheif_version())
print("expected: what is saved losslessly is read back bit for bit")
pillow_heif.register_heif_opener()
noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
picture = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


def loss(**options):
    stream = io.BytesIO()
    picture.save(stream, "HEIF", **options)
    apart = np.abs(np.asarray(Image.open(stream)).astype(int) - np.asarray(picture)).max()
    print(f"{options}: {stream.tell() or len(stream.getvalue())} bytes, at most {apart} levels off")
    return apart


lossless = loss(quality=-1)
full = loss(quality=-1, chroma=444)
exact = loss(quality=-1, chroma=444, matrix_coefficients=0)
print("the coder alone is lossless: colours are halved in size, and rounded to YCbCr, before it sees them")
assert exact == 0
assert full > 0
assert lossless > 10, "quality=-1 is lossless now"
END
