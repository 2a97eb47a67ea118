#!/usr/bin/env bash
# TIFF that tifffile writes plane by plane: Pillow reads 8 bits right and 16 bits scrambled, unless they are compressed.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   tifffile 2026.3.3 pillow 13.0.0 opencv 5.0.0 pyvips 3.2.0
#   expected: the same picture of 8 and of 16 bits, compressed or not, within rounding
#   uint8, uncompressed, Pillow: 0.1 levels off on average
#   uint8, uncompressed, OpenCV, IMREAD_COLOR: 0.1 levels off on average
#   uint8, uncompressed, libvips: 0.1 levels off on average
#   uint8, zlib, Pillow: 0.1 levels off on average
#   uint8, zlib, OpenCV, IMREAD_COLOR: 0.1 levels off on average
#   uint8, zlib, libvips: 0.1 levels off on average
#   uint16, uncompressed, Pillow: 61.3 levels off on average
#   uint16, uncompressed, OpenCV, IMREAD_COLOR: 0.1 levels off on average
#   uint16, uncompressed, libvips: 0.0 levels off on average
#   uint16, zlib, Pillow: 0.1 levels off on average
#   uint16, zlib, OpenCV, IMREAD_COLOR: 0.1 levels off on average
#   uint16, zlib, libvips: 0.0 levels off on average
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
print("tifffile", tifffile.__version__, "pillow", PIL.__version__, "opencv", cv2.__version__, "pyvips", pyvips.__version__)
print("expected: the same picture of 8 and of 16 bits, compressed or not, within rounding")
ramp = np.tile(np.linspace(0, 1, 256), (256, 1))
picture = np.stack([ramp, ramp[::-1] / 2, ramp.T])  # red, green, blue planes
off = {}
for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
    for compression in (None, "zlib"):
        stream = io.BytesIO()
        planes = (picture * top).round().astype(dtype)
        tifffile.imwrite(stream, planes, photometric="rgb", planarconfig="separate", compression=compression)
        data = stream.getvalue()
        read = {
            "Pillow": np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
            "OpenCV, IMREAD_COLOR": cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
            "libvips": pyvips.Image.new_from_buffer(data, "").numpy() / (top / 255),
        }
        for reader, pixels in read.items():
            apart = np.abs(pixels.astype(float) - picture.transpose(1, 2, 0) * 255).mean()
            off[dtype, compression, reader] = apart
            print(f"{np.dtype(dtype).name}, {compression or 'uncompressed'}, {reader}: {apart:.1f} levels off on average")
scrambled = off.pop((np.uint16, None, "Pillow"))
assert max(off.values()) < 1
assert scrambled > 20, "Pillow reads 16-bit planes right now"
END
