"""The folder means what people mean: splits, system folders, links, names; and a split that keeps together what belongs together."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pictures import encode, folder, noise, paths_of, splits_of
from runs import Patch

from greyhound.cache.folder import (
    NO_LABEL,
    Sample,
    find_images,
    find_labelled,
    find_unlabelled,
    read_image_folder,
)
from greyhound.cache.pack import Options, pack
from greyhound.cache.scan import ImageInfo
from greyhound.cache.split import Assigned, Kept, Table, assign, read_split
from greyhound.cache.store import SPLITS, Pack, PackError
from greyhound.cache.survey.findings import inspect

pytestmark = pytest.mark.usefixtures("scan_in_process")

FOUND = {
    "splits of classes": ("train/cat train/dog val/cat val/dog test/cat test/dog", "cat dog", "train train val val test test"),
    "other names": ("Training/cat Training/dog VALID/cat testing/dog", "cat dog", "train train val test"),
    "two of them": ("train/cat train/dog validation/cat validation/dog", "cat dog", "train train val val"),
    "two of one kind": ("train/a train/b val/a validation/b", "a b", "train train val val"),
    "classes of splits": ("cat/train cat/test dog/train dog/valid", "cat dog", "train test train val"),
    "a class in one split alone": ("train/cat train/dog test/cat test/eel", "cat dog eel", "train train test test"),
    "deeper": ("train/cat/2024/may train/dog test/cat/x/y test/dog", "cat dog", "train train test test"),
    "a train is a vehicle": ("car truck train", "car train truck", ""),
    "kinds of trains": ("car/sedan car/suv train/steam train/electric", "car train", ""),
    "a train of tests": ("lab/test lab/blank field/rain", "field lab", ""),
    "two folders within": ("cat/train cat/2 dog/train dog/2", "cat dog", ""),
    "not these names": ("train-station test tube", "test train-station tube", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_folders_are_classes_or_splits(name: str, tmp_path: Path) -> None:
    """For pack and survey alike; what is read is the same as before where there are no splits."""
    places, classes, splits = (text.split() for text in FOUND[name])
    root = folder(
        tmp_path / "images", {f"{place}/1.png": encode(noise(9, 9, n)) for n, place in enumerate(places)}
    )
    found, sources, notes = find_labelled(root)
    assert (list(found), notes) == (classes, [])
    said = {source.path.removesuffix("/1.png"): source for source in sources}
    assert [said[place].split for place in places] == (splits or [""] * len(places))
    for place, source in said.items():
        parts = place.split("/")
        assert found[source.label] in (parts if splits else parts[:1])
        assert found[source.label].lower() not in ("valid", "training", "val", "test") or not splits
    with inspect(root) as rows:
        assert {row.path: row.label for row in rows} == {each.path: found[each.label] for each in sources}


REFUSED = {
    "images beside splits": ("train/a/1.png test/a/1.png cat/1.png", "has the splits test, train and, beside them, images in cat; expected splits (train, val, test) or one folder a class: move or rename the one"),
    "no split to train on": ("val/a/1.png val/b/1.png test/a/1.png", "has the splits test, val and none for training; expected splits"),
    "images beside the splits of a class": ("a/train/1.png a/test/1.png b/1.png", "has splits in its class folders, and b/1.png is in none"),
    "no folder beside the splits of a class": ("a/train/1.png a/test/1.png a/x/1.png", "has splits in its class folders, and a/x is in none"),
    "one split, and a folder without classes": ("train/a/1.png train/b/1.png test1/1.png", "has train, which has folders in it, beside test1 without any; expected splits (train, val, test) or one folder a class: pack {root}/train, or rename that folder"),
    "splits without classes": ("train/1.png test/1.png", "has no class folders in its splits; expected one a class, at least 2: {root}/SPLIT/CLASS/image.jpg"),
    "splits of one class": ("train/a/1.png test/a/1.png", "has 1 class folder in its splits; expected one a class, at least 2: {root}/SPLIT"),
    "a folder around it": ("set/a/1.png set/b/1.png", "has 1 subfolder; expected one a class, at least 2: {root}/CLASS/image.jpg; if the classes lie in set, pack {root}/set"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_could_be_either_are_refused(name: str, tmp_path: Path) -> None:
    paths, said = REFUSED[name]
    root = folder(tmp_path / "images", dict.fromkeys(paths.split(), b""))
    with pytest.raises(PackError) as refusal:
        find_labelled(root)
    assert str(refusal.value).startswith(f"{root} {said.format(root=root)}")
    assert "\n" not in str(refusal.value)


def test_what_holds_no_images_beside_the_splits_is_left_alone_and_said(tmp_path: Path) -> None:
    files = dict.fromkeys(
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "labels/x.xml", "train/loose.png"], b""
    )
    classes, sources, notes = find_labelled(folder(tmp_path / "images", files))
    assert (classes, notes) == (("a", "b"), ["the folder labels is left alone: it holds no images"])
    assert [(each.path, each.label) for each in sources][-2:] == [("train/a/1.png", 0), ("train/b/1.png", 1)]
    assert ("train/loose.png", NO_LABEL) in [(each.path, each.label) for each in sources]


def test_a_split_of_folders_is_packed_as_it_is(tmp_path: Path) -> None:
    """And what it has no val for comes out of train; a picture on both sides is said."""
    places = [
        f"{split}/{name}" for split, name in itertools.product(("train", "test"), "ab") for _ in range(10)
    ]
    files = {f"{place}/{n:02}.png": encode(noise(40, 30, n)) for n, place in enumerate(places)}
    files["test/b/copy.png"] = files["train/a/00.png"]
    root, out = folder(tmp_path / "images", files), tmp_path / "p.arrow"
    header = pack(root, out, Options(duplicates="keep"))
    opened = Pack(out)
    splits = dict(zip(paths_of(opened), splits_of(opened), strict=True))
    assert {path for path, split in splits.items() if split == "test"} == {
        path for path in files if "test" in path
    }
    assert Counter(splits.values()) == {"train": 18, "val": 2, "test": 21}
    assert header.split_by == "as the folders say; val is 0.1 of each class, drawn from train by seed 0"
    said = "1 pictures or groups lie in more than one split, as test/b/copy.png in test and train/a/00.png in train"
    assert [note.split(":")[0] for note in header.notes] == [said]
    assert opened.summary()["split_by"] == header.split_by and opened.summary()["notes"] == list(header.notes)
    header = pack(root, out, Options(val=0, duplicates="keep"))
    assert (header.split_by, list(header.empty)) == ("as the folders say", ["val"])
    assert header.notes[1:] == ("val has no image: the split that you gave has none",)
    folder(root, {"train/eel/1.png": encode(noise(40, 30, 90)), "test/ele/1.png": encode(noise(40, 30, 91))})
    lacking = [
        "train has no image of ele (1 image)",
        "val has no image of eel (1 image)",
        "test has no image of eel (1 image)",
    ]
    assert [note.split(":")[0] for note in pack(root, out, Options(duplicates="keep")).notes[1:]] == lacking


@pytest.mark.parametrize(
    ("files", "empty"),
    [
        ("a/1.png b/1.png c/.keep", "c"),
        ("a/1.png b/1.png c/deep/.keep d/@eaDir/1.png e/deep/1.png", "c, d"),
        ("train/a/1.png train/b/1.png train/c/.keep test/c/1.png test/d/.keep train/d/.keep", "d"),
        ("a/train/1.png a/test/1.png b/train/1.png b/test/.keep c/test/.keep", "c"),
        ("a/1.png b/1.png " + " ".join(f"c{n}/.keep" for n in range(7)), "c0, c1, c2, c3, c4 and 2 more"),
    ],
)
def test_class_folders_without_files_are_named(files: str, empty: str, tmp_path: Path) -> None:
    """In a pack's notes and by a survey."""
    root = folder(tmp_path / "images", dict.fromkeys(files.split(), b""))
    said: list[str] = []
    with inspect(root, say=said.append) as rows:
        assert len([*rows])
    for notes in (said, find_labelled(root)[2]):
        assert notes[-1] == f"class folders without files, which are no classes: {empty}"


def test_what_systems_make_is_left_alone_and_said_once(tmp_path: Path) -> None:
    mess = [
        "__MACOSX/a/x.jpg",
        "a/@eaDir/1.png/T.jpg",
        "b/@eaDir/1.png",
        "$RECYCLE.BIN/1.png",
        "a/Thumbs.db",
        "Desktop.ini",
        "System Volume Information/x",
    ]
    root = folder(tmp_path / "images", dict.fromkeys([*mess, "a/1.png", "b/deep/2.png", "thumbs/3.png"], b""))
    classes, sources, notes = find_labelled(root)
    assert classes == ("a", "b", "thumbs")
    assert [source.path for source in sources] == ["a/1.png", "b/deep/2.png", "thumbs/3.png"]
    assert [source.path for source in find_unlabelled(root)] == ["a/1.png", "b/deep/2.png", "thumbs/3.png"]
    made = "$RECYCLE.BIN, @eaDir (2 times), Desktop.ini, System Volume Information, Thumbs.db, __MACOSX"
    assert notes == [f"left alone, because systems make them: {made}"]
    said: list[str] = []
    with inspect(root, say=said.append) as rows:
        assert len([*rows]) == 3
    assert said == notes


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    folder(tmp_path / "store", {"x/1.png": b"", "x/deep/2.png": b"", "y/3.png": b""})
    root = folder(tmp_path / "images", {"a/0.png": b"", "a/sub/4.png": b"", "b/5.png": b""})
    links = {
        "a/more": "store/x",
        "a/again": "store/x",
        "a/same": "images/a/sub",
        "a/up": "images/a",
        "a/of b": "images/b",
    }
    links |= {
        "b/more": "store/x",
        "store/x/deep/back": "store/x",
        "store/x/side": "store/y",
        "a/all": ".",
        "a/gone": "no",
    }
    for link, to in links.items():
        (tmp_path / link if link.startswith("store") else root / link).symlink_to(tmp_path / to)
    _, sources, notes = find_labelled(root)
    of_a = ["a/0.png", "a/gone", "a/again/1.png", "a/again/deep/2.png", "a/again/side/3.png", "a/sub/4.png"]
    of_b = ["b/5.png", "b/more/1.png", "b/more/deep/2.png", "b/more/side/3.png"]
    assert [source.path for source in sources] == of_a + of_b
    why = dict.fromkeys(
        ("a/again/deep/back", "a/all", "a/up", "b/more/deep/back"), "leads back to where it lies"
    )
    why |= dict.fromkeys(("a/of b", "a/same"), "leads to what is read on its own")
    why["a/more"] = "leads to what is read already"
    assert notes == [f"the folder {path} is left alone: it {text}" for path, text in sorted(why.items())]


def test_a_link_to_a_folder_that_is_left_alone_is_followed_and_a_class_that_leads_back_is_named(
    tmp_path: Path,
) -> None:
    files = dict.fromkeys(
        [".store/x/1.png", "b/.hidden/deep/2.png", "@eaDir/3.png", "a/0.png", "b/4.png"], b""
    )
    root = folder(tmp_path / "images", files)
    links = {
        "a/x": ".store/x",
        "a/y": "b/.hidden/deep",
        "b/z": "@eaDir",
        "b/x": ".store/x",
        "all": ".",
        "up": "..",
    }
    for link, to in links.items():
        (root / link).symlink_to(root / to)
    classes, sources, notes = find_labelled(root)
    found = ["a/0.png", "a/x/1.png", "a/y/2.png", "b/4.png", "b/x/1.png", "b/z/3.png"]
    assert (classes, [source.path for source in sources]) == (("a", "b"), found)
    back = [f"the folder {name} is left alone: it leads back to where it lies" for name in ("all", "up")]
    assert notes == ["left alone, because systems make them: @eaDir", *back]
    assert [source.path for source in find_unlabelled(root)] == found


@pytest.mark.parametrize(
    "name", ["1.NEF", "2.dng", "3.heic", "4.HEIF", "5.avif", "6.dcm", "7.svg", "8.jpg", "9.mpo"]
)
def test_a_picture_beside_the_class_folders_is_listed_also_one_that_is_not_read(
    name: str, tmp_path: Path
) -> None:
    files = dict.fromkeys(["a/1.png", "b/1.png", "notes.txt", "run.py", name], b"")
    root = folder(tmp_path / "images", files)
    _, sources, _ = find_labelled(root)
    assert [(each.path, each.label) for each in sources] == [("a/1.png", 0), ("b/1.png", 1), (name, NO_LABEL)]
    assert next(find_images(read_image_folder(root))) == name
    folder(tmp_path / "splits", {"train/a/1.png": b"", "test/a/1.png": b"", f"rest/{name}": b""})
    with pytest.raises(PackError, match="beside them, images in rest"):
        read_image_folder(tmp_path / "splits")


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["caf\u00e9", "cafe\u0301", "tea"], r"'cafe\\u0301' and 'caf\\xe9'"),
        (["dog", "Dog", "cat"], "'Dog' and 'dog'"),
        (["dog", "dog ", " d og", "cat"], "' d og' and 'dog' and 'dog '"),
        (["dog", "dogs", "d0g", "strasse", "cat"], ""),
    ],
)
def test_class_names_that_look_alike_are_said(names: Sequence[str], alike: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "images", {f"{name}/1.png": b"" for name in names})
    classes, _, notes = find_labelled(root)
    assert len(classes) == len(names)
    if alike:
        (note,) = notes
        assert re.match(f"the class folders {alike} differ only in case, in blanks,", note)
    assert bool(notes) == bool(alike)
    splits = folder(tmp_path / "splits", {f"{s}/{n}/1.png": b"" for s in ("test", "train") for n in "ab"})
    assert find_labelled(splits)[2] == []


def kept(names: Sequence[tuple[str, int]], looks: Sequence[str] | None = None) -> list[Kept]:
    """(path, label) -> what `assign` takes; looks: their contents, else each its own."""
    contents = looks or [path for path, _ in names]
    hashes = [hashlib.sha256(content.encode()).hexdigest() for content in contents]
    return [
        (Sample(Path(path), path, label), ImageInfo(sha256=sha))
        for (path, label), sha in zip(names, hashes, strict=True)
    ]


def herd(animals: Sequence[int], classes: int = 2) -> list[Kept]:
    """So many pictures of each animal, the class a matter of the animal."""
    return kept(
        [
            (f"{a % classes}/animal{a:03}_{n}.jpg", a % classes)
            for a, count in enumerate(animals)
            for n in range(count)
        ]
    )


def assigned(rows: Sequence[Kept], **options: object) -> tuple[Assigned, dict[str, Counter[str]]]:
    """And how many images of each group, the name without its last number, are in each split."""
    found = assign(rows, [f"class {label}" for label in range(99)], Options(**options))  # type: ignore[arg-type]
    groups: dict[str, Counter[str]] = {}
    for (source, _), split in zip(rows, found.splits, strict=True):
        groups.setdefault(re.sub(r"[-_ ]\(?\d+\)?\.\w+$", "", source.path), Counter())[split] += 1
    return found, groups


@pytest.mark.parametrize("seed", range(4))
def test_images_of_one_group_stay_in_one_split(seed: int) -> None:
    rows = herd([5] * 12)
    found, groups = assigned(rows, group="(.*)_", seed=seed)
    assert all(len(splits) == 1 for splits in groups.values())
    assert Counter(found.splits) == {"train": 40, "val": 10, "test": 10}  # 3 and 6 of 30, in whole fives
    assert found.how.endswith("; images of a group together (12 groups)")
    assert found.notes == ("with whole groups, val has 0.17 of all images, not 0.1",)
    again, _ = assigned(rows[::-1], group="(.*)_", seed=seed)
    assert again.splits[::-1] == found.splits
    assert found.splits != assigned(rows, group="(.*)_", seed=seed + 10)[0].splits
    table = Table(Path("t.csv"), {}, {source.path: source.path[:11] for source, _ in rows})
    assert assigned(rows, table=table, seed=seed)[0].splits == found.splits


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [1, 2])
def test_shares_are_as_near_as_groups_allow(classes: int, seed: int) -> None:
    """Beside the best of all ways to divide eight groups; and of many groups hardly off."""
    sizes = [int(each) for each in hashlib.sha256(bytes([seed])).hexdigest() if each in "123456789"][:8]
    rows = herd(sizes, classes)
    total = Counter(source.label for source, _ in rows)

    def off(places: Sequence[str]) -> float:
        counts = {split: Counter[int]() for split in SPLITS}
        for animal, split in enumerate(places):
            counts[split][animal % classes] += sizes[animal]
        if any(not counts["train"][label] for label in total):
            return float("inf")
        shares = {"val": 0.2, "test": 0.3}
        wanted = {split: {label: round(shares[split] * n) for label, n in total.items()} for split in shares}
        wanted["train"] = {
            label: n - wanted["val"][label] - wanted["test"][label] for label, n in total.items()
        }
        return sum(
            (counts[s][label] - wanted[s][label]) ** 2 / n for label, n in total.items() for s in SPLITS
        )

    _, groups = assigned(rows, group="(.*)_", val=0.2, test=0.3, seed=seed)
    best = min(map(off, itertools.product(SPLITS, repeat=8)))
    got = off([next(iter(groups[f"{a % classes}/animal{a:03}"])) for a in range(8)])
    assert got <= best + 0.5
    many, groups = assigned(herd(sizes * 60, classes), group="(.*)_", val=0.2, test=0.3, seed=seed)
    counts = Counter(many.splits)
    assert (
        abs(counts["val"] / len(many.splits) - 0.2) < 0.005
        and abs(counts["test"] / len(many.splits) - 0.3) < 0.005
    )


def test_groups_may_span_classes_and_twins_join_them() -> None:
    """A picture that two classes claim is for training, with its group."""
    rows = kept([(f"{n % 2}/p{n // 4}_{n}.png", n % 2) for n in range(80)])
    found, _ = assigned(rows, group=r"(p\d+)_", val=0.2, test=0.2)
    assert Counter(found.splits) == {"train": 48, "val": 16, "test": 16}
    whole = {source.path.split("/")[1].split("_")[0]: set[str]() for source, _ in rows}
    for (source, _), split in zip(rows, found.splits, strict=True):
        whole[source.path.split("/")[1].split("_")[0]].add(split)
    assert all(len(splits) == 1 for splits in whole.values())
    looks = [source.path for source, _ in rows]
    looks[0] = looks[5]  # of p0 and p1, and of two classes
    looks[12] = looks[16]  # of p3 and p4, one class
    found, _ = assigned(
        kept([(s.path, s.label) for s, _ in rows], looks), group=r"(p\d+)_", val=0.2, test=0.2
    )
    assert found.splits[:8] == ["train"] * 8
    assert len(set(found.splits[12:20])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "(.*"}, "--group '(.*' is no regular expression (missing ), unterminated subpattern"),
        ({"group": ""}, "--group is empty; expected a pattern on the path, such as '(.*)_', or no --group"),
        ({"group": "cow(.)"}, "--group 'cow(.)' names no group, for example none for '0/animal000_0.jpg'; expected"),
        ({"group": "(.*)_", "table": Table(Path("t"), {}, {"x": "y"})}, "--group and the column group of --split both"),
        ({"table": Table(Path("t.csv"), {"0/animal000_0.jpg": "val"}, {})}, "t.csv has no line for '0/animal000_1.jpg' and 2 more; expected a line for every image"),
    ],
)  # fmt: skip
def test_groups_and_tables_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(PackError) as refusal:
        assigned(herd([2, 2]), **options)
    assert str(refusal.value).startswith(message)


def test_an_image_without_a_group_is_one_of_its_own_and_that_is_said() -> None:
    rows = herd([3] * 10) + kept([(f"0/other{n}.jpg", 0) for n in range(4)])
    found, _ = assigned(rows, group="(.*)_")
    said = "--group '(.*)_' names no group for 4 of 34 images, 0/other0.jpg for example: each of them is a group of its own"
    assert found.notes[0] == said


LONE = "groups nothing: every image is a group of its own"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group": ".*"}, f"--group '.*' {LONE}"),
        ({"group": r"(animal.*[1-4])\."}, f"--group '(animal.*[1-4])\\\\.' {LONE}"),
        ({"table": {f"{a % 2}/animal{a:03}_{n}.jpg": f"{a} {n}" for a in range(12) for n in range(5)}}, f"the column group {LONE}"),
        ({"table": {"0/animal000_0.jpg": ""}}, "the column group is blank in every line, so no groups are named"),
    ],
)  # fmt: skip
def test_groups_that_group_nothing_are_no_groups_and_that_is_said(options: dict[str, Any], said: str) -> None:
    """The hint at series, which groups that are named silence, comes all the same."""
    rows = herd([5] * 12)
    plain, _ = assigned(rows)
    (hint,) = plain.notes
    assert "look like series" in hint
    if "table" in options:
        options = {"table": Table(Path("t.csv"), {}, options["table"])}
    found, _ = assigned(rows, **options)
    assert (found.splits, found.how, found.notes) == (plain.splits, plain.how, (said, hint))


def test_a_group_column_is_blank_in_a_table(tmp_path: Path) -> None:
    (file := tmp_path / "t.csv").write_text("path,group\na/1.png,\nb/1.png, \n")
    assert read_split(file).groups == {"a/1.png": "", "b/1.png": ""}
    file.write_text("path,split\na/1.png,test\n")
    assert read_split(file).groups == {}


GIVEN = {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (GIVEN, {}, []),
        (GIVEN, {"val": 0.3}, ["--val 0.3 changes nothing: the split is as t.csv says"]),
        (GIVEN, {"val": 0, "test": 0.4}, [f"--{each} changes nothing: the split is as t.csv says" for each in ("test 0.4", "val 0")]),
        ({"train": 8, "test": 2}, {"val": 0.25}, []),
        ({"train": 8, "val": 2}, {"test": 0}, ["test has no image: the split that you gave has none"]),
        ({"train": 1, "test": 9}, {}, ["val has no image of class 0 (10 images): no --val gives them one, because train, as you gave it, has none to spare"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folders", [False, True])
def test_a_given_split_counts_and_what_it_leaves_out_is_said(
    given: dict[str, int], options: dict[str, float], said: Sequence[str], folders: bool
) -> None:
    """Also a share that is asked for beside it, and why val cannot be drawn from its train."""
    splits = [split for split, count in given.items() for _ in range(count)]
    rows = kept([(f"0/{n}x.png", 0) for n in range(10)])
    if folders:
        rows = [
            (replace(source, split=split), info) for (source, info), split in zip(rows, splits, strict=True)
        ]
        found, _ = assigned(rows, **options)
        assert list(found.notes) == [each.replace("as t.csv says", "as the folders say") for each in said]
    else:
        by_path = {source.path: split for (source, _), split in zip(rows, splits, strict=True)}
        found, _ = assigned(rows, table=Table(Path("t.csv"), by_path, {}), **options)
        assert list(found.notes) == said


def test_a_persons_own_split(tmp_path: Path) -> None:
    """By a table of theirs; groups that it cuts in two are said."""
    names = [f"{label}/{n}.png" for label in "ab" for n in range(4)]
    root = folder(tmp_path / "images", {name: encode(noise(40, 30, n)) for n, name in enumerate(names)})
    file, out = tmp_path / "mine.csv", tmp_path / "p.arrow"
    wanted = dict(zip(names, ["train", "Validation", "TEST", "training"] * 2, strict=True))
    lines = [f"{name};{split};{name[0]}{n % 2}" for n, (name, split) in enumerate(wanted.items())]
    file.write_text("\n".join(["Path;Split;Group", *lines]), encoding="utf-16")
    header = pack(root, out, Options(table=read_split(file)))
    opened = Pack(out)
    assert [opened.image_path(row) for row in opened.ids("val")] == ["a/1.png", "b/1.png"]
    assert [opened.image_path(row) for row in opened.ids("test")] == ["a/2.png", "b/2.png"]
    assert header.split_by == "as mine.csv says; images of a group together (4 groups)"
    said = "4 pictures or groups lie in more than one split, as a/0.png in train and a/2.png in test"
    assert header.notes == (f"{said}: what is measured on them is too good",)
    file.write_text("path,group\n" + "\n".join(f"{name},{name[2]}" for name in names))
    header = pack(root, out, Options(val=0.25, test=0.25, table=read_split(file)))
    assert header.split_by.endswith("0.25 for test; images of a group together (4 groups)")
    opened = Pack(out)
    for split in ("val", "test"):
        held = [opened.image_path(row) for row in opened.ids(split)]
        assert held == [f"a/{held[0][2]}.png", f"b/{held[0][2]}.png"], "one whole group"


def test_a_table_of_splits_may_use_the_words_of_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("path,split\na.png,Dev\nb.png,testing\n")
    assert read_split(tmp_path / "mine.csv").splits == {"a.png": "val", "b.png": "test"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,fold\na.png,1\n", "has the columns path, fold; expected path, and split or group"),
        ("split,group\ntest,1\n", "has the columns split, group; expected path, and split or group"),
        ("path,split\na.png,held\n", "has 'held' as the split in line 2; expected train, val, test"),
        ("path,split\na.png,\n", "has '' as the split in line 2; expected train, val, test"),
        ("path,split\na.png,test\na.png,val\n", "names 'a.png' in line 2 and, with other words, in line 3"),
        ("path,split\na/9.png,test\n", "names 'a/9.png', which is not among the images; expected paths"),
        ("path,split\na/1.png,test\n", "has no line for 'b/1.png'; expected a line for every image"),
        ("", "is empty; expected a CSV with the columns path and split, or path and group"),
    ],
)
def test_a_split_that_is_none(content: str, message: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """Found before the images are looked at."""
    root, file = folder(tmp_path / "images", {"a/1.png": b"", "b/1.png": b""}), tmp_path / "mine.csv"
    file.write_text(content)
    monkeypatch.setattr("greyhound.cache.pack.scan", lambda *_: pytest.fail("looked at the images"))
    with pytest.raises(PackError) as refusal:
        pack(root, tmp_path / "p.arrow", Options(table=read_split(file)))
    assert str(refusal.value).startswith(f"{file} {message}")


ALIKE = "gives them one, because images that look alike, or are of one group, stay together"


@pytest.mark.parametrize(
    ("counts", "looks", "options", "said"),
    [
        ([4, 4], 99, {}, ["val has no image of class 0 (4 images), class 1 (4 images): 0.1 of so few is none; pack with --val 0.25, which gives each one"]),
        ([20, 3], 99, {}, ["val has no image of class 1 (3 images): 0.1 of so few is none; pack with --val 0.25, which gives each one"]),
        ([20, 1], 99, {}, [f"{split} has no image of class 1 (1 image): no --{split} gives them one, because they are too few" for split in ("val", "test")]),
        ([20, 2], 99, {}, ["val has no image of class 1 (2 images): 0.1 of so few is none; pack with --val 0.3, which gives each one", "test has no image of class 1 (2 images): no --test gives them one beside --val 0.3, because they are too few"]),
        ([20, 4, 1], 99, {"test": 0}, ["val has no image of class 1 (4 images), class 2 (1 image): 0.1 of so few is none; pack with --val 0.25, which gives 1 of them one"]),
        ([20, 20], 1, {"val": 0.4, "test": 0.4}, [f"{split} has no image of class 0 (20 images, kept together), class 1 (20 images, kept together): no --{split} {ALIKE}" for split in ("val", "test")]),
        ([20, 20], 4, {"test": 0}, ["val has no image of class 0 (20 images, kept together in 4 sets), class 1 (20 images, kept together in 4 sets): 0.1 of so few is none; pack with --val 0.25, which gives each one"]),
        ([4] * 7, 99, {"test": 0}, ["val has no image of class 0 (4 images), class 1 (4 images), class 2 (4 images), class 3 (4 images), class 4 (4 images) and 2 more: 0.1 of so few is none; pack with --val 0.25, which gives each one"]),
        ([20, 4], 99, {"val": 0, "test": 0}, []),
        ([20, 20], 99, {}, []),
    ],
)  # fmt: skip
def test_a_split_without_a_class_says_which_why_and_what_helps(
    counts: Sequence[int], looks: int, options: dict[str, float], said: Sequence[str]
) -> None:
    names = [(f"{label}/{n}x.png", label) for label, count in enumerate(counts) for n in range(count)]
    rows = kept(names, [f"{label} {int(name.split('/')[1][:-5]) % looks}" for name, label in names])
    found, _ = assigned(rows, **options)
    assert list(found.notes) == said
    whole = {split for split in ("val", "test") if split not in found.splits and options.get(split) != 0}
    assert found.empty.keys() == whole
    for note in found.notes:
        if helps := re.search(r"--val ([\d.]+), which gives each", note):
            again, _ = assigned(rows, **{**options, "val": float(helps[1])})
            assert not [note for note in again.notes if note.startswith("val")]


SERIES = {
    "animals": ([f"{a % 2}/dog{a}_{n}.jpg" for a in range(9) for n in range(4)], "0/dog0_0.jpg and 0/dog0_1.jpg", "'(.*)_'"),
    "slides": ([f"{a % 2}/SOB-14-{a}AB-40-{n:03}.png" for a in range(9) for n in range(4)], "0/SOB-14-0AB-40-000.png and 0/SOB-14-0AB-40-001.png", "'(.*)-'"),
    "copies": ([f"0/IMG 10{a} ({n}).jpg" for a in range(9) for n in range(4)], "0/IMG 100 (0).jpg and 0/IMG 100 (1).jpg", "'(.*) '"),
    "a camera's": ([f"{n % 2}/IMG_{n:04}.jpg" for n in range(60)], "", ""),
    "a camera's folders": ([f"{n % 2}/10{n // 20}_{n:04}.jpg" for n in range(90)], "", ""),
    "times": ([f"{n % 2}/IMG_2024010{n % 7}_{101010 + 97 * n}.jpg" for n in range(60)], "", ""),
    "ImageNet": ([f"{c}/n0208562{c}_{n * n * (c + 3)}.JPEG" for c in range(5) for n in range(1, 20)], "", ""),
    "class and number": ([f"{c}/type{c}_{n:03}.jpg" for c in range(5) for n in range(20)], "", ""),
    "birds": ([f"{c}/Albatross_{n:04}_{796000 + 13 * n + c}.jpg" for c in range(5) for n in range(20)], "", ""),
    "a few copies": ([f"0/IMG_{n}.jpg" for n in range(60)] + [f"0/IMG_{n} (1).jpg" for n in range(9)], "", ""),
    "no numbers": ([f"0/{name}_{n}.jpg" for name in ("red car", "blue car", "car") for n in range(40)], "", ""),
    "hashes": ([f"{n % 2}/{hashlib.md5(bytes([n])).hexdigest()}.jpg" for n in range(60)], "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SERIES)
def test_names_like_series_are_said_where_no_group_was_named(name: str) -> None:
    paths, pair, pattern = SERIES[name]
    rows = kept([(path, int(path[0])) for path in paths])
    notes = assigned(rows)[0].notes
    guess = f"names such as {pair} look like series of one thing each (a guess); to keep each in one split, name groups: --group {pattern}"
    assert notes == ((guess,) if pair else ())
    if pair:
        found, groups = assigned(rows, group=pattern[1:-1])
        assert all(len(splits) == 1 for splits in groups.values())
        assert not [note for note in found.notes if "guess" in note or "names no group" in note]
