"""What a person decided: read, matched to the files of today by their content, and replayed by `pack`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pictures import ALL_TRAIN, encode, folder, noise, scan_here
from PIL import Image

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
    check_classes,
    match,
    read_decisions,
)
from greyhound.cache.store import Pack, PackError

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
HEADER = ",".join(COLUMNS)


def photograph(path: str, sha256: str = ONE) -> Photograph:
    return Photograph(path, path.partition("/")[0], sha256)


def matched(decisions: list[Decision], *images: Photograph) -> tuple[dict[str, str], int]:
    """Path -> choice, and how many decisions found nothing."""
    found, missing = match(decisions, images)
    return {path: decision.choice for path, decision in found.items()}, len(missing)


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
        (b"\xff\xd8\xff\xe0", "is no CSV ('utf-8' codec can't decode byte"),
        (f'{HEADER}\n{ONE},"a"b,a,keep,\n'.encode(), "is no CSV ("),
        (b"", "has 'no columns' in its first line and lacks sha256, path, class, decision, to; expected"),
        (b"path,reason\n", "has 'path, reason' in its first line and lacks sha256, class, decision, to;"),
        (
            f"{HEADER}\n{ONE},a/1.jpg,a,delete,\n".encode(),
            "says 'delete' in line 2; expected the decision keep,",
        ),
        (f"{HEADER}\n{ONE},a/1.jpg,a,relabel,\n".encode(), "relabels to nothing in line 2; expected a class"),
        (f"{HEADER}\n12,a/1.jpg,a,keep,\n".encode(), "has the sha256 '12' in line 2; expected a path and 64"),
        (f"{HEADER}\n{ONE},,a,keep,\n".encode(), "has no path in line 2; expected a path and 64 hexadecimal"),
        (
            f"{HEADER}\n{ONE},a/1.jpg,a,keep,\n{ONE},a/1.jpg,a,exclude,\n".encode(),
            "says keep in line 2 and exclude in line 3 of 'a/1.jpg'; expected one decision a file",
        ),
        (
            f"{HEADER},by\n{ONE},a/1.jpg,a,keep,,robot\n".encode(),
            "has 'robot' in the column by in line 2; ... expected person or machine",
        ),
        (
            b"path,reason\na/1.jpg,dark\n",
            "has 'path, reason' in its first line ... ; an exclusion list is given as --exclude",
        ),
    ],
)
def test_a_list_that_is_none(file: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PackError) as caught:
        read_decisions(file)
    start, _, end = message.partition(" ... ")
    assert str(caught.value).startswith(f"{file} {start}")
    assert str(caught.value).endswith(end)
    assert "\n" not in str(caught.value)


def test_a_class_that_does_not_exist() -> None:
    decisions = [
        Decision(photograph("a/1.jpg"), "exclude", "nowhere", 2),
        Decision(photograph("a/2.jpg"), "relabel", "Beagel", 3),
    ]
    with pytest.raises(PackError) as caught:
        check_classes(decisions, ("Akita", "Beagle"))
    assert str(caught.value) == (
        "line 3 of the decisions relabels 'a/2.jpg' to 'Beagel', which is no class folder; "
        "expected one of Akita, Beagle"
    )
    check_classes(decisions[:1], ("Akita",))


OUT, KEEP = Decision(photograph("a/1.jpg"), "exclude"), Decision(photograph("a/2.jpg"), "keep")
OUT_2, OUT_IN_AKITA = (Decision(photograph(path), "exclude") for path in ("a/2.jpg", "Akita/2.jpg"))
UNHASHED = Decision(photograph("a/1.jpg", ""), "exclude")


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
        (
            [OUT, replace(KEEP, image=photograph("a/2.jpg", TWO))],
            [("a/1.jpg", TWO), ("a/2.jpg", ONE)],
            {"a/1.jpg": "keep", "a/2.jpg": "exclude"},
            0,
        ),
        ([OUT], [("a/1.jpg", TWO), ("b/1.jpg", THREE)], {}, 1),
        # A class folder that was renamed keeps its decisions; of equal copies the one of its name is meant.
        (
            [
                Decision(photograph("Akita/1.jpg", ONE), "exclude"),
                Decision(photograph("Akita/2.jpg", TWO), "keep"),
            ],
            [("akita/1.jpg", ONE), ("akita/2.jpg", TWO)],
            {"akita/1.jpg": "exclude", "akita/2.jpg": "keep"},
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
    ],
)
def test_decisions_find_the_files_that_they_are_about(
    decisions: list[Decision], images: list[str | tuple[str, str]], found: dict[str, str], missing: int
) -> None:
    """An image without a content is the first one, `ONE`."""
    there = [photograph(image) if isinstance(image, str) else photograph(*image) for image in images]
    assert matched(decisions, *there) == (found, missing)


def test_a_copy_that_was_deleted_does_not_take_the_last_one_along() -> None:
    decision = Decision(photograph("a/2.jpg"), "exclude", "", 2, causes=("exact-duplicate",))
    assert matched([decision], photograph("a/1.jpg")) == ({}, 1)
    assert matched([decision], photograph("a/1.jpg"), photograph("a/3.jpg")) == ({"a/1.jpg": "exclude"}, 0)


# --- replayed by pack ------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes with two images each, among them a gray one; and one file that nothing decodes."""
    monkeypatch.setattr("greyhound.cache.pack.scan", scan_here)
    grey = Image.fromarray(noise(20, 20, 7)).convert("L")
    files = {
        f"{name}/{row}.png": encode(noise(12, 10, seed + row))
        for name, seed in (("a", 0), ("b", 10))
        for row in (1, 2)
    }
    files |= {
        "c/1.png": encode(noise(12, 10, 20)),
        "c/grey.png": encode(np.asarray(grey)),
        "c/bad.png": b"bad",
    }
    return folder(tmp_path / "images", files)


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def decided(root: Path, path: str, choice: Choice, to: str = "") -> Decision:
    return Decision(Photograph(path, path.partition("/")[0], sha256_of(root / path)), choice, to, 2)


def replayed(root: Path, *decisions: Decision, exclude: dict[str, Exclusion] | None = None) -> Pack:
    options = Options(0, 0, exclude=exclude or {}, decisions=decisions)
    pack(root, root.with_suffix(".arrow"), options)
    return Pack(root.with_suffix(".arrow"))


def labels(opened: Pack) -> dict[str, str]:
    return {opened.image_path(row): opened.classes[label] for row, label in enumerate(opened.labels)}


def left_out(opened: Pack) -> dict[str, tuple[str, str]]:
    return {row.path: (row.reason, row.detail) for row in opened.header.excluded}


def test_without_decisions_nothing_changes(root: Path) -> None:
    pack(root, root.with_suffix(".arrow"), ALL_TRAIN)
    before = root.with_suffix(".arrow").read_bytes()
    replayed(root)
    assert root.with_suffix(".arrow").read_bytes() == before


def test_what_is_excluded_says_by_whom_and_why(root: Path) -> None:
    by_hand = [decided(root, path, "exclude") for path in ("a/1.png", "b/1.png", "c/grey.png")]
    why = "exact-duplicate: the same file as b/1.png"
    folder(root, {f"d/{n}.png": encode(noise(12, 10, 40 + n)) for n in range(3)})
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
    assert set(labels(opened)) == {"a/2.png", "b/2.png", "c/1.png"}
    assert left_out(opened) == {
        "a/1.png": ("excluded by hand", ""),
        "b/1.png": ("excluded by hand", "near-duplicate"),
        "c/grey.png": ("excluded by hand", "grayscale"),
        "c/bad.png": ("undecodable", "not an image"),
        "d/0.png": ("excluded by hand", why),
        "d/1.png": ("near-duplicate", "the same picture as b/1.png"),
        "d/2.png": ("odd", "exclusion list"),
    }
    assert all(row.thumbnail for row in opened.header.excluded if row.reason == "excluded by hand")


@pytest.mark.parametrize("problem", ["bomb", "undecodable"])
@pytest.mark.parametrize("by", [*get_args(By), None])
def test_what_must_not_be_opened_is_not_whatever_it_is_excluded_for(
    root: Path, by: By | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(files: Iterable[Path]) -> Iterator[ImageInfo]:
        for file in files:
            (seen,) = scan_here([file])
            yield replace(seen, problem=problem) if file == root / "a/1.png" else seen

    opened: list[Path] = []
    monkeypatch.setattr("greyhound.cache.pack.make_thumbnail", lambda file, side: opened.append(file))
    monkeypatch.setattr("greyhound.cache.pack.scan", look)
    folder(root, {"loose.png": encode(noise(12, 10, 8))})
    paths = ["a/1.png", "b/1.png"]
    decisions = [replace(decided(root, path, "exclude"), reason="ugly", by=by) for path in paths if by]
    replayed(root, *decisions, exclude={} if by else dict.fromkeys(paths, Exclusion("broken")))
    assert sorted(opened) == [root / "b/1.png", root / "c/grey.png"]


def test_images_beside_the_class_folders_can_be_given_a_class(root: Path) -> None:
    folder(root, {f"{row}.png": encode(noise(12, 10, 30 + row)) for row in range(4)} | {"bad.png": b"bad"})
    choices: dict[str, tuple[Choice, str]] = {
        "0.png": ("relabel", "b"),
        "1.png": ("exclude", ""),
        "2.png": ("keep", ""),
        "bad.png": ("relabel", "b"),
    }
    opened = replayed(
        root,
        *(
            replace(decided(root, path, *choice), image=Photograph(path, "", sha256_of(root / path)))
            for path, choice in choices.items()
        ),
    )
    assert labels(opened)["0.png"] == "b"
    assert opened.header.relabelled == (("0.png", "no class", "b"),)
    assert opened.header.lost == ()
    found = left_out(opened)
    assert found["1.png"] == ("excluded by hand", "")
    assert found["2.png"] == found["3.png"] == ("no class", "beside the class folders")
    assert found["bad.png"] == ("undecodable", "not an image")


def test_relabelled_by_hand(root: Path) -> None:
    before = replayed(root).header.digest
    opened = replayed(root, decided(root, "a/1.png", "relabel", "b"))
    assert labels(opened) == {"a/1.png": "b", "a/2.png": "a", "b/1.png": "b", "b/2.png": "b", "c/1.png": "c"}
    assert opened.header.relabelled == (("a/1.png", "a", "b"),)
    assert opened.summary()["relabelled"] == [{"path": "a/1.png", "from": "a", "to": "b"}]
    assert opened.header.digest != before


def test_a_class_that_is_emptied_by_hand_is_no_class(root: Path) -> None:
    moved = [decided(root, f"a/{row}.png", "relabel", "b") for row in (1, 2)]
    opened = replayed(root, *moved)
    assert opened.classes == ("b", "c")
    assert labels(opened)["a/2.png"] == "b"


@pytest.mark.parametrize("choice", ["keep", "relabel"])
def test_a_person_outranks_the_clean_up_and_the_exclusion_list_but_no_decoder(
    root: Path, choice: Choice
) -> None:
    to = "a" if choice == "relabel" else ""
    decisions = [decided(root, path, choice, to) for path in ("c/grey.png", "b/1.png", "c/bad.png")]
    listed = dict.fromkeys(("b/1.png", "b/2.png"), Exclusion("near-duplicate"))
    opened = replayed(root, *decisions, exclude=listed)
    assert labels(opened)["c/grey.png"] == (to or "c")
    assert labels(opened)["b/1.png"] == (to or "b")
    assert left_out(opened)["b/2.png"] == ("near-duplicate", "exclusion list")
    assert left_out(opened)["c/bad.png"] == ("undecodable", "not an image")
    assert "c/bad.png" not in {path for path, *_ in opened.header.relabelled}


def test_renamed_files_keep_their_decisions_and_lost_ones_are_counted(root: Path) -> None:
    decisions = [decided(root, "a/1.png", "relabel", "c"), decided(root, "b/1.png", "exclude")]
    (root / "a/1.png").rename(root / "a/renamed.png")
    (root / "b/1.png").unlink()
    opened = replayed(root, *decisions)
    assert labels(opened)["a/renamed.png"] == "c"
    assert opened.header.relabelled == (("a/renamed.png", "a", "c"),)
    assert len(opened.header.lost) == opened.summary()["unmatched"] == 1
    assert list(opened.header.lost) == opened.summary()["lost"] == ["b/1.png"]


def test_what_the_machine_said_is_no_decision_of_a_person(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []

    def look(files: Iterable[Path]) -> Iterator[ImageInfo]:
        for file in files:
            looked.append(file)
            yield from scan_here([file])

    monkeypatch.setattr("greyhound.cache.pack.scan", look)
    folder(root, {"loose.png": encode(noise(12, 10, 8))})
    loose = Photograph("loose.png", "", sha256_of(root / "loose.png"))
    decisions = [decided(root, "b/1.png", "exclude"), Decision(loose, "exclude")]
    (root / "b/1.png").unlink()
    opened = replayed(
        root, *(replace(each, reason="dark: it is", by="machine", causes=("dark",)) for each in decisions)
    )
    assert root / "loose.png" not in looked
    assert left_out(opened)["loose.png"] == ("no class", "beside the class folders")
    assert opened.header.lost == ()


def test_a_renamed_class_folder_does_not_bring_an_excluded_image_back(root: Path) -> None:
    decision = decided(root, "c/1.png", "exclude")
    (root / "c").rename(root / "C")
    opened = replayed(root, decision)
    assert left_out(opened)["C/1.png"] == ("excluded by hand", "")
    assert opened.header.lost == ()


def test_a_class_without_a_folder_is_found_before_the_images_are_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(paths: Iterable[Path]) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("greyhound.cache.pack.scan", refuse)
    with pytest.raises(
        PackError, match=r"line 2 of the decisions relabels 'a/1\.png' to 'd', which is no class"
    ):
        replayed(root, decided(root, "a/1.png", "relabel", "d"))


def test_the_command_says_what_was_relabelled_and_what_was_not_found(root: Path) -> None:
    file = root.with_name("decisions.csv")
    rows = [
        decided(root, "a/1.png", "relabel", "b"),
        decided(root, "b/1.png", "exclude"),
        Decision(photograph("a/x.png", THREE), "keep"),
    ]
    cells = [(d.image.sha256, d.image.path, d.image.label, d.choice, d.to) for d in rows]
    file.write_text("\n".join([HEADER, *(",".join(row) for row in cells)]) + "\n")
    with redirect_stdout(io.StringIO()) as said:
        main.pack(root, root.with_suffix(".arrow"), decisions=file)
        main.info(root.with_suffix(".arrow"))
        main.info(root.with_suffix(".arrow"), files=True)
    packed, info, files = said.getvalue().split("left out: ")[1:]
    assert packed.startswith(
        "3 (1 excluded by hand, 1 undecodable, 1 grayscale)\n  b/1.png: excluded by hand\n"
    )
    assert "relabelled by hand: 1\n  a/1.png: a -> b\n" in packed
    assert "relabelled by hand: 1\n" in info
    assert "a/1.png" not in info
    assert "  b/1.png: excluded by hand\n  c/bad.png: undecodable, not an image\n" in files
    assert "\n  a/1.png: a -> b\n" in files
    said_of_lost = "note: 1 decision has no image any more: no file here is the one that it was about"
    assert f"{said_of_lost}\n" in packed
    assert f"{said_of_lost}\n" in files
    assert f"{said_of_lost}; --files names it\n" in info
    assert "\n  a/x.png\n" in packed
    assert "\n  a/x.png\n" in files
    assert "a/x.png" not in info
