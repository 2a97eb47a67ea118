"""Manifests, tars and Parquet files give the pack that the folder gives; the real webdataset and datasets write them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encode, folder, left_out, noise, paths_of, splits_of
from runs import Capture, Patch

from greyhound.cache import show
from greyhound.cache.classes import class_of
from greyhound.cache.collection import Collector
from greyhound.cache.errors import UserError
from greyhound.cache.index import add_index
from greyhound.cache.pack import Options, pack
from greyhound.cache.selection import Decision, Photograph
from greyhound.cache.shards import Shard
from greyhound.cache.source import SourceOptions
from greyhound.cache.store import SPLITS, Pack, PackError

pytestmark = pytest.mark.usefixtures("scan_in_process")

NAMES = ("beagle", "Akita", "007", "no")
FILES = {
    f"{name}/{n}.{'jpg' if n % 2 else 'png'}": 10 * k + n for k, name in enumerate(NAMES) for n in range(6)
}
DATA = {
    path: encode(noise(50, 40, seed), "JPEG" if path.endswith("jpg") else "PNG")
    for path, seed in FILES.items()
}
DEFAULT = Options()
Rows = Counter[tuple[str, bytes, str]]


def label_of(path: str) -> str:
    return path.split("/")[0]


def rows(source: Path | str, options: Options = DEFAULT, **reading: Any) -> Rows:
    """Class, content and split of every row of a source's pack."""
    place = Path(source)
    out = place.parent / "packed.arrow" if place.parent.is_dir() else Path("packed.arrow")
    pack(place, out, replace(options, source=SourceOptions(**reading)))
    return rows_of(Pack(out))


def rows_of(found: Pack) -> Rows:
    rows = enumerate(zip(found.labels, splits_of(found), strict=True))
    return Counter(
        (found.classes[label], found.encoded(row).tobytes(), split) for row, (label, split) in rows
    )


def refused(source: Path, out: Path | None = None, **reading: Any) -> str:
    """What is said of a source, in one line; nothing is left behind."""
    before = {*source.parent.rglob("*")} if source.parent.is_dir() else set()
    with pytest.raises(UserError) as refusal:
        pack(source, out or source.parent / "out.arrow", Options(source=SourceOptions(**reading)))
    assert "\n" not in str(refusal.value)
    assert before == ({*source.parent.rglob("*")} if before else set())
    return str(refusal.value)


def as_csv(lines: Iterable[Mapping[str, str]]) -> str:
    """Every cell in quotes, so that nothing depends on what it holds."""
    table = [*lines]
    cells = [[*table[0]], *([*line.values()] for line in table)]
    return "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in cells)


def write_table(file: Path, table: Sequence[Mapping[str, Any]]) -> Path:
    """By its ending: CSV, JSON lines or Parquet."""
    if file.suffix == ".csv":
        file.write_text(as_csv(table))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(line) + "\n" for line in table))
    else:
        pq.write_table(pa.Table.from_pylist([*table]), file)
    return file


TABLE = [{"path": path, "label": label_of(path)} for path in FILES]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("path", ["path", "file_name", "Filename", "image", "file"])
def test_a_manifest_gives_the_folders_pack(root: Path, ending: str, path: str) -> None:
    """Labels are text: 007 keeps its zeros, and no is a class."""
    expected = rows(root)
    table = [{path: line["path"], "Category": line["label"]} for line in TABLE]
    assert rows(write_table(root / f"list.{ending}", table)) == expected
    absolute = [{path: str(root / line["path"]), "class": line["label"]} for line in TABLE]
    assert rows(write_table(root.parent / f"list.{ending}", absolute)) == expected
    packed = Pack(root.parent / "packed.arrow")
    assert sorted(paths_of(packed)) == sorted(f"images/{path}" for path in FILES)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_manifests_splits_and_groups_are_taken(root: Path, ending: str) -> None:
    words = {"0": "train", "1": "Training", "2": "dev", "3": "test", "4": "train", "5": "validation"}
    meant = {"0": "train", "1": "train", "2": "val", "3": "test", "4": "train", "5": "val"}
    table = [{**line, "split": words[Path(line["path"]).stem]} for line in TABLE]
    file = write_table(root / f"list.{ending}", table)
    expected = Counter((label_of(path), DATA[path], meant[Path(path).stem]) for path in FILES)
    assert rows(file) == expected
    assert Pack(root / "packed.arrow").header.split_by == f"as list.{ending} says"
    grouped = [{**line, "group": int(Path(line["path"]).stem) // 2} for line in TABLE]
    found = rows(write_table(file, grouped), Options(val=0.3, test=0.3))
    assert {split for *_, split in found} == {*SPLITS}
    together = {FILES[path] % 10 // 2: set[str]() for path in FILES}
    for _, data, split in found:
        together[next(FILES[path] for path in FILES if DATA[path] == data) % 10 // 2].add(split)
    assert [len(splits) for splits in together.values()] == [1, 1, 1]
    assert "images of a group together (3 groups)" in Pack(root / "packed.arrow").header.split_by


@pytest.mark.parametrize("name", ["filepath", "Image_Path", "img_path", "file_path"])
def test_other_names_of_columns_that_are_common(root: Path, name: str) -> None:
    expected = rows(root)
    table = [{name: line["path"], "target": line["label"]} for line in TABLE]
    assert rows(write_table(root / "list.csv", table)) == expected


@pytest.mark.parametrize("last", [False, True])
def test_a_column_without_a_name_is_nothing(root: Path, last: bool) -> None:
    """As pandas' to_csv writes its index: neither weight nor group nor split."""
    lines = [("path", "label", ""), *((line["path"], line["label"], n) for n, line in enumerate(TABLE))]
    ordered = [(*line[:2], line[2]) if last else (line[2], *line[:2]) for line in lines]
    (root / "list.csv").write_text("".join(",".join(map(str, line)) + "\n" for line in ordered))
    expected = rows(root)
    assert rows(root / "list.csv") == expected
    header = Pack(root / "packed.arrow").header
    assert "columns of list.csv that are not used: one without a name" in header.notes
    assert "group" not in header.split_by


def test_what_the_names_of_classes_suggest_is_said(root: Path) -> None:
    """Of every source that names them: numbers out of order, fractions, and what may be one class."""
    said = {
        "1 2 10": "classes are numbered by their letters (1, 10, 2, ...); --class-order natural",
        "1.0 2.0 10.0": "all classes are numbers such as 1.0, as programs write whole ones beside an empty",
        "dress Dress hat": "the classes 'Dress' and 'dress' differ only in case, in blanks, or in how",
        "1 2 3": "",
        "1 1.0": "",
    }
    for names, note in said.items():
        kinds = names.split()
        table = [{**line, "label": kinds[n % len(kinds)]} for n, line in enumerate(TABLE)]
        header = pack(write_table(root / "list.csv", table), root.parent / "p", Options(val=0, test=0))
        assert [each for each in header.notes if each.startswith(note)] if note else not header.notes
    table = [{**line, "label": f"{n % 12}"} for n, line in enumerate(TABLE)]
    asked = Options(val=0, test=0, source=SourceOptions(order="natural"))
    assert not pack(write_table(root / "list.csv", table), root.parent / "p", asked).notes
    named = {f"{n}/1.png": encode(noise(9, 9, n)) for n in range(12)}
    header = pack(folder(root.parent / "named", named), root.parent / "p", Options(val=0, test=0))
    assert header.notes[0].startswith("classes are numbered by their letters (0, 1, 10, ...)")


DEEPER = {
    "raw/hat raw/cap new/hat new/cap": "new and raw hold folders of the same names (cap, hat); if those are the "
    "classes, move them up, or pack {root}/new or {root}/raw",
    "a/a/hat a/a/cap b/b/hat b/b/cap c": "a and b hold folders of the same names (cap, hat); if those are the "
    "classes, move them up, or pack {root}/a/a or {root}/b/b",
    "train/a/hat train/a/cap train/b/x test/b/hat test/b/cap": "b and a hold folders of the same names (cap, hat); if "
    "those are the classes, move them up, or pack {root}/test/b or {root}/train/a",
    "a/2019 b/2019": "",
    "a a/hat a/cap b/hat b/cap": "",
    "train/a/hat train/a/cap train/b test/a/hat test/a/cap": "",
}


@pytest.mark.parametrize("folders", DEEPER)
def test_classes_that_may_lie_a_folder_deeper_are_pointed_out(folders: str, tmp_path: Path) -> None:
    files = {f"{name}/1.png": encode(noise(9, 9, n)) for n, name in enumerate(folders.split())}
    header = pack(folder(tmp_path / "x", files), tmp_path / "p", Options(val=0, test=0))
    notes = [note.removeprefix("the class folders ") for note in header.notes if "same names" in note]
    assert notes == ([DEEPER[folders].format(root=tmp_path / "x")] if DEEPER[folders] else [])


def test_a_folder_of_save_to_disk_is_refused_with_the_way_out(root: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"label": [0, 1]})
    made.save_to_disk(root.parent / "one")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(root.parent / "several")
    for name in ("one", "several"):
        said = refused(root.parent / name)
        assert said.startswith(
            f"{root.parent / name} is a set that save_to_disk of datasets wrote; expected Parq"
        )


def test_the_first_folders_in_a_manifests_paths_are_its_splits(root: Path) -> None:
    home, names = root.parent / "set", {path: "test" if seed % 3 else "Train" for path, seed in FILES.items()}
    files = {f"{names[path]}/{path.replace('/', '-')}": path for path in FILES}
    folder(home, {name: DATA[path] for name, path in files.items()} | {"x.png": encode(noise(9, 9, 99))})
    table = [{"file_name": name, "label": label_of(path)} for name, path in files.items()]
    expected = {(label_of(path), DATA[path], names[path].lower()): 1 for path in FILES}
    assert rows(write_table(home / "list.csv", table), Options(val=0)) == expected
    write_table(home / "metadata.csv", table)
    assert rows(home, Options(val=0)) == expected
    assert Pack(root.parent / "packed.arrow").header.split_by == "as the folders say"
    rows(write_table(home / "list.csv", [*table, {"file_name": "x.png", "label": "no"}]))
    said = "the folders Train, test are not taken as splits: images lie outside of them"
    assert said in Pack(home / "packed.arrow").header.notes


def test_splits_without_a_class_in_common_are_refused(root: Path) -> None:
    """Here because one folder names its classes, and the other numbers them."""
    files = [f"train/{name}/1.png" for name in "ba"] + [f"test/{name}/1.png" for name in "01"]
    source = folder(root.parent / "set", {name: encode(noise(20, 20, n)) for n, name in enumerate(files)})
    said = "train and test have no class in common: train has a, b, and test has 0, 1; expected the same"
    assert refused(source).startswith(said)


def test_what_a_manifest_cannot_give_is_left_out_and_counted(root: Path) -> None:
    table = [{**line, "split": "train" if n % 3 else "test", "note": "x"} for n, line in enumerate(TABLE)]
    table += [
        {"path": "gone.jpg", "label": "no", "split": "train", "note": ""},
        {"path": "", "label": "", "split": "", "note": ""},
        {"path": "no/5.jpg", "label": " ", "split": "train", "note": ""},
        {"path": "./no//0.png", "label": "no", "split": "test", "note": ""},
        {"path": "loose.png", "label": "no", "split": "holdout", "note": "x"},
        {"path": "bad.png", "label": "no", "split": "train", "note": "x"},
        {"path": "blank.png", "label": "no", "split": "", "note": "x"},
    ]
    more = {"loose.png": encode(noise(9, 9, 99)), "bad.png": b"bad", "blank.png": encode(noise(9, 9, 98))}
    folder(root, more)
    table[0]["path"], table[1]["path"] = table[0]["path"].replace("/", "\\"), f"./{table[1]['path']}"
    del table[23]  # whose label is blank below
    header = pack(write_table(root / "list.csv", table), root / "out.arrow")
    assert left_out(header) == {
        "gone.jpg": ("missing file", "line 25"),
        "no/5.jpg": ("no label", "line 27"),
        "no/0.png": ("duplicate path", "named before"),
        "loose.png": ("unknown split", "line 29 says 'holdout'; expected train, val, test"),
        "bad.png": ("undecodable", "no image that is read here"),
        "blank.png": ("unknown split", "it names none"),
    }
    assert "columns of list.csv that are not used: note" in header.notes
    assert sum(rows_of(Pack(root / "out.arrow")).values()) == 23
    assert all(row.thumbnail is None for row in header.excluded if row.reason == "duplicate path")


REFUSED = {
    "nothing": ("csv", "", " is empty; expected a table with a path (path, file_name, "),
    "no line": ("csv", "path,label\n", " names no image that can be packed; expected a line or a sample"),
    "no column of paths": ("csv", "where,label\na,b\n", " has the columns where, label; expected a table with a path"),
    "no column of classes": ("csv", "path,kind\na,b\n", " has the columns path, kind; expected a table with a path"),
    "no file": ("csv", "path,label\na,b\nc,d\n", " names no image that can be packed; the first: a: missing file (line 2); paths are sought below {home}"),
    "no name": ("csv", f"path,label\n{'/9j/' + 'a' * 5000},b\n", " has '/9j/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' in line 2, which cannot be a path (File name too long); exp"),
    "no training": ("csv", "path,label,split\nno/0.png,no,val\nbeagle/1.jpg,b,test\n", " names the splits test, val and none for training; expected train, val, test"),
    "an address": ("csv", "path,label\nhttps://a.b/c.jpg,b\n", " names the address 'https://a.b/c.jpg' in line 2; expected a file"),
    "no path": ("csv", "path,label\n,b\n", " names no path in line 2; expected one in every line"),
    "two classes": ("csv", "path,label\nno/0.png,no\nno/0.png,yes\n", " names 'no/0.png' twice, with the class 'no' and with 'yes'; expected one line a file"),
    "two splits": ("csv", "path,label,split\nno/0.png,no,val\nno/0.png,no,test\n", " names 'no/0.png' twice, with the split 'val' and with 'test'"),
    "one class": ("csv", "path,label\nno/0.png,no\n", " names 1 class ('no'); expected 2 to 10,000; if another column has"),
    "two weights": ("csv", "path,label,weight\nno/0.png,no,1\nno/0.png,no,2\n", " names 'no/0.png' twice, with the weight 1.0 and with 2.0; expected one line"),
    "a word": ("csv", "path,label,weight\nno/0.png,no,\nno/1.jpg,no,much\n", " weighs an image by 'much' in line 3; expected a number from 0, such as 0.5"),
    "a weight below 0": ("csv", "path,label,weight\nno/0.png,no,-0.5\n", " weighs an image by '-0.5' in line 2; expected"),
    "no number": ("csv", "path,label,weight\nno/0.png,no,nan\n", " weighs an image by 'nan' in line 2; expected"),
    "an endless weight": ("csv", "path,label,weight\nno/0.png,no,inf\n", " weighs an image by 'inf' in line 2; expected"),
    "no float32": ("jsonl", '{"path": "no/0.png", "label": "no", "weight": 1e39}\n', " weighs an image by '1e+39' in line 1; expected"),
    "a true weight": ("jsonl", '{"path": "no/0.png", "label": "no", "weight": true}\n', " has True (bool) as the weight in line 1; expected"),
    "no JSON": ("jsonl", '{"path": "a", "label": "b"}\n{"path"\n', " has no JSON object in line 2; expected a table"),
    "a JSON list": ("jsonl", '["a", "b"]\n', " has no JSON object in line 1; expected a table"),
    "no text": ("jsonl", "\udcff", " is no text in UTF-8; expected a table"),
    "blank lines": ("jsonl", "\n\n", " is empty; expected a table"),
    "a boolean": ("jsonl", '{"path": "no/0.png", "label": false}\n', " has False (bool) as the label in line 1; expected text or a whole number"),
    "a list": ("jsonl", '{"path": "no/0.png", "label": ["a", "b"]}\n', " has ['a', 'b'] (list) as the label in line 1; expected text"),
    "mixed types": ("jsonl", '{"path": "no/0.png", "label": 1}\n{"path": "no/1.jpg", "label": "1"}\n', " has a number as the label in line 1 and text in line 2; expected one kind"),
    "names alike": ("jsonl", '{"path": "a", "label": 1, "Label": 2}\n', " has two names that differ only in case in line 1 (path, label, Label)"),
    "no Parquet": ("parquet", "PAR1", " cannot be read ("),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_manifest_that_cannot_be_read_is_refused(name: str, root: Path) -> None:
    ending, text, said = REFUSED[name]
    file = root / f"list.{ending}"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(file).startswith(f"{file}{said.replace('{home}', str(root))}")


def weights_of(found: Pack) -> dict[str, float]:
    return {found.image_path(row): weight for row, weight in enumerate(found.weights.tolist())}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_manifests_weights_go_with_their_images(root: Path, ending: str, shards: int) -> None:
    """An empty cell is 1; what weighs all alike, and 1, leaves the pack as it is without the column."""
    out, options = root / "out.arrow", Options(shards=shards)
    cells: list[Any] = [0.1, 0, 2.5, None, 1, 1e-50]
    table = [
        {**line, "weight": None if n == 23 else float(n % 5) / 4 if ending == "parquet" else cells[n % 6]}
        for n, line in enumerate(TABLE)
    ]
    if ending == "csv":
        table = [{key: "" if value is None else str(value) for key, value in line.items()} for line in table]
    header = pack(write_table(root / f"list.{ending}", table), out, options)
    given = {line["path"]: line["weight"] for line in table}
    expected = {path: np.float32(1 if said in (None, "") else said) for path, said in given.items()}
    found = Pack(out)
    assert weights_of(found) == expected and found.corrupt() == []
    assert found.weights.dtype == np.float32 and len({*expected.values()}) > 3
    assert found.summary()["weights"] == [0, float(max(expected.values()))]
    column = pa.concat_tables(pa.ipc.open_file(file).read_all() for file in found.files)["weight"]
    assert column.to_pylist() == found.weights.tolist()
    plain = pack(write_table(root / f"list.{ending}", TABLE), out, options)
    content, split_of = hashlib.sha256(), splits_of(Pack(out))
    for row, label in enumerate((opened := Pack(out)).labels):
        image = hashlib.sha256(opened.encoded(row).data).hexdigest()
        content.update(f"{opened.image_path(row)}\0{label}\0{split_of[row]}\0{image}\n".encode())
    assert plain.digest == content.hexdigest(), "as it was before there were weights"
    names = pa.ipc.open_file(Pack(out).files[0]).schema.names
    assert "weight" not in names and weights_of(Pack(out)) == dict.fromkeys(FILES, 1.0)
    ones = [{**line, "weight": 1} for line in TABLE]
    again = pack(write_table(root / f"list.{ending}", ones), out, options)
    assert again.digest == plain.digest != header.digest
    assert pa.ipc.open_file(Pack(out).files[0]).schema.names == names


def test_a_damaged_weight_is_found(root: Path) -> None:
    """In the index when it is first used; in the rows when the pack is verified. Of no sense: refused too."""
    out = root / "out.arrow"
    pack(write_table(root / "list.csv", [{**line, "weight": "7.25"} for line in TABLE]), out)
    data, place = out.read_bytes(), Shard(out)._index.columns["weight"][0]
    rows_at = data.find(np.full(24, 7.25, "<f4").tobytes())
    assert 0 < rows_at < place
    for at, look in ((place, lambda: Pack(out).weights), (rows_at, lambda: Pack(out).corrupt())):
        out.write_bytes(data[:at] + b"\1" + data[at + 1 :])
        assert Pack(out).labels.tolist()
        with pytest.raises(PackError, match="is corrupt: labels, splits, sizes or paths are not those"):
            look()
    for weight in (-1.0, math.nan, math.inf):
        out.write_bytes(data[:rows_at] + np.float32(weight).tobytes() + data[rows_at + 4 :])
        add_index(out)
        with pytest.raises(PackError, match=r"weights go from .*; expected 0 to 3.4\d*e\+38; pack"):
            Pack(out).weights  # noqa: B018


def test_weights_are_said_where_they_differ(root: Path, capsys: Capture) -> None:
    out, said = root / "out.arrow", []
    for weights in ((0.5, 2.0), (2.0, 2.0)):
        table = [{**line, "weight": str(weights[n % 2])} for n, line in enumerate(TABLE)]
        pack(write_table(root / "list.csv", table), out)
        capsys.readouterr()
        show.describe(Pack(out), 0)
        show.say_unpacked(Pack(out), Path("folder"))
        said.append(
            [
                line
                for line in capsys.readouterr().out.splitlines()
                if line.startswith(("weights", "the weights"))
            ]
        )
    assert said == [
        [
            "weights: 0.5 to 2; they count in training alone",
            "the weights of the images are not in folders: a pack of these weighs all alike",
        ],
        [],
    ]


def test_training_images_that_all_weigh_0_are_refused(root: Path) -> None:
    for ending in ("csv", "jsonl"):
        table = [{**line, "split": ("train", "val")[n % 2], "weight": n % 2} for n, line in enumerate(TABLE)]
        said = refused(write_table(root / f"list.{ending}", table))
        assert said == "each of the 12 training images weighs 0; expected one that weighs more"
        said = refused(write_table(root / f"list.{ending}", [{**line, "weight": 0} for line in TABLE]))
        assert said.endswith(" training images weighs 0; expected one that weighs more")


def test_a_class_whose_files_are_all_missing_is_refused(root: Path) -> None:
    table = [*TABLE, {"path": "none.jpg", "label": "eel"}]
    said = refused(write_table(root / "list.csv", table))
    assert said.startswith("class eel has no image left; left out: 1 missing file; the first: none.jpg:")


def test_lone_surrogates_and_numbers_in_json(root: Path) -> None:
    """What no file can be called is a missing one; whole numbers are classes by their digits."""
    table: list[dict[str, Any]] = [{"path": line["path"], "label": n % 12} for n, line in enumerate(TABLE)]
    header = pack(
        write_table(root / "list.jsonl", [*table, {"path": "\ud800.png", "label": 1}]), root / "out.arrow"
    )
    assert header.classes == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
    assert left_out(header) == {"\\ud800.png": ("missing file", "line 25")}


def test_another_column_has_the_classes(root: Path) -> None:
    table = [{**line, "label": "x", "Kind": line["label"]} for line in TABLE]
    for ending in ("csv", "jsonl", "parquet"):
        file = write_table(root / f"list.{ending}", table)
        assert {kind for kind, *_ in rows(file, label="kind")} == {*NAMES}
        said = refused(file, label="sort")
        assert (
            said == f"{file} has the columns path, label, kind; expected a column 'sort', which --label names"
        )
    said = f"--label names a column, and {root} has none; expected class folders without --label"
    assert refused(root, root.parent / "out.arrow", label="kind") == said
    file = write_table(root / "metadata.csv", METADATA)
    said = f"{file} has the columns file_name, label; expected a column 'kind', which --label names"
    assert refused(root, root.parent / "out.arrow", label="kind") == said


def test_a_bad_line_in_the_metadata_of_class_folders_is_refused(root: Path) -> None:
    file = write_table(root / "metadata.csv", METADATA)
    file.write_text(file.read_text() + "no/0.png,no,more\n")
    for label in ("", "label"):
        said = refused(root, root.parent / "out.arrow", label=label)
        assert said.startswith(f"{file} has 3 cells in line 26, and its first line names 2 columns")


def test_columns_of_parquet_that_are_not_needed_are_not_read(root: Path, monkeypatch: Patch) -> None:
    table = [{**line, "Kind": line["label"], "embedding": [0.5] * 9} for line in TABLE]
    asked, whole = list[list[str]](), pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, *arguments: Any, columns: list[str]) -> Any:
        asked.append(columns)
        return whole(self, *arguments, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    rows(write_table(root / "list.parquet", table), label="kind")
    assert asked == [["path", "label", "Kind"]]
    said = "columns of list.parquet that are not used: label, embedding"
    assert Pack(root / "packed.arrow").header.notes == (said,)


def test_files_that_no_table_lists_are_looked_up_quickly(tmp_path: Path) -> None:
    """Of 20,000, once each; a list would be gone through 20,000 times, which took over half a minute."""
    images, start = Collector("x"), time.process_time()
    for n in range(20_000):
        assert not images.knows(f"{n}")
        images.leave_out(tmp_path, f"{n}", "", "not listed")
    assert images.knows("0") and time.process_time() - start < 5


METADATA = [{"file_name": path, "label": label_of(path)} for path in FILES]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_image_folder_of_hugging_face_is_a_manifest(ending: str, root: Path) -> None:
    """Its metadata outranks the folders; what it does not name is left out."""
    expected = rows(root)
    flat = folder(root.parent / "flat", {path.replace("/", "-"): data for path, data in DATA.items()})
    table = [{**line, "file_name": line["file_name"].replace("/", "-")} for line in METADATA]
    file = write_table(flat / f"metadata.{ending}", table)
    assert rows(flat) == expected
    folder(flat, {"more/x.png": encode(noise(9, 9, 99)), "notes.txt": b""})
    header = pack(flat, root.parent / "p")
    assert left_out(header) == {"more/x.png": ("not listed", f"{file.name} has no line for it")}
    other = {name: f"{name}s" for name in NAMES}
    write_table(root / "metadata.csv", [{**line, "label": other[line["label"]]} for line in METADATA])
    said = "metadata.csv says the classes, and the names of the folders (007, Akita, beagle, no) do not"
    assert not [note for note in Pack(root.parent / "packed.arrow").header.notes if "folders" in note]
    assert rows(root) == {(other[kind], data, split): 1 for kind, data, split in expected}
    assert [note for note in Pack(root.parent / "packed.arrow").header.notes if note.startswith(said)]


def test_metadata_in_the_folders_of_splits(root: Path) -> None:
    for place, names in (("train", "0134"), ("validation", "5"), ("test", "2")):
        some = [path for path in FILES if Path(path).stem in names]
        files = {f"{place}/{path.replace('/', '-')}": DATA[path] for path in some}
        folder(root.parent / "hf", files)
        lines = [{"file_name": path.replace("/", "-"), "label": label_of(path)} for path in some]
        write_table(root.parent / "hf" / place / "metadata.jsonl", lines)
    meant = {"2": "test", "5": "val"}
    expected = {(label_of(path), DATA[path], meant.get(Path(path).stem, "train")): 1 for path in FILES}
    assert rows(root.parent / "hf") == expected
    assert Pack(root.parent / "packed.arrow").header.split_by == "as the folders say"


def test_metadata_without_classes_leaves_the_class_folders(root: Path) -> None:
    expected = rows(root)
    file = write_table(root / "metadata.csv", [{"file_name": path, "text": "a dog"} for path in FILES])
    assert rows(root) == expected
    said = f"{file} has the columns file_name, text; expected a table with a path"
    (note,) = Pack(root.parent / "packed.arrow").header.notes
    assert note.startswith(said) and note.endswith("; so the class folders are read")
    one = folder(root.parent / "one", {f"train/{path}": data for path, data in DATA.items()})
    write_table(one / "train" / "metadata.jsonl", [{"file_name": path, "text": "a dog"} for path in FILES])
    assert refused(one).endswith(f"{one}/CLASS/image.jpg; if the classes lie in train, pack {one / 'train'}")
    flat = folder(root.parent / "flat", {"a.png": DATA["no/0.png"]})
    file = write_table(flat / "metadata.csv", [{"file_name": "a.png"}])
    assert refused(flat, root.parent / "p").startswith(f"{file} has the columns file_name; expected a table")


ORDERS = {
    "": ("1", "10", "2", "a", "B", "b"),
    "sorted": ("1", "10", "2", "B", "a", "b"),
    "natural": ("1", "2", "10", "a", "B", "b"),
    "b\n10\r\n1\n\na\n2\nB\n": ("b", "10", "1", "a", "2", "B"),
    '["2", "b", "a", "B", "10", "1"]': ("2", "b", "a", "B", "10", "1"),
    '{"1": "10", "0": "B", "2": "a", "3": "1", "4": "2", "5": "b"}': ("B", "10", "a", "1", "2", "b"),
    '{"a": 5, "b": 0, "B": 1, "10": 2, "2": 3, "1": 4}': ("b", "B", "10", "2", "1", "a"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_classes_are_numbered_in_the_order_that_is_asked_for(order: str, tmp_path: Path) -> None:
    """The labels too, of folder and manifest alike. A class folder without files is none."""
    files = {f"{name}/1.png": encode(noise(20, 20, n)) for n, name in enumerate(ORDERS[""])}
    root = folder(tmp_path / "images", files)
    (root / "0 empty").mkdir()
    (tmp_path / "order").write_text(order)
    wanted = order if order in ("", "sorted", "natural") else str(tmp_path / "order")
    table = [{"path": path, "label": label_of(path)} for path in files]
    for source in (root, write_table(root / "list.csv", table)):
        opened = pack(source, tmp_path / "p", Options(val=0, test=0, source=SourceOptions(order=wanted)))
        assert opened.classes == ORDERS[order]
        packed = Pack(tmp_path / "p")
        for row in range(len(files)):
            assert packed.classes[packed.labels[row]] == label_of(packed.image_path(row))


WRONG_ORDERS = {
    "none": (None, "--class-order {file} cannot be read (No such file or directory); expected sorted, natural, or"),
    "bytes": ("\udcff", "--class-order {file} cannot be read (it is no text in UTF-8); expected sorted, natural"),
    "missing": ("Akita\nbeagle\nno\n", "{file} lacks '007'; expected just the 4 classes with images in the source"),
    "more": ("Akita\nbeagle\nno\n007\nx\ny\n", "{file} has 'x' and 1 more; expected just the 4 classes"),
    "twice": ("Akita\nbeagle\nno\n007\nno\n", "{file} names 'no' twice; expected each class once"),
    "no JSON": ("[1,", "{file} is no valid JSON; expected sorted, natural"),
    "numbers": ("[1, 2]", "{file} lists what is no text; expected"),
    "a gap": ('{"Akita": 0, "beagle": 1, "no": 2, "007": 4}', "{file} does not number its 4 classes from 0; exp"),
    "no index": ('{"Akita": 0, "beagle": 1, "no": 2, "007": true}', "{file} does not number its 4 classes from"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_an_order_of_other_classes_is_refused(name: str, root: Path) -> None:
    text, said = WRONG_ORDERS[name]
    file = root.parent / "order"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(root, root.parent / "p", order=str(file)).startswith(said.format(file=file))


NO_SOURCE = {
    "https://a.b/c.tar": "https://a.b/c.tar is an address; expected a folder with one subfolder a class, a manifest",
    "{tmp}/x.tar": "{tmp}/x.tar is not there; expected a folder with one subfolder a class, a manifest",
    "{tmp}/x.csv": "{tmp}/x.csv is not there; expected a folder with one subfolder a class, a manifest",
    "{tmp}/x-{{0..3}}.tar": "{tmp}/x-0.tar is not there; expected a file that the pattern names",
    "{tmp}/*.parquet": "{tmp}/*.parquet is not there; expected a file that the pattern names",
    "{tmp}/x-{{3..0}}.tar": "{tmp}/x-{{3..0}}.tar names no file; expected a range that goes up",
    "{tmp}/a.zip": "{tmp}/a.zip is a file; expected a folder with one subfolder a class",
    "{tmp}/a.*": "{tmp}/a.* is 2 files; expected a folder with one subfolder a class",
}


@pytest.mark.parametrize("source", NO_SOURCE)
def test_what_is_no_source_is_refused(source: str, tmp_path: Path) -> None:
    folder(tmp_path, {"a.zip": b"PK", "a.csv": b""})
    said = NO_SOURCE[source].format(tmp=tmp_path)
    assert refused(Path(source.format(tmp=tmp_path))).startswith(said)


STANFORD = {
    f"n0208562{k}-{name}/n0208562{k}_{n}.png": name
    for k, name in enumerate(("maltese_dog", "Borzoi", "10"))
    for n in range(5)
}


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    """Stanford Dogs' own layout, with lists as text: the last of each class is for the test."""
    files = {f"Images/{path}": encode(noise(30, 30, seed)) for seed, path in enumerate(STANFORD)}
    folder(tmp_path / "dogs", files | {"Annotation/n02085620-maltese_dog/n02085620_0": b"<xml>"})
    for split in ("train", "test"):
        lines = [path for path in STANFORD if (split == "test") == path.endswith("4.png")]
        (tmp_path / "dogs" / f"{split}_list.txt").write_text("\n".join(lines))
    return tmp_path / "dogs"


def as_matlab(dogs: Path) -> None:
    """The lists as Stanford has them: cells of text, annotations and labels beside them."""
    scipy = pytest.importorskip("scipy.io")
    (dogs / "lists").mkdir()
    for split in ("train", "test"):
        paths = (dogs / f"{split}_list.txt").read_text().split()
        (dogs / f"{split}_list.txt").unlink()
        cells = np.array(paths, dtype=object)[:, None]
        labels = np.ones((len(paths), 1), np.uint8)
        scipy.savemat(dogs / "lists" / f"{split}_list.mat", {"file_list": cells, "labels": labels})


@pytest.mark.parametrize("lists", ["txt", "mat"])
def test_stanford_dogs_keep_their_split(lists: str, dogs: Path) -> None:
    """Classes are called without their WordNet numbers, in the order of their folders, unless asked otherwise."""
    if lists == "mat":
        as_matlab(dogs)
    header = pack(dogs, dogs.parent / "p", Options(val=0))
    assert header.classes == ("maltese_dog", "Borzoi", "10")
    assert header.split_by == f"as train_list.{lists} and test_list.{lists} say"
    assert header.notes[0].startswith("classes are called maltese_dog for n02085620-maltese_dog and so on;")
    packed = Pack(dogs.parent / "p")
    said = dict(zip(paths_of(packed), splits_of(packed), strict=True))
    assert said == {path: "test" if path.endswith("4.png") else "train" for path in STANFORD}
    assert all(packed.classes[packed.labels[row]] == STANFORD[packed.image_path(row)] for row in range(15))
    header = pack(
        dogs, dogs.parent / "p", Options(val=0, source=SourceOptions(names="as-is", order="sorted"))
    )
    assert header.classes == ("n02085620-maltese_dog", "n02085621-Borzoi", "n02085622-10")
    for names in ("n02085621-Borzoi\n10\nmaltese_dog\n", "Borzoi\nn02085622-10\nn02085620-maltese_dog"):
        (dogs.parent / "order").write_text(names)
        order = SourceOptions(order=str(dogs.parent / "order"))
        assert pack(dogs, dogs.parent / "p", Options(val=0, source=order)).classes == (
            "Borzoi",
            "10",
            "maltese_dog",
        )


def test_what_stanfords_lists_do_not_agree_with_is_left_out(dogs: Path) -> None:
    gone, extra = (
        "n02085620-maltese_dog/n02085620_1.png",
        {"Images/n02085621-Borzoi/more.png": encode(noise(9, 9))},
    )
    folder(dogs, extra)
    (dogs / "Images" / gone).unlink()
    header = pack(dogs, dogs.parent / "p", Options(val=0))
    assert left_out(header) == {
        gone: ("missing file", "in train_list.txt"),
        "n02085621-Borzoi/more.png": ("not listed", "neither in train_list.txt and test_list.txt"),
    }


def test_stanfords_lists_that_make_no_sense_are_refused(dogs: Path) -> None:
    train, test = (dogs / f"{split}_list.txt" for split in ("train", "test"))
    said = train.read_text()
    test.write_text(test.read_text() + "\n" + said.split()[0])
    assert refused(dogs, dogs.parent / "p").startswith(
        f"{test} lists 'n02085620-maltese_dog/n02085620_0.png', which"
    )
    train.write_text("a/b\n")
    test.write_text("")
    assert refused(dogs, dogs.parent / "p").startswith(
        f"train_list.txt and test_list.txt in {dogs} list none of the"
    )
    train.rename(train.with_suffix(".mat"))
    said = refused(dogs, dogs.parent / "p")
    assert said.startswith(f"{train.with_suffix('.mat')} is no list of images (")


def test_decisions_by_the_folders_names_or_the_short_ones_are_obeyed(dogs: Path) -> None:
    """A survey knows the folders, a review by a run the classes of the pack."""
    first, second, *_ = STANFORD
    rows = [(first, "n02085621-Borzoi"), (second, "Borzoi")]
    made = [Decision(Photograph(path, "n02085620-maltese_dog", ""), "relabel", to) for path, to in rows]
    decisions = [
        replace(each, image=replace(each.image, sha256=digest(dogs, each.image.path))) for each in made
    ]
    header = pack(dogs / "Images", dogs.parent / "p", Options(val=0, decisions=decisions))
    assert header.relabelled == ((first, "maltese_dog", "Borzoi"), (second, "maltese_dog", "Borzoi"))
    assert header.split_by.startswith("drawn by seed 0")


def digest(dogs: Path, path: str) -> str:
    return hashlib.sha256((dogs / "Images" / path).read_bytes()).hexdigest()


@pytest.mark.parametrize("names", ["b n02085620-a", "n02012849-crane n03126707-crane", "n02085620 n02085621"])
def test_names_stay_where_the_short_ones_would_not_do(names: str, tmp_path: Path) -> None:
    root = folder(
        tmp_path / "x", {f"{name}/1.png": encode(noise(9, 9, n)) for n, name in enumerate(names.split())}
    )
    assert pack(root, tmp_path / "p", Options(val=0, test=0)).classes == tuple(names.split())


def test_a_class_is_known_by_the_folder_it_may_have_had() -> None:
    assert [class_of(name, ["a", "n00000001-b"]) for name in ("a", "n00000001-a", "n00000001-b", "b", "n1-a")] == [
        "a", "a", "n00000001-b", "", "",
    ]  # fmt: skip
