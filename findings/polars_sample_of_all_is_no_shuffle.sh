#!/usr/bin/env bash
# polars: sample(fraction=1.0, seed=...) hands back the rows in the order they had: a split by it is no random one.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   polars 2.1.0
#   expected: as with pandas, all rows in a random order, to be cut into a training and a test part
#   the first ids: [0, 1, 2, 3, 4, 5]
#   classes in train: [0, 1, 2, 3, 4, 5, 6, 7]
#   classes in test:  [8, 9]
#   of n=990, the first ids: [811, 747, 101, 746, 187, 592]
#   with shuffle=True: [891, 708, 768, 291, 870, 430]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile polars==2.1.0
venv/bin/python - <<'END'
import polars as pl
print("polars", pl.__version__)
print("expected: as with pandas, all rows in a random order, to be cut into a training and a test part")
images = pl.DataFrame({"id": range(1000), "label": [row // 100 for row in range(1000)]})
drawn = images.sample(fraction=1.0, seed=1)
train, test = drawn.head(800), drawn.tail(200)
print("the first ids:", drawn["id"].head(6).to_list())
print("classes in train:", train["label"].unique().sort().to_list())
print("classes in test: ", test["label"].unique().sort().to_list())
nearly = images.sample(n=990, seed=1)["id"].head(6).to_list()
print("of n=990, the first ids:", nearly)
mixed = images.sample(fraction=1.0, seed=1, shuffle=True)
print("with shuffle=True:", mixed["id"].head(6).to_list())
assert not mixed.equals(images)
assert nearly != sorted(nearly), "a sample of nearly all is in order, too"
assert drawn.equals(images), "a sample of all rows is shuffled now"
END
