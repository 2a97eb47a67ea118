#!/usr/bin/env bash
# Hugging Face datasets: casting a label column to the same classes in another order gives every image another class.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   datasets 5.2.0 pyarrow 26.0.1
#   expected: a cast keeps what each row says, as of a dictionary column in Arrow, or refuses
#   before cast_column: ['beagle', 'beagle', 'borzoi', 'pug']
#   after it:           ['borzoi', 'borzoi', 'pug', 'beagle']
#   align_labels_with_mapping instead: ['beagle', 'beagle', 'borzoi', 'pug']
#   text '2', '0' cast to names that are digits: ['2', '0']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile datasets==5.2.0 pyarrow==26.0.1
venv/bin/python - <<'END'
import os

os.environ["HF_HOME"] = os.getcwd()
import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features
print("datasets", datasets.__version__, "pyarrow", pa.__version__)
print("expected: a cast keeps what each row says, as of a dictionary column in Arrow, or refuses")
datasets.disable_progress_bars()
ours, theirs = ClassLabel(names=["beagle", "borzoi", "pug"]), ClassLabel(names=["borzoi", "pug", "beagle"])
images = Dataset.from_dict({"label": [0, 0, 1, 2]}, Features({"label": ours}))


def names(dataset):
    return [dataset.features["label"].int2str(label) for label in dataset["label"][:]]


before, after = names(images), names(images.cast_column("label", theirs))
print("before cast_column:", before)
print("after it:          ", after)
aligned = names(images.align_labels_with_mapping({name: theirs.str2int(name) for name in theirs.names}, "label"))
print("align_labels_with_mapping instead:", aligned)
digits = Dataset.from_dict({"label": ["2", "0"]}).cast_column("label", ClassLabel(names=["2", "1", "0"]))
print("text '2', '0' cast to names that are digits:", names(digits))
assert aligned == before
assert after == ["borzoi", "borzoi", "pug", "beagle"], "a cast keeps the labels now"
END
