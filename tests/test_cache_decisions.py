"""What a person decided: read, matched to the files of today by their content, and replayed by `pack`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from pictures import ALL_TRAIN, encode, folder, left_out, noise, scan_here
from PIL import Image
from runs import Capture, Patch

from greyhound.cache import __main__ as main
from greyhound.cache.pack import Options, pack
from greyhound.cache.scan import ImageInfo
from greyhound.cache.selection import (
    COLUMNS,
    By,
    Choice,
    Decision,
    Exclusion,
    Photograph,
    match,
    read_decisions,
)
from greyhound.cache.store import Pack, PackError

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
HEADER = ",".join(COLUMNS)


def photograph(path: str, sha256: str = ONE) -> Photograph:
    return Photograph(path, path.partition("/")[0], sha256)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "decisions.csv"


def test_decisions_are_read(file: Path) -> None:
    name = 'a/two\nlines, "quoted" \\xff.jpg'
    quoted = name.replace('"', '""')
    rows = (f'x,{ONE},"{quoted}",a,keep,', f",{TWO},b/2.jpg,b,relabel,a", ",,b/3.jpg,b,exclude,", "")
    file.write_text("\r\n".join([f"\ufeffnote,{HEADER}", *rows]), encoding="utf-8", newline="")
    assert read_decisions(file) == [
        Decision(Photograph(name, "a", ONE), "keep", "", 3),
        Decision(Photograph("b/2.jpg", "b", TWO), "relabel", "a", 4),
        Decision(Photograph("b/3.jpg", "b", ""), "exclude", "", 5),
    ]
    file.write_text(f"{HEADER}\n{ONE},a/1.jpg,a,keep,\n{ONE},a/1.jpg,a,keep,\n")  # two lists that were joined
    assert [decision.line for decision in read_decisions(file)] == [2]


def test_what_the_machine_said_is_told_apart_and_a_person_outranks_it(file: Path) -> None:
    rows = (
        f"{ONE},a/1.jpg,a,exclude,,grayscale: colourfulness 0.1,machine,grayscale",
        f"{TWO},a/2.jpg,a,exclude,,dark: it is,machine,dark;ugly",
        f"{ONE},a/1.jpg,a,keep,,,,",
        f"{THREE},a/3.jpg,a,exclude,,exact-duplicate: of a/0.jpg,person,",
        f"{THREE},a/4.jpg,a,exclude,,dark: it is,,",
    )
    file.write_text("\n".join([f"{HEADER},reason,by,causes", *rows]) + "\n")
    kept = "exact-duplicate: of a/0.jpg"
    assert read_decisions(file) == [
        Decision(Photograph("a/2.jpg", "a", TWO), "exclude", "", 3, "dark: it is", "machine", ("dark",)),
        Decision(Photograph("a/1.jpg", "a", ONE), "keep", "", 4),
        Decision(Photograph("a/3.jpg", "a", THREE), "exclude", "", 5, kept, "person"),
        Decision(Photograph("a/4.jpg", "a", THREE), "exclude", "", 6, "dark: it is", "person"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); expected decisions.csv; greyhound survey"),
        (b"\xff\xd8\xff\xe0", "is no text in UTF-8 or UTF-16; expected decisions.csv; greyhound survey"),
        (b"", "is empty; expected decisions.csv; greyhound survey"),
        (b"path,reason\n", "has 'path, reason' in its first line and lacks sha256, class, decision, to;"),
        (
            b"path,reason\na/1.jpg,dark\n",
            "has 'path, reason' in ... ; an exclusion list is given as --exclude",
        ),
        (f'{ONE},"a"b,a,keep,', "is no CSV ("),
        (f"{ONE},a/1,2.jpg,a,keep,", "has 6 cells in line 2, and its first line names 5 columns; put"),
        (f"{ONE},a/1.jpg,a,delete,", "says 'delete' in line 2; expected the decision keep,"),
        (f"{ONE},a/1.jpg,a,relabel,", "relabels to nothing in line 2; expected a class"),
        ("12,a/1.jpg,a,keep,", "has the sha256 '12' in line 2; expected a path and 64"),
        (f"{ONE},,a,keep,", "has no path in line 2; expected a path and 64 hexadecimal"),
        (
            f"{ONE},a/1.jpg,a,keep,\n{ONE},a/1.jpg,a,exclude,",
            "says keep in line 2 and exclude in line 3 of 'a/1.jpg'; expected one decision a file",
        ),
        (
            f"{HEADER},by\n{ONE},a/1.jpg,a,keep,,robot\n".encode(),
            "has 'robot' in the column by in line 2; ... expected person or machine",
        ),
    ],
)
def test_a_list_that_is_none(file: Path, content: bytes | str | None, message: str) -> None:
    """Text is what follows the first line."""
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else f"{HEADER}\n{content}\n".encode())
    with pytest.raises(PackError) as caught:
        read_decisions(file)
    start, _, end = message.partition(" ... ")
    assert str(caught.value).startswith(f"{file} {start}") and str(caught.value).endswith(end)
    assert "\n" not in str(caught.value)


OUT, KEEP = Decision(photograph("a/1.jpg"), "exclude"), Decision(photograph("a/2.jpg"), "keep")
OUT_2, OUT_IN_AKITA = (Decision(photograph(path), "exclude") for path in ("a/2.jpg", "Akita/2.jpg"))
UNHASHED = Decision(photograph("a/1.jpg", ""), "exclude")
IN_AKITA = [OUT_IN_AKITA, Decision(photograph("Akita/1.jpg", TWO), "keep")]
KEEP_TWO = Decision(photograph("a/2.jpg", TWO), "keep")
COPY = Decision(photograph("a/2.jpg"), "exclude", "", 2, causes=("exact-duplicate",))


@pytest.mark.parametrize(
    ("decisions", "images", "found", "missing"),
    [
        # The file at the path comes first; equal copies are told apart by it.
        ([OUT_2], ["a/1.jpg", "a/2.jpg"], {"a/2.jpg": "exclude"}, 0),
        ([KEEP, OUT], ["a/1.jpg", "a/2.jpg"], {"a/1.jpg": "exclude", "a/2.jpg": "keep"}, 0),
        # A renamed file keeps its decision, and is not taken for a copy that has its own.
        ([OUT], ["a/new.jpg"], {"a/new.jpg": "exclude"}, 0),
        ([OUT, KEEP], ["a/2.jpg", "a/3.jpg"], {"a/2.jpg": "keep", "a/3.jpg": "exclude"}, 0),
        ([OUT, KEEP], ["a/2.jpg"], {"a/2.jpg": "keep"}, 1),
        # Two files that changed names keep their own decisions; another content is another image.
        ([OUT, KEEP_TWO], [("a/1.jpg", TWO), "a/2.jpg"], {"a/1.jpg": "keep", "a/2.jpg": "exclude"}, 0),
        ([OUT], [("a/1.jpg", TWO), ("b/1.jpg", THREE)], {}, 1),
        # A class folder that was renamed keeps its decisions; of equal copies the one of its name is meant.
        (
            IN_AKITA,
            [("akita/1.jpg", TWO), "akita/2.jpg"],
            {"akita/1.jpg": "keep", "akita/2.jpg": "exclude"},
            0,
        ),
        ([OUT_IN_AKITA], ["akita/1.jpg", "akita/2.jpg"], {"akita/2.jpg": "exclude"}, 0),
        # A content that lies once is found in any class, if it is clear which decision is for it.
        ([OUT], ["b/9.jpg"], {"b/9.jpg": "exclude"}, 0),
        ([OUT], ["b/9.jpg", "c/9.jpg"], {}, 1),
        ([OUT, KEEP], ["b/9.jpg"], {}, 2),
        # A file without a content is known by its path alone.
        ([UNHASHED], [("a/1.jpg", "")], {"a/1.jpg": "exclude"}, 0),
        ([UNHASHED], [("a/2.jpg", "")], {}, 1),
        ([], ["a/1.jpg"], {}, 0),
        # A copy that was deleted does not take the last one along.
        ([COPY], ["a/1.jpg"], {}, 1),
        ([COPY], ["a/1.jpg", "a/3.jpg"], {"a/1.jpg": "exclude"}, 0),
    ],
)
def test_decisions_find_the_files_that_they_are_about(
    decisions: list[Decision], images: list[str | tuple[str, str]], found: dict[str, str], missing: int
) -> None:
    """An image without a content is the first one, `ONE`."""
    there = [photograph(image) if isinstance(image, str) else photograph(*image) for image in images]
    matched, lost = match(decisions, there)
    assert {path: decision.choice for path, decision in matched.items()} == found
    assert len(lost) == missing


@pytest.fixture
def root(tmp_path: Path, scan_in_process: None) -> Path:
    """Three classes with two images each, among them a grey one; and one file that nothing decodes."""
    names = ("a/1", "a/2", "b/1", "b/2", "c/1")
    files = {f"{name}.png": encode(noise(12, 10, seed)) for seed, name in enumerate(names)}
    grey = encode(Image.fromarray(noise(20, 20, 7)).convert("L"))
    return folder(tmp_path / "images", files | {"c/grey.png": grey, "c/bad.png": b"bad"})


def decided(root: Path, path: str, choice: Choice, to: str = "") -> Decision:
    sha256 = hashlib.sha256((root / path).read_bytes()).hexdigest()
    return Decision(Photograph(path, path.rpartition("/")[0], sha256), choice, to, 2)


def replayed(root: Path, *decisions: Decision, exclude: dict[str, Exclusion] | None = None) -> Pack:
    options = Options(0, 0, grayscale="exclude", exclude=exclude or {}, decisions=decisions)
    pack(root, root.with_suffix(".arrow"), options)
    return Pack(root.with_suffix(".arrow"))


def labels(opened: Pack) -> dict[str, str]:
    return {opened.image_path(row): opened.classes[label] for row, label in enumerate(opened.labels)}


def test_what_is_excluded_says_by_whom_and_why(root: Path) -> None:
    by_hand = [decided(root, path, "exclude") for path in ("a/1.png", "b/1.png", "c/grey.png")]
    why = "exact-duplicate: the same file as b/1.png"
    folder(root, {f"d/{n}.png": encode(noise(12, 10, 40 + n)) for n in range(4)})
    told, twin, odd = (decided(root, f"d/{n}.png", "exclude") for n in range(3))
    said = "near-duplicate: the same picture as b/1.png"
    opened = replayed(
        root,
        *by_hand,
        replace(told, reason=why),
        replace(twin, reason=said, by="machine", causes=("near-duplicate",)),
        replace(odd, reason="odd", by="machine"),
        exclude={"b/1.png": Exclusion("near-duplicate")},
    )
    assert set(labels(opened)) == {"a/2.png", "b/2.png", "c/1.png", "d/3.png"}
    assert left_out(opened.header) == {
        "a/1.png": ("excluded by hand", ""),
        "b/1.png": ("excluded by hand", "near-duplicate"),
        "c/grey.png": ("excluded by hand", "grayscale"),
        "c/bad.png": ("undecodable", "no image that is read here"),
        "d/0.png": ("excluded by hand", why),
        "d/1.png": ("near-duplicate", "the same picture as b/1.png"),
        "d/2.png": ("odd", "exclusion list"),
    }
    assert all(row.thumbnail for row in opened.header.excluded if row.reason == "excluded by hand")


@pytest.mark.parametrize("problem", ["bomb", "undecodable"])
@pytest.mark.parametrize("by", [*get_args(By), None])
def test_what_must_not_be_opened_is_not_whatever_it_is_excluded_for(
    root: Path, by: By | None, problem: str, monkeypatch: Patch
) -> None:
    def look(files: Iterable[Path], **_: str) -> Iterator[ImageInfo]:
        for file in files:
            (seen,) = scan_here([file])
            yield replace(seen, problem=problem) if file == root / "a/1.png" else seen

    opened: list[Path] = []
    monkeypatch.setattr("greyhound.cache.pack.make_thumbnail", lambda file, *_: opened.append(file))
    monkeypatch.setattr("greyhound.cache.pack.scan", look)
    folder(root, {"loose.png": encode(noise(12, 10, 8))})
    paths = ["a/1.png", "b/1.png"]
    decisions = [replace(decided(root, path, "exclude"), reason="ugly", by=by) for path in paths if by]
    replayed(root, *decisions, exclude={} if by else dict.fromkeys(paths, Exclusion("broken")))
    assert sorted(opened) == [root / "b/1.png", root / "c/grey.png"]


def test_images_beside_the_class_folders_can_be_given_a_class(root: Path) -> None:
    folder(root, {f"{row}.png": encode(noise(12, 10, 30 + row)) for row in range(4)} | {"bad.png": b"bad"})
    relabelled = [decided(root, path, "relabel", "b") for path in ("0.png", "bad.png")]
    opened = replayed(root, *relabelled, decided(root, "1.png", "exclude"), decided(root, "2.png", "keep"))
    assert labels(opened)["0.png"] == "b"
    assert opened.header.relabelled == (("0.png", "no class", "b"),)
    assert opened.header.lost == ()
    found = left_out(opened.header)
    assert found["1.png"] == ("excluded by hand", "")
    assert found["2.png"] == found["3.png"] == ("no class", "beside the class folders")
    assert found["bad.png"] == ("undecodable", "no image that is read here")


def test_relabelled_by_hand_and_without_decisions_nothing_changes(root: Path) -> None:
    before = pack(root, root.with_suffix(".arrow"), replace(ALL_TRAIN, grayscale="exclude"))
    content = root.with_suffix(".arrow").read_bytes()
    assert replayed(root).path.read_bytes() == content
    opened = replayed(root, decided(root, "a/1.png", "relabel", "b"))
    assert labels(opened) == {"a/1.png": "b", "a/2.png": "a", "b/1.png": "b", "b/2.png": "b", "c/1.png": "c"}
    assert opened.header.relabelled == (("a/1.png", "a", "b"),)
    assert opened.summary()["relabelled"] == [{"path": "a/1.png", "from": "a", "to": "b"}]
    assert opened.header.digest != before.digest
    emptied = replayed(root, *(decided(root, f"a/{row}.png", "relabel", "b") for row in (1, 2)))
    assert emptied.classes == ("b", "c")
    assert labels(emptied)["a/2.png"] == "b"


@pytest.mark.parametrize(("choice", "to"), [("keep", ""), ("relabel", "a")])
def test_a_person_outranks_clean_up_and_exclusions_not_decoders(root: Path, choice: Choice, to: str) -> None:
    decisions = [decided(root, path, choice, to) for path in ("c/grey.png", "b/1.png", "c/bad.png")]
    folder(root, {"b/3.png": encode(noise(12, 10, 50))})
    listed = dict.fromkeys(("b/1.png", "b/2.png"), Exclusion("near-duplicate"))
    opened = replayed(root, *decisions, exclude=listed)
    assert labels(opened)["c/grey.png"] == (to or "c")
    assert labels(opened)["b/1.png"] == (to or "b")
    assert left_out(opened.header)["b/2.png"] == ("near-duplicate", "exclusion list")
    assert left_out(opened.header)["c/bad.png"] == ("undecodable", "no image that is read here")
    assert "c/bad.png" not in {path for path, *_ in opened.header.relabelled}


@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        ({}, set()),
        ({"a/1.png": "keep"}, {"a/1.png"}),
        ({"b/copy.png": "keep"}, {"b/copy.png"}),
        ({"a/1.png": "keep", "b/copy.png": "keep"}, {"a/1.png", "b/copy.png"}),
        ({"b/copy.png": "exclude"}, {"a/1.png"}),
        ({"b/copy.png": "relabel"}, {"a/1.png", "b/copy.png"}),
    ],
)
def test_of_a_file_with_two_labels_what_a_person_says_is_kept(
    choices: dict[str, Choice], kept: set[str], root: Path
) -> None:
    """And without a word neither copy; relabelled to the class of the other, it contradicts it no more."""
    folder(root, {"b/copy.png": (root / "a/1.png").read_bytes()})
    opened = replayed(root, *(decided(root, path, choice, "a") for path, choice in choices.items()))
    found = {path for path in labels(opened) if path in ("a/1.png", "b/copy.png")}
    assert found == kept


def test_renamed_files_keep_their_decisions_and_lost_ones_are_counted(root: Path) -> None:
    decisions = [decided(root, "a/1.png", "relabel", "c"), decided(root, "b/1.png", "exclude")]
    in_folder = decided(root, "c/1.png", "exclude")
    (root / "a/1.png").rename(root / "a/renamed.png")
    (root / "b/1.png").unlink()
    opened = replayed(root, *decisions)
    assert labels(opened)["a/renamed.png"] == "c"
    assert opened.header.relabelled == (("a/renamed.png", "a", "c"),)
    assert list(opened.header.lost) == opened.summary()["lost"] == ["b/1.png"]
    (root / "c").rename(root / "C")
    (root / "a/2.png").replace(root / "C/2.png")
    opened = replayed(root, in_folder)
    assert left_out(opened.header)["C/1.png"] == ("excluded by hand", "")
    assert opened.header.lost == ()


def test_what_the_machine_said_is_no_persons_decision(root: Path, monkeypatch: Patch) -> None:
    looked: list[Path] = []

    def look(files: Iterable[Path], **_: str) -> Iterator[ImageInfo]:
        looked.extend(files := [*files])
        return scan_here(files)

    monkeypatch.setattr("greyhound.cache.pack.scan", look)
    folder(root, {"loose.png": encode(noise(12, 10, 8))})
    decisions = [decided(root, path, "exclude") for path in ("b/1.png", "loose.png")]
    (root / "b/1.png").unlink()
    machine = [replace(each, reason="dark: it is", by="machine", causes=("dark",)) for each in decisions]
    opened = replayed(root, *machine)
    assert root / "loose.png" not in looked
    assert left_out(opened.header)["loose.png"] == ("no class", "beside the class folders")
    assert opened.header.lost == ()


def test_a_class_without_a_folder_is_found_before_the_images_are_looked_at(
    root: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr("greyhound.cache.pack.scan", lambda _: pytest.fail("too late"))
    out, moved = decided(root, "b/1.png", "exclude", "nowhere"), decided(root, "a/1.png", "relabel", "d")
    with pytest.raises(PackError) as caught:
        replayed(root, out, replace(moved, line=3))
    said = (
        "line 3 of the decisions relabels 'a/1.png' to 'd', which is no class folder; expected one of a, b, c"
    )
    assert str(caught.value) == said


def test_the_command_says_what_was_relabelled_and_lost(root: Path, capsys: Capture) -> None:
    out, file = root.with_suffix(".arrow"), root.with_name("decisions.csv")
    rows = [decided(root, "a/1.png", "relabel", "b"), decided(root, "b/1.png", "exclude")]
    rows.append(Decision(photograph("a/x.png", THREE), "keep"))
    cells = [(d.image.sha256, d.image.path, d.image.label, d.choice, d.to) for d in rows]
    file.write_text("\n".join([HEADER, *(",".join(row) for row in cells)]) + "\n")
    main.pack(root, out, grayscale="exclude", decisions=file)
    main.info(out)
    main.info(out, files=True)
    packed, info, files = capsys.readouterr().out.split("left out: ")[1:]
    assert packed.startswith("3 (1 excluded by hand, 1 undecodable, 1 grayscale)\n")
    assert packed.splitlines()[1] == "  b/1.png: excluded by hand"
    assert "\nimages without colour are left out by --grayscale; --grayscale keep keeps them\n" in packed
    assert "relabelled by hand: 1\n  a/1.png: a -> b\n" in packed
    assert "relabelled by hand: 1\n" in info
    assert "a/1.png" not in info and "a/x.png" not in info
    assert "  b/1.png: excluded by hand\n  c/bad.png: undecodable, no image that is read here\n" in files
    assert "\n  a/1.png: a -> b\n" in files
    said_of_lost = "note: 1 decision has no image any more: no file here is the one that it was about"
    assert f"{said_of_lost}; --files names it\n" in info
    for said in (packed, files):
        assert f"{said_of_lost}\n" in said and "\n  a/x.png\n" in said
