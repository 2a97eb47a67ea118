#!/usr/bin/env bash
# TIFF whose 0 is white, as scanners and X-ray devices write it: at 16 bits the readers disagree about what is black.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   pillow 13.0.0 opencv 5.0.0 tifffile 2026.3.3 libvips via pyvips 3.2.0
#   expected: every library that shows pictures turns white-is-zero round, at 16 bits as at 8
#   uint8, white, by Pillow: 255
#   uint8, white, by OpenCV, IMREAD_UNCHANGED: 255
#   uint8, white, by OpenCV, IMREAD_COLOR: 255
#   uint8, white, by libvips: 255
#   uint8, white, by tifffile, which hands back what is stored: 0
#   uint16, white, by Pillow: 0
#   uint16, white, by OpenCV, IMREAD_UNCHANGED: 0
#   uint16, white, by OpenCV, IMREAD_COLOR: 255
#   uint16, white, by libvips: 65535
#   uint16, white, by tifffile, which hands back what is stored: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile pillow==13.0.0 opencv-python-headless==5.0.0.93 tifffile==2026.3.3 pyvips-binary==8.18.7 pyvips==3.2.0 numpy==2.4.6
venv/bin/python - <<'END'
import io

import cv2
import numpy as np
import PIL
import pyvips
import tifffile
from PIL import Image
print("pillow", PIL.__version__, "opencv", cv2.__version__, "tifffile", tifffile.__version__, "libvips via pyvips", pyvips.__version__)
print("expected: every library that shows pictures turns white-is-zero round, at 16 bits as at 8")
seen = {}
for dtype in (np.uint8, np.uint16):
    stream = io.BytesIO()
    whitest = np.zeros((16, 16), dtype)  # zero: white
    tifffile.imwrite(stream, whitest, photometric="miniswhite")
    data = stream.getvalue()
    encoded = np.frombuffer(data, np.uint8)
    seen[np.dtype(dtype).name] = {
        "Pillow": np.asarray(Image.open(io.BytesIO(data)))[0, 0].item(),
        "OpenCV, IMREAD_UNCHANGED": cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)[0, 0].item(),
        "OpenCV, IMREAD_COLOR": cv2.imdecode(encoded, cv2.IMREAD_COLOR)[0, 0, 0].item(),
        "libvips": pyvips.Image.new_from_buffer(data, "").numpy()[0, 0].item(),
        "tifffile, which hands back what is stored": tifffile.imread(io.BytesIO(data))[0, 0].item(),
    }
for dtype, values in seen.items():
    for reader, value in values.items():
        print(f"{dtype}, white, by {reader}: {value}")
few, many = seen["uint8"], seen["uint16"]
assert few["Pillow"] == few["OpenCV, IMREAD_UNCHANGED"] == few["libvips"] == 255
assert many["libvips"] == 65535 and many["OpenCV, IMREAD_COLOR"] == 255
assert many["Pillow"] == 0, "Pillow turns 16 bits round now"
assert many["OpenCV, IMREAD_UNCHANGED"] == 0, "OpenCV turns 16 bits round now"
END
