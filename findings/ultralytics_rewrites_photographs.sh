#!/usr/bin/env bash
# Ultralytics: looking at a folder of photographs for training writes some of them anew, with other pixels.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   ultralytics 8.4.190 pillow 13.0.0
#   expected: a data set that is opened for training reads the photographs and leaves the files as they are
#   newline.jpg: 11,868 bytes before, 67,819 after; pixels differ by up to 4, at 12%
#   plain.jpg: 11,867 bytes before, 11,867 after; pixels differ by up to 0, at 0%
#   zeros.jpg: 11,883 bytes before, 67,819 after; pixels differ by up to 4, at 12%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export YOLO_CONFIG_DIR="$work" YOLO_OFFLINE=true
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile ultralytics==8.4.190 torch==2.14.1 torchvision==0.29.1 pillow==13.0.0
venv/bin/python - <<'END'
import io
import logging
from importlib.metadata import version
from pathlib import Path

import numpy
from PIL import Image

logging.disable(logging.CRITICAL)
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import ClassificationDataset

print("ultralytics", version("ultralytics"), "pillow", version("pillow"))
print("expected: a data set that is opened for training reads the photographs and leaves the files as they are")
clouds = numpy.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=numpy.uint8)
photograph = Image.fromarray(clouds).resize((320, 240), Image.Resampling.BICUBIC)
file = io.BytesIO()
photograph.save(file, "JPEG", quality=85)
endings = {"plain": b"", "newline": b"\n", "zeros": bytes(16)}
for name, ending in endings.items():  # what stands behind a JPEG's end is no part of it
    place = Path("photographs", name[0], f"{name}.jpg")
    place.parent.mkdir(parents=True)
    place.write_bytes(file.getvalue() + ending)
before = {place: place.read_bytes() for place in sorted(Path("photographs").rglob("*.jpg"))}
ClassificationDataset("photographs", get_cfg(overrides={"task": "classify", "cache": False}))
changed = {}
for place, data in before.items():
    after = place.read_bytes()
    pixels = [numpy.asarray(Image.open(io.BytesIO(each)), int) for each in (data, after)]
    apart = abs(pixels[0] - pixels[1])
    changed[place.stem] = data != after
    print(f"{place.name}: {len(data):,} bytes before, {len(after):,} after; pixels differ by up to {apart.max()}, at {(apart > 0).mean():.0%}")
assert changed == {"plain": False, "newline": True, "zeros": True}, "files stay as they are now"
END
