#!/usr/bin/env bash
# pillow-heif: a picture saved with its EXIF orientation comes back with orientation 1, and is not turned.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   pillow 13.0.0 pillow-heif 1.8.1
#   expected: 64 x 32 pixels with orientation 6, saved with exif=, are 32 x 64 once turned upright, as in every format
#   JPEG: orientation 6, upright 32 x 64
#   PNG: orientation 6, upright 32 x 64
#   WEBP: orientation 6, upright 32 x 64
#   AVIF: orientation 6, upright 32 x 64
#   HEIF: orientation 1, upright 64 x 32
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile pillow==13.0.0 pillow-heif==1.8.1
venv/bin/python - <<'END'
import io

import pillow_heif
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version

pillow_heif.register_heif_opener()
print("pillow", pillow_version, "pillow-heif", pillow_heif.__version__)
print("expected: 64 x 32 pixels with orientation 6, saved with exif=, are 32 x 64 once turned upright, as in every format")
stored = Image.new("RGB", (64, 32), (200, 30, 30))
stored.paste((0, 0, 255), (0, 0, 32, 32))
found = {}
for format in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF"):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    stored.save(file, format, exif=exif)
    with Image.open(file) as opened:
        said = opened.getexif().get(0x0112)
        found[format] = ImageOps.exif_transpose(opened).size
        print(f"{format}: orientation {said}, upright {found[format][0]} x {found[format][1]}")
assert found.pop("HEIF") == (64, 32), "orientation survives in HEIF now"
assert set(found.values()) == {(32, 64)}
END
