#!/usr/bin/env bash
# datasets: load_dataset("imagefolder") takes a class folder named "train", or one photograph with "test" in its name,
# for a split, and leaves out all other images and the labels without a word.
#
# Run to its end on 2026-11-30, Python 3.11, exit 0; the versions are in the output:
#   datasets 5.2.0
#   expected: 3 folders of 4 photographs are 12 images of 3 classes, as with other names
#   plain: images {'train': 12}, columns beside image: ['label']
#   a class is named train: images {'train': 4}, columns beside image: []
#   a photograph is named test-drive: images {'test': 1}, columns beside image: []
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile datasets==5.2.0 pillow==13.0.0
export HF_HOME="$work/home" HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'END'
import sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__)
print("expected: 3 folders of 4 photographs are 12 images of 3 classes, as with other names")
FOLDERS = {  # three folders of four photographs each
    "plain": ("bus", "car", "tram", "0.png"),
    "a class is named train": ("bus", "car", "train", "0.png"),
    "a photograph is named test-drive": ("bus", "car", "tram", "test-drive.png"),
}
found = {}
for title, (*classes, first) in FOLDERS.items():
    for place, name in enumerate(classes):
        folder = Path(title.replace(" ", "_")) / name
        folder.mkdir(parents=True)
        for number, file in enumerate((first if name == "car" else "0.png", "1.png", "2.png", "3.png")):
            Image.new("RGB", (32, 32), (60 * place, 20 * number, 0)).save(folder / file)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder.parent))
    images = {split: len(rows) for split, rows in loaded.items()}
    labels = sorted({*loaded.column_names[next(iter(loaded))]} - {"image"})
    found[title] = images, labels
    print(f"{title}: images {images}, columns beside image: {labels}")
assert found["plain"] == ({"train": 12}, ["label"])
assert found["a class is named train"] == ({"train": 4}, []), "all classes are loaded now"
assert found["a photograph is named test-drive"] == ({"test": 1}, []), "all images are loaded now"
END
