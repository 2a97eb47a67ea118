"""WebDataset tars and Parquet files with images, written by the real packages, give the folder's pack."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from limits import files_up_to
from pictures import encode, left_out, noise
from runs import Patch
from test_cache_source import DATA, FILES, label_of, refused, rows, rows_of

from greyhound.cache.pack import Options, pack
from greyhound.cache.source import SourceOptions
from greyhound.cache.store import SPLITS, Pack, PackError

pytestmark = pytest.mark.usefixtures("scan_in_process")


def write_tar(file: Path, members: Sequence[tuple[str, bytes]], **options: Any) -> Path:
    """The members in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, **{"mode": "w", **options}) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def members(kind: str) -> list[tuple[str, bytes]]:
    """An image and its class for each of FILES. kind: how the class is said."""
    found = []
    for n, (path, data) in enumerate(DATA.items()):
        said = {
            "cls": ("cls", label_of(path).encode()),
            "CLS": ("CLS", f" {label_of(path)}\n".encode()),
            "json": ("json", json.dumps({"width": 4, "Label": "x", "label": label_of(path)}).encode()),
            "class": ("JSON", json.dumps({"class": label_of(path)}).encode()),
        }[kind]
        ending = path.rpartition(".")[2].upper() if n % 3 else path.rpartition(".")[2]
        found += [(f"{n // 7}/{n:04}.{ending}", data), (f"{n // 7}/{n:04}.{said[0]}", said[1])]
    return found


@pytest.mark.parametrize("kind", ["cls", "CLS", "json", "class"])
def test_a_tar_gives_the_folders_pack(kind: str, root: Path) -> None:
    assert rows(write_tar(root.parent / "set.tar", members(kind))) == rows(root)
    opened = Pack(root.parent / "packed.arrow")
    pack(root.parent / "set.tar", opened.path)
    paths = [Pack(opened.path).image_path(row) for row in range(3)]
    assert paths == ["set.tar/0/0000.png", "set.tar/0/0001.JPG", "set.tar/0/0002.PNG"]


def test_members_need_not_be_adjacent_and_a_key_ends_at_the_first_dot(root: Path) -> None:
    """Classes first, then images: webdataset makes nothing of it, and of 1.left.jpg it makes the key 1."""
    found = members("cls")
    apart = [*found[1::2], *((name.replace(".", ".v2.0.", 1), data) for name, data in found[::2])]
    assert rows(write_tar(root.parent / "set.tar", apart)) == rows(root)


def test_of_an_image_and_its_mask_the_one_with_the_plain_ending_is_taken(root: Path) -> None:
    masks = [(name.replace(".cls", ".seg.png"), encode(noise(8, 8))) for name, _ in members("cls")[1::2]]
    expected = rows(root)
    assert rows(write_tar(root.parent / "set.tar", [*masks, *members("cls")])) == expected
    assert "members that are not used: .seg.png (24)" in Pack(root.parent / "packed.arrow").header.notes


@pytest.mark.parametrize("shape", ["folder", "pattern", "list", "glob", "folders"])
def test_shards_as_webdataset_writes_them(shape: str, root: Path) -> None:
    """Splits are taken from the names of shards where all have one."""
    wds = pytest.importorskip("webdataset")
    names = ["train", "val", "test"]
    home = root.parent / "shards"
    for split in names:
        place = home / split if shape == "folders" else home
        place.mkdir(parents=True, exist_ok=True)
        pattern = "%06d.tar" if shape == "folders" else f"{split}-%06d.tar"
        with wds.ShardWriter(str(place / pattern), maxcount=3, verbose=0) as sink:
            for path, data in DATA.items():
                if names[FILES[path] % 3] == split:
                    key, _, ending = path.replace("/", "_").rpartition(".")
                    sink.write({"__key__": key, ending: data, "cls": label_of(path).encode()})
    source = {
        "pattern": "{train,test,val}-{000000..000002}.tar",
        "list": "{train-000000,train-000001,train-000002,val-000000,val-000001,val-000002}.tar",
        "glob": "*-*.tar",
    }.get(shape, "")
    found = rows(home / source if source else home)
    taken = {path: seed for path, seed in FILES.items() if shape != "list" or seed % 3 < 2}
    assert found == {(label_of(path), DATA[path], names[seed % 3]): 1 for path, seed in taken.items()}


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("val-0 test-0", "none is for training"),
        ("train-0 val-0 more-0", "more-0.tar names none"),
        ("train-0 train-val-0", ""),
        ("train-0 train-1", ""),
        ("trainer-0 testing2-validated", ""),
    ],
)
def test_names_that_may_be_no_splits_are_refused_or_not_taken(names: str, why: str, root: Path) -> None:
    """As class folders are: a split that only some names say is refused, a single one is no split."""
    expected, parts = rows(root), names.split()
    for n, name in enumerate(parts):
        write_tar(
            root.parent / "set" / f"{name}.tar",
            members("cls")[2 * n :: 2 * len(parts)] + members("cls")[2 * n + 1 :: 2 * len(parts)],
        )
    if why:
        said = f"{root.parent / 'set'} has files named after splits, and {why}; expected every file to"
        assert refused(root.parent / "set").startswith(said)
    else:
        assert rows(root.parent / "set") == expected


def test_tars_beside_a_pattern_that_begins_with_a_brace(root: Path) -> None:
    """There is no folder before it that the names in the pack could be below."""
    for n in range(2):
        write_tar(root.parent / f"{n}" / "x.tar", members("cls")[24 * n : 24 * n + 24])
    expected = rows(root)
    source = f"{{{root.parent / '0'},{root.parent / '1'}}}/x.tar"
    pack(Path(source), root.parent / "p")
    assert rows_of(Pack(root.parent / "p")) == expected
    assert Pack(root.parent / "p").image_path(0) == f"{root.parent}/0/x.tar/0/0000.png"


def test_a_class_as_a_number_is_its_digits(root: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(root.parent / "set.tar")) as sink:
        for n, (path, data) in enumerate(DATA.items()):
            sink.write({"__key__": f"{n}", path.rpartition(".")[2]: data, "cls": n % 12})
    reading = SourceOptions(order="natural")
    assert pack(root.parent / "set.tar", root.parent / "p", Options(source=reading)).classes == tuple(
        map(str, range(12))
    )


def test_what_a_tar_cannot_give_is_left_out_and_counted(root: Path) -> None:
    picture = encode(noise(9, 9, 99))
    odd = [
        ("a.jpg", picture),
        ("b.cls", b"no"),
        ("c.jpg", picture),
        ("c.png", picture),
        ("c.cls", b"no"),
        ("d.jpg", picture),
        ("d.jpg", encode(noise(9, 9, 98))),
        ("d.json", b'{"label": "no"}'),
        ("e.jpg", picture),
        ("e.json", b"{"),
        ("f.jpg", picture),
        ("f.json", b'{"label": [1]}'),
        ("g.jpg", picture),
        ("g.cls", b"\xff"),
        ("i.jpg", picture),
        ("i.cls", b"no\0"),
        ("h.jpg", b"bad"),
        ("h.cls", b"no"),
        ("h.txt", b"a dog"),
        ("j.jpg", encode(noise(9, 9, 97))),
        ("j.cls", b"no"),
        ("j.CLS", b"007"),
        ("._h.jpg", b"x"),
        ("__meta__/x.txt", b"x"),
        ("README", b"x"),
    ]
    header = pack(write_tar(root.parent / "set.tar", [*members("cls"), *odd]), root.parent / "p")
    assert left_out(header) == {
        "set.tar/a.jpg": ("no label", "it has neither .cls nor .json; unpack a tar of class folders"),
        "set.tar/b": ("no image", "its sample has none"),
        "set.tar/c.jpg": ("several images", ".jpg, .png"),
        "set.tar/d.jpg": ("duplicate path", "its .jpg is twice in the tar"),
        "set.tar/j.jpg": ("duplicate path", "its .CLS is twice in the tar"),
        "set.tar/e.jpg": ("no label", "its .json is no JSON object"),
        "set.tar/f.jpg": (
            "no label",
            "its .json has no text or whole number as label or class or class_name or category or target or cls",
        ),
        "set.tar/g.jpg": ("no label", "its .cls is no text"),
        "set.tar/i.jpg": ("no label", "its .cls is no line of text"),
        "set.tar/h.jpg": ("undecodable", "no image that is read here"),
    }
    assert "members that are not used: hidden, or named without an ending (2), .txt (1)" in header.notes
    assert len(Pack(root.parent / "p")) == len(FILES)


def test_lone_surrogates_in_json_are_written_with_a_backslash(root: Path) -> None:
    """Of a class, of a field that is asked for, and of a column that is not used."""
    sample = [("x.png", encode(noise(9, 9, 99))), ("x.json", b'{"label": "\\ud800"}')]
    source = write_tar(root.parent / "set.tar", [*members("cls"), *sample])
    assert "\\ud800" in {kind for kind, *_ in rows(source)}
    bare = [(name, said.replace(b'"label"', b'"\\udcff"')) for name, said in members("json")]
    rows(write_tar(source, [*bare, ("x.png", sample[0][1]), ("x.json", b"{}")]), label="\udcff")
    ((_, why),) = left_out(Pack(root.parent / "packed.arrow").header).values()
    assert why == "its .json has no text or whole number as \\udcff"
    table = root / "list.jsonl"
    lines = [{"path": path, "label": label_of(path), "\ud800": 1} for path in FILES]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows(table)
    assert "columns of list.jsonl that are not used: \\ud800" in Pack(root / "packed.arrow").header.notes


def test_a_tar_that_is_not_whole_is_refused(root: Path) -> None:
    """Also where tarfile stops without a word: cut between two members, or a header in the middle damaged."""
    file = write_tar(root.parent / "set.tar", members("cls"))
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        starts = [member.offset for member in tar]
    end = len(whole.rstrip(b"\0")) + 511 & ~511
    damaged = bytearray(whole)
    damaged[starts[5] : starts[5] + 8] = b"\xff" * 8
    said = {
        "empty file": b"",
        "truncated header": whole[:100],
        "invalid header": b"no tar" * 200,
        "it ends early": whole[: starts[4]],
        "unexpected end of data": whole[: starts[5] - 600],
        f"what stands at byte {starts[5]:,} is none of its members": bytes(damaged),
        f"what stands at byte {end:,} is none of its members": whole + whole,
    }
    for why, data in said.items():
        file.write_bytes(data)
        assert refused(file).startswith(f"{file} is no whole tar ({why}"), why
    file.write_bytes(whole[: end + 512])
    assert rows(file) == rows(root)
    packed = write_tar(root.parent / "set.tar.gz", members("cls"), mode="w:gz")
    assert "expected one that is not compressed" in refused(packed)


def test_a_tar_that_changes_while_it_is_packed_is_an_error(root: Path, monkeypatch: Patch) -> None:
    file = write_tar(root.parent / "set.tar", members("cls"))

    def cut(*arguments: Any) -> Any:
        file.write_bytes(file.read_bytes()[:2000])
        return assign(*arguments)

    from greyhound.cache.split import assign

    monkeypatch.setattr("greyhound.cache.pack.assign", cut)
    with pytest.raises(PackError, match=r"0/000\d.\w+ in .*set.tar changed while it was being packed"):
        pack(file, root.parent / "p")


def dataset(parts: Mapping[str, bytes], names: Sequence[str] = (), **columns: Any) -> Any:
    """A set of `datasets` with images and their classes."""
    datasets = pytest.importorskip("datasets")
    labels = [label_of(path) for path in parts]
    images = [{"bytes": data, "path": path.rpartition("/")[2]} for path, data in parts.items()]
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=[*names])}
    kinds = [names.index(label) for label in labels]
    made = datasets.Dataset.from_dict(
        {"picture": images, "kind": kinds}, features=datasets.Features(features)
    )
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def test_parquet_as_datasets_writes_it_gives_the_folders_pack(root: Path) -> None:
    """Class names are those of the file's features, each by its own: two files number them in another way."""
    home = root.parent / "hf" / "data"
    home.mkdir(parents=True)
    half = len(DATA) // 2
    for n, (some, names) in enumerate(
        [
            ([*DATA.items()][:half], ("no", "007", "Akita", "beagle")),
            ([*DATA.items()][half:], ("beagle", "no", "007", "Akita")),
        ]
    ):
        dataset(dict(some), names).to_parquet(home / f"train-{n:05}-of-00002.parquet")
    expected = rows(root)
    for source in (
        home.parent,
        home,
        home / "train-*.parquet",
        home / "train-{00000..00001}-of-00002.parquet",
    ):
        assert rows(source) == expected
    assert not [*root.parent.rglob(".greyhound-*")]
    path = Pack(home / "packed.arrow").image_path(1)
    assert path == "train-00000-of-00002.parquet/000001-1.jpg"


def test_parquet_without_bytes_is_read_from_the_files_that_it_names(root: Path) -> None:
    """As to_parquet of `datasets` writes images that came from files."""
    datasets = pytest.importorskip("datasets")
    columns = {"image": [str(root / path) for path in FILES], "fine_label": [*map(label_of, FILES)]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made = made.class_encode_column("fine_label")
    made.to_parquet(root.parent / "set.parquet")
    assert pq.read_table(root.parent / "set.parquet")["image"][0]["bytes"].as_py() is None
    expected = rows(root)
    assert rows(root.parent / "set.parquet") == expected
    said = "the classes are those of the column fine_label; --label names another"
    assert said in Pack(root.parent / "packed.arrow").header.notes


def test_the_splits_of_parquet_files_are_their_names(root: Path) -> None:
    home = root.parent / "hf"
    home.mkdir()
    names = {"train": "train", "validation": "val", "test": "test"}
    for n, split in enumerate(names):
        some = {path: data for path, data in DATA.items() if FILES[path] % 3 == n}
        dataset(some, sorted({*map(label_of, FILES)})).to_parquet(home / f"{split}-00000-of-00001.parquet")
    found = rows(home)
    said = [*names.values()]
    assert found == {(label_of(path), DATA[path], said[FILES[path] % 3]): 1 for path in FILES}


def test_plain_parquet_with_bytes_is_read_too(root: Path) -> None:
    table = {"image": [*DATA.values()], "label": [label_of(path) for path in DATA], "id": [*range(len(DATA))]}
    expected = rows(root)
    for kind in (pa.binary(), pa.large_binary()):
        arrays = [
            pa.array(table["image"], kind),
            pa.array(table["label"]).dictionary_encode(),
            pa.array(table["id"]),
        ]
        pq.write_table(pa.table(arrays, names=[*table]), root.parent / "set.parquet")
        assert rows(root.parent / "set.parquet") == expected
    assert "columns that are not used: id" in Pack(root.parent / "packed.arrow").header.notes


MEANT = {path: SPLITS[seed % 3] for path, seed in FILES.items()}


def test_the_columns_split_and_group_of_parquet_are_taken(root: Path) -> None:
    """They outrank the names of the files."""
    home = root.parent / "set"
    home.mkdir()
    for n, name in enumerate(("train", "test")):
        some = [path for path in FILES if FILES[path] % 2 == n]
        images, labels = [DATA[path] for path in some], [label_of(path) for path in some]
        groups = [MEANT[path] for path in some]
        table = parquet(
            image=images, label=labels, Split=[f" {MEANT[path].upper()}" for path in some], group=groups
        )
        (home / f"{name}.parquet").write_bytes(table)
    assert rows(home) == {(label_of(path), DATA[path], split): 1 for path, split in MEANT.items()}
    header = Pack(root.parent / "packed.arrow").header
    assert header.split_by == "as the files say; images of a group together (3 groups)" and not header.notes


def test_the_split_and_group_in_a_json_are_taken(root: Path) -> None:
    """Beside a .cls too; a sample that names no split is left out where others name one."""
    found = []
    for n, (path, split) in enumerate(MEANT.items()):
        content = json.dumps({"split": split, "group": FILES[path] % 3})
        found += [
            (f"{n}.png", DATA[path]),
            (f"{n}.cls", label_of(path).encode()),
            (f"{n}.json", content.encode()),
        ]
    for name, content in (("x", '{"split": "holdout"}'), ("y", '{"split": 1.5}')):
        found += [
            (f"{name}.png", encode(noise(9, 9, 99))),
            (f"{name}.cls", b"no"),
            (f"{name}.json", content.encode()),
        ]
    source = write_tar(root.parent / "set.tar", found)
    assert rows(source) == {(label_of(path), DATA[path], split): 1 for path, split in MEANT.items()}
    header = Pack(root.parent / "packed.arrow").header
    assert header.split_by == "as the files say; images of a group together (3 groups)"
    assert left_out(header) == {
        "set.tar/x.png": ("unknown split", "its .json says 'holdout'; expected train, val, test"),
        "set.tar/y.png": ("unknown split", "it names none"),
    }


def test_a_tar_and_a_table_whose_names_are_no_text_are_packed(root: Path) -> None:
    home, out = root.parent / os.fsdecode(b"caf\xe9"), root.parent / "p.arrow"
    pack(write_tar(home / os.fsdecode(b"\xe9.tar"), members("cls")), out)
    assert Pack(out).image_path(0) == r"\xe9.tar/0/0000.png"
    table = home / os.fsdecode(b"\xe9.csv")
    table.write_text("path,label,split\n" + "".join(f"../images/{p},{label_of(p)},train\n" for p in DATA))
    pack(table, out)
    assert Pack(out).header.split_by.startswith(r"as \xe9.csv says")


def test_parquet_that_numbers_its_classes_beside_one_that_names_them_is_refused(root: Path) -> None:
    home = root.parent / "set"
    home.mkdir()
    (home / "a.parquet").write_bytes(parquet(image=[*DATA.values()], label=[*map(label_of, DATA)]))
    (home / "b.parquet").write_bytes(parquet(image=[encode(noise(9, 9, 99))], label=[1]))
    said = f"{home / 'b.parquet'} numbers its classes, and {home / 'a.parquet'} names them; expected one of"
    assert refused(home).startswith(said)


def test_what_parquet_cannot_give_is_left_out(root: Path) -> None:
    images: list[dict[str, Any]] = [{"bytes": data, "path": None} for data in DATA.values()]
    labels: list[Any] = [label_of(path) for path in DATA]
    images += [{"bytes": None, "path": "x.jpg"}, {"bytes": DATA["no/0.png"], "path": "y/z.jpg"}]
    images += [{"bytes": b"", "path": "empty.jpg"}]
    address = f"https://{'x' * 300}"  # longer than a file's name may be
    images += [{"bytes": None, "path": address}]
    file = root.parent / "set.parquet"
    pq.write_table(pa.table({"image": images, "label": [*labels, "no", None, "no", "no"]}), file)
    header = pack(file, root.parent / "p")
    assert left_out(header) == {
        "set.parquet/000024-x.jpg": (
            "missing file",
            "the table holds no bytes of it, and its path is no file",
        ),
        "set.parquet/000025-y/z.jpg": ("no label", ""),
        "set.parquet/000026-empty.jpg": ("undecodable", "the file is empty"),
        f"set.parquet/000027-{address}": (
            "missing file",
            "the table holds no bytes of it, and its path is no file",
        ),
    }


def test_a_table_with_two_columns_that_differ_in_case_is_refused(root: Path) -> None:
    file = root / "list.parquet"
    file.write_bytes(parquet(path=[*FILES], label=[*FILES], Label=[*FILES]))
    assert refused(file) == f"{file} has two columns 'label', in lower case; expected each once"


def test_a_column_that_the_features_know_and_the_table_lacks_is_none(root: Path) -> None:
    """As a table that was cut in another program has them."""
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}, "image": {"_type": "Image"}}
    text = json.dumps({"info": {"features": features}}).encode()
    table = pa.table({"picture": [b"a"], "kind": ["b"]}).replace_schema_metadata({b"huggingface": text})
    file = root.parent / "set.parquet"
    pq.write_table(table, file)
    assert refused(file).startswith(
        f"{file} has the columns picture, kind; name that of the classes: --label"
    )


def test_a_table_of_paths_whose_features_say_images_is_a_manifest(root: Path) -> None:
    features = {"image": {"_type": "Image"}}
    text = json.dumps({"info": {"features": features}}).encode()
    table = pa.table({"image": [*FILES], "label": [*map(label_of, FILES)]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": text}), root / "set.parquet")
    assert rows(root / "set.parquet") == rows(root)


def test_a_full_disk_leaves_neither_pack_nor_spool(root: Path) -> None:
    file = root.parent / "set.parquet"
    file.write_bytes(parquet(image=[*DATA.values()], label=[label_of(path) for path in DATA]))
    with files_up_to(20_000):
        said = refused(file)
    assert said.startswith(f"the images of {file} cannot be laid down in {file.parent}/.greyhound-")
    assert "(File too large); free space there, or name another place: --out" in said


def test_a_pack_of_parquet_may_lie_in_a_folder_that_is_made(root: Path) -> None:
    file = root.parent / "set.parquet"
    file.write_bytes(parquet(image=[*DATA.values()], label=[label_of(path) for path in DATA]))
    pack(file, root.parent / "new" / "deep" / "p")
    assert len(Pack(root.parent / "new" / "deep" / "p")) == len(DATA)
    assert not [*root.parent.rglob(".greyhound-*")]


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


TWICE = pa.BufferOutputStream()
pq.write_table(pa.table([["a"], ["b"]], names=["image", "image"]), TWICE)
REFUSED = {
    "no images": (parquet(text=["a"], label=["b"]), "has the columns text, label; expected a table with a path"),
    "two images": (parquet(one=[b"a"], two=[b"a"], label=["b"]), "has several columns of images (one, two); expected one"),
    "no classes": (parquet(image=[b"a"], size=[1]), "has the columns image, size; name that of the classes: --label"),
    "numbers": (parquet(image=[b"a"], label=[1.5]), "has double in the column label; expected text or whole numbers"),
    "booleans": (parquet(image=[b"a"], label=[True]), "has bool in the column label; expected text or whole numbers"),
    "lists": (parquet(image=[b"a"], label=[["a"]]), "has list<element: string> in the column label; expected text"),
    "nothing": (parquet(image=pa.array([], pa.binary()), label=pa.array([], pa.string())), "names no image that can"),
    "cut": (parquet(image=[b"a"], label=["b"])[:-20], "cannot be read (Parquet magic bytes not found in footer"),
    "columns of one name": (TWICE.getvalue().to_pybytes(), "has two columns 'image'; expected each once"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_parquet_that_cannot_be_read_is_refused(name: str, root: Path) -> None:
    data, said = REFUSED[name]
    file = root.parent / "set.parquet"
    file.write_bytes(data)
    assert refused(file).startswith(f"{file} {said}")


def test_a_label_that_the_features_do_not_name_is_refused(root: Path) -> None:
    file = root.parent / "set.parquet"
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    text = json.dumps({"info": {"features": features}}).encode()
    table = pa.table({"image": [b"a", b"b"], "label": [1, 2]}).replace_schema_metadata({b"huggingface": text})
    pq.write_table(table, file)
    assert refused(file) == f"{file} has the label 2; expected 0 to 1, as its features say"


def test_two_columns_of_classes_are_asked_about(root: Path) -> None:
    made = dataset(DATA, sorted({*map(label_of, FILES)}))
    datasets = pytest.importorskip("datasets")
    coarse = ["dog" if label_of(path) != "no" else "none" for path in DATA]
    made = made.add_column("coarse", coarse).cast_column("coarse", datasets.ClassLabel(names=["none", "dog"]))
    file = root.parent / "set.parquet"
    made.to_parquet(file)
    assert refused(file).startswith(
        f"{file} has several columns of classes (kind, coarse); name that of the cl"
    )
    assert {kind for kind, *_ in rows(file, label="coarse")} == {"dog", "none"}
