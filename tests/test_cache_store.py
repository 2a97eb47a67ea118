"""An open pack: nothing is copied, nothing is read twice, and whatever is wrong with the file is said in one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scale
from pictures import encode, noise, packed
from runs import Patch

from greyhound.cache.index import _END, INDEX, OPTIONAL, PATHS, add_index, read_paths
from greyhound.cache.pack import Options
from greyhound.cache.shards import FORMAT, Shard
from greyhound.cache.store import SCHEMA, SPLITS, Excluded, Header, Pack, PackError

FILES = {
    "a": [encode(noise(30, 20, 0), "JPEG"), encode(noise(20, 30, 1), "JPEG", 6)],
    "b": [encode(noise(25, 25, 2)), encode(noise(40, 10, 3)), encode(noise(9, 8, 4), "BMP")],
}
ALL = [*FILES["a"], *FILES["b"]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("store"), FILES, Options(0.2, 0.4, seed=3)).path


def copied(path: Path, target: Path, place: int = 0, new: bytes = b"") -> Path:
    """A copy of the pack with other bytes at one place."""
    data = bytearray(path.read_bytes())
    data[place : place + len(new)] = new
    target.write_bytes(data)
    return target


@pytest.fixture
def target(path: Path, tmp_path: Path) -> Path:
    """A copy of the pack, to write to."""
    return copied(path, tmp_path / "p.arrow")


@pytest.mark.parametrize("originals", ["mmap", "ram"])
def test_every_image_before_and_after_it_is_resident(path: Path, originals: Any) -> None:
    pack = Pack(path, originals)
    for _ in range(2):
        assert [pack.encoded(row).tobytes() for row in range(len(pack))] == ALL
        image = pack.encoded(3)
        assert image.dtype == np.uint8 and not image.flags.owndata
        assert np.shares_memory(image, pack.encoded(3))
        with pytest.raises(ValueError, match="read-only"):
            image[0] = 0
        pack.make_resident()
    assert len(pack) == 5
    assert pack.nbytes == sum(map(len, ALL))
    assert pack.classes == ("a", "b")


def test_the_columns_the_splits_and_the_summary(path: Path) -> None:
    pack = Pack(path)
    assert pack.labels.tolist() == [0, 0, 1, 1, 1]
    assert pack.sizes.tolist() == [[30, 20], [30, 20], [25, 25], [40, 10], [9, 8]]
    assert pack.stored_sizes.tolist() == [[30, 20], [20, 30], [25, 25], [40, 10], [9, 8]]
    assert pack.orientations.tolist() == [1, 6, 1, 1, 1]
    assert pack.labels.dtype == pack.sizes.dtype == np.int32
    columns = (pack.orientations, pack.crc32s, pack.mean_lumas)
    assert [str(column.dtype) for column in columns] == ["uint8", "uint32", "float32"]
    assert pack.image_path(3) == "b/0001.img"
    assert pack.describe(3) == "row 3 ('b/0001.img')"
    assert pack.image_path(np.int64(3)) == "b/0001.img"  # type: ignore[arg-type]  # which is what ids are
    parts = [pack.ids(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [2, 1, 2]
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4]
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    with pytest.raises(PackError, match=r"^split is 'valid'; expected one of train, val, test$"):
        pack.ids("valid")
    summary = json.loads(json.dumps(pack.summary()))
    assert len(summary.pop("digest")) == 64
    why = "no --val gives them one, because they are too few"
    cut = "training with --augment.fit crop, the default, sees only a part of each; pad and squash show all"
    assert summary == {
        "path": str(path),
        "seed": 3,
        "images": 5,
        "bytes": sum(map(len, ALL)),
        "classes": ["a", "b"],
        "splits": {"train": 2, "val": 1, "test": 2},
        "split_by": "drawn by seed 3: 0.2 of each class for val, 0.4 for test",
        "families": 0,
        "weights": [1.0, 1.0],
        "notes": [f"val has no image of a (2 images): {why}", f"1 of 5 images are longer than 2:1; {cut}"],
        "excluded": {"total": 0, "reasons": {}, "images": []},
        "transcoded": [],
        "relabelled": [],
        "lost": [],
        "background": "#ffffff",
    }


def test_a_damaged_image_is_named_when_it_is_first_asked_for_and_not_before(path: Path, target: Path) -> None:
    assert Pack(path).corrupt() == []
    data = path.read_bytes()
    for row in (1, 4, 2):
        place = data.find(ALL[row]) + len(ALL[row]) // 2
        pack = Pack(copied(path, target, place, bytes([data[place] ^ 1])))
        assert pack.encoded(0).tobytes() == ALL[0]
        assert pack.describe(row).startswith(f"row {row} (")
        said = f"p.arrow is corrupt: {pack.describe(row)} has not the bytes that were packed; copy the pack again"
        for _ in range(2):
            with pytest.raises(PackError, match=re.escape(said)):
                pack.encoded(row)
        assert pack.corrupt() == [row]
    assert pack.encoded(1).tobytes() == ALL[1]
    assert pack.corrupt(np.array([0, 2, 4])) == [2]
    assert pack.corrupt(np.array([0, 4])) == []


OTHER = "p.arrow is corrupt: labels, splits, sizes or paths are not those that were packed; copy it again, or pack"
FIRST_USE: dict[str, Callable[[Pack], object]] = {
    "size": lambda pack: pack.sizes,
    "orientation": lambda pack: pack.stored_sizes,
    "mean_luma": lambda pack: pack.mean_lumas,
    "crc32": lambda pack: pack.encoded(0),
    "place": lambda pack: pack.make_resident(),
    "paths": lambda pack: pack.describe(2),
}


@pytest.mark.parametrize("column", [*(name for name in INDEX if name not in OPTIONAL), "paths"])
def test_a_damaged_column_is_refused_at_first_use_and_not_before(
    path: Path, target: Path, column: str
) -> None:
    """Labels and splits are used by whoever opens a pack; each time anew, for no column is taken in half checked."""
    index = Shard(path)._index
    place = index.paths[0][0] if column == "paths" else index.columns[column][0]
    copied(path, target, place + 3, bytes([path.read_bytes()[place + 3] ^ 64]))
    if column not in FIRST_USE:
        assert OTHER in complaint(target)
        return
    pack = Pack(target)
    assert pack.labels.tolist() == [0, 0, 1, 1, 1]
    for _ in range(2):
        with pytest.raises(PackError, match=OTHER):
            FIRST_USE[column](pack)


def test_a_column_that_was_read_stays_and_one_that_was_not_is_checked(path: Path, target: Path) -> None:
    pack = Pack(target)
    sizes = pack.sizes.tolist()
    with target.open("r+b") as file:
        for name in ("size", "mean_luma"):
            file.seek(Shard(path)._index.columns[name][0])
            file.write(b"xyz")
    assert pack.sizes.tolist() == sizes
    with pytest.raises(PackError, match=OTHER):
        pack.mean_lumas  # noqa: B018


def test_arrows_readers_see_the_rows_and_not_the_index(path: Path) -> None:
    whole, data = Pack(path), path.read_bytes()
    by_footer, by_stream = pa.ipc.open_file(path).read_all(), pa.ipc.open_stream(data[8:]).read_all()
    assert by_footer.equals(by_stream)
    assert by_footer.column("path").to_pylist() == [whole.image_path(row) for row in range(5)]
    assert by_footer.column("image").to_pylist() == ALL


def test_rows_that_differ_from_the_index_are_found_when_the_pack_is_verified(
    path: Path, target: Path
) -> None:
    """They are for other programs; nothing here reads them."""
    place = path.read_bytes().find(b"a/0000.imga/0001.img")
    pack = Pack(copied(path, target, place, b"b"))
    assert [pack.encoded(row).tobytes() for row in range(5)] == ALL
    assert pack.image_path(0) == "a/0000.img"
    with pytest.raises(PackError, match=OTHER):
        pack.corrupt()
    assert Pack(path).corrupt() == []


CONTENTS: tuple[dict[str, object], ...] = (
    {"rows": 10**18},
    {"rows": -1},
    {"rows": "5"},
    {"columns": {}},
    {"columns": {name: [-8, 0] for name in INDEX}},
    {"columns": {name: [10**9, 0] for name in INDEX}},
    {"paths": []},
    {"paths": [[0, 10**12, 0]]},
)


@pytest.mark.parametrize("contents", CONTENTS)
def test_a_table_of_contents_that_makes_no_sense_is_one_line(
    path: Path, tmp_path: Path, contents: dict[str, object]
) -> None:
    """With its checksum in order."""
    data = path.read_bytes()
    end = len(data) - 10 - int.from_bytes(data[-10:-6], "little") - _END.size
    _, size, magic = _END.unpack(data[end : end + _END.size])
    text = json.dumps(json.loads(data[end - size : end]) | contents).encode()
    changed = (
        data[: end - size] + text + _END.pack(zlib.crc32(text), len(text), magic) + data[end + _END.size :]
    )
    (tmp_path / "p.arrow").write_bytes(changed)
    assert OTHER in complaint(tmp_path / "p.arrow")


def test_paths_of_several_blocks_and_blocks_that_make_no_sense(tmp_path: Path) -> None:
    scale.write(tmp_path / "p.arrow", 2 * PATHS + 1)
    pack = Pack(tmp_path / "p.arrow")
    for row in (0, 2 * PATHS, PATHS - 1, PATHS, 1):
        assert pack.image_path(row) == f"{row % 1000}/photograph_of_it_number_{row}"
    for text in (b"[", b"{}", b'["a"]', b"[1, 2]", b"\xff"):
        with pytest.raises(PackError, match=OTHER):
            read_paths(tmp_path / "p.arrow", text, 2)
    assert read_paths(tmp_path, b'["a", "\\u00e9"]', 2) == ["a", "\u00e9"]


FLIP = """
import sys
from pathlib import Path
import numpy as np
from greyhound.cache.store import Pack, PackError

def content(pack):
    arrays = (pack.labels, pack.sizes, pack.orientations, pack.mean_lumas, pack.crc32s, *map(pack.ids, ("train", "val", "test")))
    return pack.header, [array.tobytes() for array in arrays], list(map(pack.image_path, range(len(pack))))

original, target, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
data, known = original.read_bytes(), Pack(original)
whole, images = content(known), [known.encoded(row).tobytes() for row in range(len(known))]
generator = np.random.default_rng(seed)
found = {"refused": 0, "named": 0, "harmless": 0}
for place, bit in generator.integers((len(data), 8), size=(1000, 2)).tolist():
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    target.write_bytes(changed)
    print(place, bit, file=sys.stderr, flush=True)
    try:
        pack = Pack(target)
        read = content(pack)  # what is not refused at first is refused when it is first used
        bad = pack.corrupt()
    except PackError as error:
        assert str(target) in str(error) and chr(10) not in str(error), error
        found["refused"] += 1
        continue
    assert read == whole or bad, "an undetected change of the index"
    for row in range(len(pack)):
        try:
            assert pack.encoded(row).tobytes() == images[row], "other bytes"
            assert row not in bad
        except PackError as error:
            assert row in bad and f"row {row} (" in str(error), error
    found["named" if bad else "harmless"] += 1
print(found)
"""


def in_a_process(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Of its own: what is wrong with a pack could end it, or keep it for ever."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("originals", "said"),
    [("mmap", "p.arrow was cut short while it was in use; copy the pack again"), ("ram", "b/0001.img")],
)
def test_the_names_of_a_pack_that_is_cut_short_are_one_line_or_in_memory(
    target: Path, originals: str, said: str
) -> None:
    program = (
        "import os, sys; from cache.store import Pack, PackError; pack = Pack(*sys.argv[1:])\n"
        "pack.make_resident(); os.truncate(sys.argv[1], 0)\n"
        "try: print(pack.image_path(3))\n"
        "except PackError as error: print(error)"
    )
    answer = in_a_process(program, target, originals)
    assert answer.returncode == 0 and said in answer.stdout and answer.stdout.count("\n") == 1, answer.stderr


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.arrow")
    answer = in_a_process("import sys; from cache.store import Pack; Pack(sys.argv[1])", tmp_path / "p.arrow")
    assert "p.arrow cannot be opened (no regular file); expected a pack file" in answer.stderr


def test_every_one_of_a_thousand_flipped_bits_is_found_or_harmless(path: Path, tmp_path: Path) -> None:
    """Refused, named by its row, or harmless."""
    answer = in_a_process(FLIP, path, tmp_path / "flipped.arrow", str(time.time_ns()))
    assert answer.returncode == 0, answer.stderr[-3000:]
    found: dict[str, int] = json.loads(answer.stdout.replace("'", '"'))
    assert sum(found.values()) == 1000
    assert found["named"] >= 200, "half of the file are images"
    assert found["refused"] >= 50


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_buffer_of_another_length_is_no_traceback(path: Path, tmp_path: Path, place: int) -> None:
    """Found by the flips above: lengths in the file's own metadata that are no multiple of an offset's eight or four bytes."""
    data = path.read_bytes()
    for length in (6 * 8, 6 * 4):  # the offsets of five images, and of five paths
        starts = [found.start() for found in re.finditer(re.escape(length.to_bytes(8, "little")), data)]
        assert starts
        for start in starts:
            try:
                pack = Pack(copied(path, tmp_path / "p.arrow", start, bytes([data[start] ^ (1 << place)])))
                assert pack.corrupt() == []
            except PackError as error:
                assert "\n" not in str(error)


def test_the_header_survives_the_file(tmp_path: Path) -> None:
    assert Pack(arrow(tmp_path / "p.arrow", HEADER)).header == HEADER


def test_a_pack_that_is_replaced_while_in_use_stays_as_it_was_opened(target: Path, tmp_path: Path) -> None:
    """Packing renames a new file over the old one, whose pages stay for as long as somebody maps them."""
    pack = Pack(target)
    packed(tmp_path / "other", {"a": [ALL[4]], "b": [ALL[3]]}).path.replace(target)
    assert [pack.encoded(row).tobytes() for row in range(5)] == ALL
    assert len(Pack(target)) == 2


def test_a_pack_that_is_cut_short_while_in_use_is_one_line(target: Path) -> None:
    """To touch a page that is mapped and no longer in the file would end the process with SIGBUS."""
    mapped, in_ram = Pack(target), Pack(target, "ram")
    in_ram.make_resident()
    os.truncate(target, 0)
    for read in (mapped.encoded, mapped.is_valid):
        with pytest.raises(PackError, match=r"p\.arrow was cut short while it was in use; .*--originals ram"):
            read(2)
    assert mapped.labels.tolist() == [0, 0, 1, 1, 1]
    assert in_ram.encoded(2).tobytes() == ALL[2]


@pytest.mark.parametrize("checked", [True, False])
def test_a_pack_that_is_overwritten_in_place_hands_out_no_other_bytes(target: Path, checked: bool) -> None:
    """Also not of an image that was found sound before; what was not written to is handed out as ever."""
    mapped, in_ram = Pack(target), Pack(target, "ram")
    in_ram.make_resident()
    if not checked:
        mapped.make_resident()
    for pack in (mapped, in_ram) if checked else ():
        assert pack.corrupt(np.arange(5)) == []
    data = target.read_bytes().replace(ALL[2], bytes(len(ALL[2])))
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    with target.open("r+b") as file:
        file.write(data)
    with pytest.raises(PackError, match=r"row 2 \('b/0000\.img'\) has not the bytes that were packed"):
        mapped.encoded(2)
    assert mapped.encoded(3).tobytes() == ALL[3]
    assert mapped.corrupt(np.arange(5)) == [2]
    assert in_ram.encoded(2).tobytes() == ALL[2]


def complaint(path: Path) -> str:
    """What is wrong with it."""
    with pytest.raises(PackError) as refusal:
        Pack(path)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def arrow(path: Path, schema: pa.Schema | Header, rows: int = 1, image: bytes = b"") -> Path:
    """A file of rows that are all the same; under a header, a pack."""
    values = {pa.large_binary(): image, pa.string(): "x", pa.uint32(): zlib.crc32(image)}
    columns = {
        field.name: pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), list(SPLITS))
        if pa.types.is_dictionary(field.type)
        else pa.array([values.get(field.type, 1)] * rows, field.type)
        for field in (SCHEMA if isinstance(schema, Header) else schema)
    }
    indexed = False
    if isinstance(schema, Header):
        schema, indexed = schema.schema(), True
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        if rows:
            writer.write_batch(pa.record_batch([*columns.values()], schema=schema))
    if indexed:
        add_index(path)
    return path


EXCLUDED = (Excluded("p", "r", "d", "dGh1bWI="),)
MOVED = (("a/y.png", "a", "b"),)
HEADER = Header(("a", "b"), "0" * 64, 7, EXCLUDED, (("x.gif", "a GIF"),), MOVED, lost=("a/z.png",))


NO_PACK = "{file} is an Arrow file but not a pack; make one: greyhound pack IMAGES --out PACK"
NEWER, OLDER = (Header(("a", "b"), "0" * 64, 0, format=FORMAT + step) for step in (1, -1))


NOT_READABLE = (b"", b"ARROW1", b"hello, world" * 100, bytes(5000))
TEXTS = (b"{", b"\xff\xfe", b"[]", b'{"format": 1}', b'{"format": "one"}', b"null")
NO_HEADERS = [SCHEMA.with_metadata({b"greyhound": text}) for text in TEXTS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no pack at {file}; make one: greyhound pack IMAGES --out {file}"),
        (pa.schema([("x", pa.int64())]), NO_PACK),
        (SCHEMA, NO_PACK),  # without a header
        (NEWER.schema(), "{file} has pack format 4, newer than 3, the newest known here; update Greyhound"),
        (
            OLDER.schema(),
            "{file} has pack format 2, older than 3, the one that is read here; pack the images again",
        ),
        *((data, "{file} is no readable pack ( ... ); pack the images again") for data in NOT_READABLE),
        *((schema, "{file} has a corrupt header ( ... ") for schema in NO_HEADERS),
    ],
)
def test_what_is_no_pack_is_one_line(tmp_path: Path, content: pa.Schema | bytes | None, message: str) -> None:
    file = tmp_path / "p.arrow"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        arrow(file, content)
    start, dots, end = message.format(file=file).partition(" ... ")
    said = complaint(file)
    assert said.startswith(start) and said.endswith(end) if dots else said == start


def test_a_folder_an_empty_and_a_truncated_pack(path: Path, tmp_path: Path) -> None:
    assert complaint(tmp_path).startswith(
        f"{tmp_path} is a folder; pack it first: greyhound pack {tmp_path} "
    )
    file = arrow(tmp_path / "p.arrow", HEADER, rows=0)
    assert complaint(file) == f"{file} holds no images; pack the images again"
    data = path.read_bytes()
    for length in (1, 8, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        assert "is no readable pack (" in complaint(file)


READ_AN_EPOCH = """
import os, sys
from pathlib import Path
import numpy as np
from greyhound.cache.store import Pack

with open(sys.argv[1], "rb") as file:  # out of the page cache, where writing it has put it
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def from_disk():
    return int(Path("/proc/self/io").read_text().partition("read_bytes: ")[2].split()[0])

pack = Pack(sys.argv[1], sys.argv[2].removeprefix("not "))
if not sys.argv[2].startswith("not "):
    pack.make_resident()
before = from_disk()
total = sum(int(pack.encoded(row).sum()) for row in range(len(pack)))
again = sum(int(pack.encoded(row).sum()) for row in np.random.default_rng(0).permutation(len(pack)))
assert total == again
print(from_disk() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what a process reads")
def test_no_epoch_of_a_resident_pack_reads_the_disk(tmp_path: Path) -> None:
    """64 MiB, far more than a disk reads ahead; a pack that was not made resident shows that reads are counted."""
    path = arrow(tmp_path / "p.arrow", HEADER, rows=64, image=np.random.default_rng(0).bytes(2**20))

    def read(how: str) -> int:
        return int(in_a_process(READ_AN_EPOCH, path, how).stdout)

    if read("not mmap") == 0:
        pytest.skip("this file system does not count its reads, so none can be missed")
    assert read("mmap") == read("ram") == 0


@pytest.mark.alone
def test_an_index_of_imagenets_size_opens_within_a_second(tmp_path: Path) -> None:
    """1.3 million rows in 2,000 record batches, as many as a pack of 130 GB has; in core time, for the machine is shared."""
    path, rows = tmp_path / "index.arrow", 1_300_000
    scale.write(path, rows, rows_a_batch=rows // 2000)
    assert pa.ipc.open_file(pa.memory_map(str(path))).num_record_batches == 2000
    started = time.process_time()
    pack = Pack(path)
    assert time.process_time() - started < 1
    assert len(pack) == len(pack.labels) == rows
    assert len(pack.ids("train")) == 0.9 * rows
    started = time.process_time()
    for row in range(0, rows, 650):
        pack.encoded(row)
    assert time.process_time() - started < 0.2
    assert pack.encoded(rows - 1).tobytes() == scale.IMAGE


def test_a_pickled_pack_opens_its_files_anew(path: Path, monkeypatch: Patch) -> None:
    """A descriptor is another file in another process; and no image goes through the pipe."""
    monkeypatch.chdir(path.parent)
    pack = Pack(path.name, "ram")
    data = pickle.dumps(pack)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert (again.header.digest, again.originals, len(again)) == (pack.header.digest, "ram", len(pack))
    assert again._shards[0]._descriptor != pack._shards[0]._descriptor
    assert bytes(again.encoded(0)) == bytes(pack.encoded(0))
