#!/usr/bin/env bash
# OpenCV: WebP without a quality is lossless; asking for quality 100 loses colours. For JPEG and AVIF it is otherwise.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   opencv 5.0.0
#   expected: no setting is better than quality 100, and the default is a middling one, as it is for AVIF
#   .webp default: 77530 bytes, at most 0 levels off
#   .webp (64, 100): 27634 bytes, at most 17 levels off
#   .webp (64, 101): 77530 bytes, at most 0 levels off
#   .avif default: 8220 bytes, at most 34 levels off
#   .avif (512, 100): 144327 bytes, at most 0 levels off
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
print("expected: no setting is better than quality 100, and the default is a middling one, as it is for AVIF")
rng = np.random.default_rng(0)
picture = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)


def loss(suffix, *options):
    encoded = cv2.imencode(suffix, picture, options)[1]
    apart = np.abs(cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(int) - picture)
    print(f"{suffix} {options or 'default'}: {len(encoded)} bytes, at most {apart.max()} levels off")
    return apart.max()


default, best = loss(".webp"), loss(".webp", cv2.IMWRITE_WEBP_QUALITY, 100)
beyond = loss(".webp", cv2.IMWRITE_WEBP_QUALITY, 101)
avif, avif_best = loss(".avif"), loss(".avif", cv2.IMWRITE_AVIF_QUALITY, 100)
assert avif > avif_best
assert beyond == 0
assert default == 0 and best > 5, "WebP's default and quality 100 changed places"
END
