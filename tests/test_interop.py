"""A pack opens in other tools, and our loader trains in theirs: each block of docs/interop.md, run as it stands."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import splits_of
from runs import NAMES, tiny_pack

from greyhound.cache.pack import Options, pack
from greyhound.cache.store import SPLITS, Pack

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "interop.md").read_text()
BLOCKS: dict[str, str] = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.M | re.S)
)
TABLES = {
    "Polars": "rows = frame.select('image', 'class', 'split').rows()",
    "pandas": "rows = frame[['image', 'class', 'split']].itertuples(index=False)",
    "DuckDB": "rows = photographs.fetchall()",
    "Hugging Face datasets": """
whole = data.cast_column("image", datasets.Image(decode=False))
name = whole.features["label"].int2str
rows = [(row["image"]["bytes"], name(row["label"]), row["split"]) for row in whole]
assert len(train) == sum(split == "train" for *_, split in rows)
""",
}
"""After each block that makes a table: its rows as (bytes, class name, split)."""
SAY = """
import hashlib, json, sys
found = [(hashlib.sha256(image).hexdigest(), name, split) for image, name, split in rows]
print(json.dumps(sorted(found)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pack named dogs.arrow, in one file, and one with the same in three shards."""
    root = tmp_path_factory.mktemp("interop")
    images = tiny_pack(root).path.parent / "images"
    for name, shards in (("one", 1), ("three", 3)):
        (root / name).mkdir()
        pack(images, root / name / "dogs.arrow", Options(val=0.1, test=0.2, shards=shards))
    return root


def needs(block: str) -> None:
    """Skip where a library that the block imports is not installed."""
    for name in set(re.findall(r"^(?:import|from) (\w+)", block, re.M)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def answer(code: str, folder: Path) -> str:
    """What a program says on standard error at its end."""
    needs(code)
    environment = os.environ | {
        "HF_HOME": str(folder / "hf"),
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""


def rows_of(packed: Pack) -> list[list[str]]:
    """What every reader should find: content, class name and split of each row, sorted."""
    contents = (hashlib.sha256(packed.encoded(row).data).hexdigest() for row in range(len(packed)))
    names = (packed.classes[label] for label in packed.labels)
    return sorted(map(list, zip(contents, names, splits_of(packed), strict=True)))


def test_every_block_is_tested() -> None:
    assert set(BLOCKS) == {*TABLES, "Class names", "Lightning", "fastai"}
    assert PAGE.count("```python") == len(BLOCKS)


@pytest.mark.parametrize("files", ["one", "three"])
@pytest.mark.parametrize("title", TABLES)
def test_a_pack_opens_with_the_same_images_names_and_splits(title: str, files: str, place: Path) -> None:
    found: list[Any] = json.loads(answer(BLOCKS[title] + TABLES[title] + SAY, place / files))
    expected = rows_of(Pack(place / files / "dogs.arrow"))
    assert (len(found), {split for *_, split in found}) == (60, set(SPLITS))
    assert found == expected


def test_class_names_are_found_without_greyhound(place: Path) -> None:
    code = BLOCKS["Class names"] + "import sys; print(json.dumps(classes), file=sys.stderr)"
    assert "greyhound" not in re.findall(r"^(?:import|from) (\w+)", code, re.M)
    assert json.loads(answer(code, place / "one")) == list(NAMES)


REFUSED = """
import datasets
try:
    datasets.Dataset.from_file("dogs.arrow")
except Exception as error:
    import sys
    print(type(error).__name__, error, file=sys.stderr)
"""


def test_dataset_from_file_refuses_a_pack(place: Path) -> None:
    """Where this changes, the page may say so."""
    assert "ArrowInvalid" in answer(REFUSED, place / "one")


STREAMED = """
import datasets, sys
data = datasets.load_dataset("arrow", data_files=["dogs.arrow"], split="train", streaming=True)
print(sum(1 for _ in data), sum(each.stat().st_size for each in hf.rglob("*") if each.is_file()), file=sys.stderr)
"""


@pytest.mark.parametrize(("streaming", "copied"), [("True", False), ("False", True)])
def test_datasets_copies_a_pack_unless_it_streams(
    streaming: str, copied: bool, place: Path, tmp_path: Path
) -> None:
    cache = f"import os, pathlib; hf = pathlib.Path({str(tmp_path)!r}); os.environ['HF_HOME'] = str(hf)"
    rows, size = answer(cache + STREAMED.replace("True", streaming), place / "one").split()
    assert rows == "60"
    assert (int(size) > (place / "one" / "dogs.arrow").stat().st_size / 2) == copied


@pytest.mark.parametrize(
    ("title", "after"),
    [
        ("Lightning", "print(float(trainer.callback_metrics['accuracy']), train.epoch, file=sys.stderr)"),
        ("fastai", "print(learner.recorder.values[-1][-1], train.epoch, file=sys.stderr)"),
    ],
)
def test_a_trainer_takes_our_loader(title: str, after: str, place: Path) -> None:
    """Two passes over the training split, each an epoch, and an accuracy of the six validation images."""
    accuracy, epoch = map(float, answer(f"{BLOCKS[title]}\nimport sys\n{after}", place / "one").split())
    assert 0 <= accuracy <= 1 and round(6 * accuracy, 3) == round(6 * accuracy)
    assert epoch == 2
