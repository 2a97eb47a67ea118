#!/usr/bin/env bash
# WebDataset: with_epoch(n) counts in every worker for itself: an epoch of 40 with 2 workers shows 40 images twice each.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   webdataset 1.0.2 torch 2.14.1+cu130
#   expected: with_epoch(40) over 40 samples gives 40, however many workers load them
#   0 workers: 40 samples, each of 40 images {1} times
#   2 workers: 80 samples, each of 40 images {2} times
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile webdataset==1.0.2 torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
from collections import Counter

import torch
import webdataset
from torch.utils.data import DataLoader
print("webdataset", webdataset.__version__, "torch", torch.__version__)
print("expected: with_epoch(40) over 40 samples gives 40, however many workers load them")
for shard in range(4):
    with webdataset.TarWriter(f"images-{shard}.tar") as tar:
        for index in range(10):
            tar.write({"__key__": f"{shard}-{index}", "cls": index})
counts = {}
for workers in (0, 2):
    images = webdataset.WebDataset("images-{0..3}.tar", shardshuffle=False).with_epoch(40)
    loader = DataLoader(images, batch_size=None, num_workers=workers)
    seen = Counter(sample["__key__"] for sample in loader)
    counts[workers] = sum(seen.values())
    print(f"{workers} workers: {counts[workers]} samples, each of {len(seen)} images {set(seen.values())} times")
assert counts[0] == 40
assert counts[2] == 80, "an epoch is shared between the workers now"
END
