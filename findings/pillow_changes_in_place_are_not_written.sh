#!/usr/bin/env bash
# datasets, litdata, pillow-jxl-plugin: a photograph that was changed in place is written as its file was.
#
# Run to its end on 2026-11-30, Python 3.11, exit 0; the versions are in the output:
#   datasets 5.2.0 litdata 0.2.76 pillow-jxl-plugin 1.3.8 pillow 13.0.0
#   expected: what is written is the image as it is, as Image.save to JPEG or PNG does
#   by_datasets: blackened is 400 x 600, left half 0; written: 400 x 600, left half 255
#   by_datasets: reduced is 43 x 64, left half 255; written: 400 x 600, left half 255
#   by_map: blackened is 400 x 600, left half 0; written: 400 x 600, left half 255
#   by_map: reduced is 43 x 64, left half 255; written: 400 x 600, left half 255
#   by_litdata: blackened is 400 x 600, left half 0; written: 400 x 600, left half 255
#   by_litdata: reduced is 43 x 64, left half 255; written: 400 x 600, left half 255
#     jxl warns: Using JPEG reconstruction to create lossless JXL image from JPEG. This is the default behavior for JPEG encode, if you want to disable this, please set 'lossless_jpeg'.
#   by_jxl: blackened is 400 x 600, left half 0; written: 400 x 600, left half 255
#     jxl warns: Using JPEG reconstruction to create lossless JXL image from JPEG. This is the default behavior for JPEG encode, if you want to disable this, please set 'lossless_jpeg'.
#   by_jxl: reduced is 43 x 64, left half 255; written: 400 x 600, left half 255
#   image.copy() before writing, and Image.save to PNG: as expected; 8 of 8 changes are lost
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile \
    datasets==5.2.0 litdata==0.2.76 pillow-jxl-plugin==1.3.8 pillow==13.0.0 numpy==2.4.6
cat > show.py <<'PY'
import contextlib
import io
import os
import warnings
from importlib.metadata import version

os.environ["HF_HOME"] = os.getcwd()
import datasets
import litdata
import numpy as np
import pillow_jxl  # noqa: F401, it adds a format to Pillow
from PIL import Image

datasets.disable_progress_bars()


def opened():
    image = Image.open("white.jpg")
    image.load()
    return image


def blackened(image=None):
    """The left half is painted over: still a JpegImageFile, which knows the file it came from."""
    image = image or opened()
    image.paste((0, 0, 0), (0, 0, 300, 400))
    return image


def reduced(image=None):
    image = image or opened()
    image.thumbnail((64, 64))
    return image


def copied(image=None):
    """A copy is a plain Image, which knows no file."""
    return blackened(image).copy()


def by_datasets(make):
    table = datasets.Dataset.from_dict({"image": [make()]}, datasets.Features({"image": datasets.Image()}))
    table.to_parquet("table.parquet")
    return datasets.Dataset.from_parquet("table.parquet")[0]["image"]


def by_map(make):
    """Changed in a function for `map`, which hands it the opened photograph."""
    table = datasets.Dataset.from_dict({"image": ["white.jpg"]}, datasets.Features({"image": datasets.Image()}))
    return table.map(lambda row: {"image": make(row["image"])}, load_from_cache_file=False)[0]["image"]


def by_litdata(make):
    folder = f"chunks-{make.__name__}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it says much
        litdata.optimize(sample, [make], folder, chunk_bytes="1MB", num_workers=1, start_method="fork")
    return litdata.StreamingDataset(folder)[0]["image"]


def sample(make):
    return {"image": make()}


def by_jxl(make):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make().save("image.jxl")
    if said:
        print("  jxl warns:", said[0].message)
    return Image.open("image.jxl")


def describe(image):
    """Height, width, and the mean of the left half."""
    pixels = np.asarray(image)
    if pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)  # litdata reads a JPEG as a torch tensor
    height, width = pixels.shape[:2]
    return f"{height} x {width}, left half {pixels[:, : width // 2].mean():.0f}"


if __name__ == "__main__":
    print(*(f"{name} {version(name)}" for name in ("datasets", "litdata", "pillow-jxl-plugin", "pillow")))
    Image.new("RGB", (600, 400), "white").save("white.jpg")
    print("expected: what is written is the image as it is, as Image.save to JPEG or PNG does")
    lost = []
    for writer in (by_datasets, by_map, by_litdata, by_jxl):
        for change in (blackened, reduced):
            asked, found = describe(change()), describe(writer(change))
            lost.append(found == describe(opened()))
            print(f"{writer.__name__}: {change.__name__} is {asked}; written: {found}")
        assert describe(writer(copied)) == describe(blackened()), "a copy is written as it is"
    change = blackened()
    change.save("again.png")
    assert describe(Image.open("again.png")) == describe(change)
    print(f"image.copy() before writing, and Image.save to PNG: as expected; {sum(lost)} of {len(lost)} changes are lost")
    assert all(lost), "changes are written now"
PY
venv/bin/python show.py
