"""Label suspects on their way from review.py into the survey."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from greyhound.cache import suspects
from greyhound.cache.store import PackError
from greyhound.cache.survey.labels import Neighbour, Ranked, Review, bring_home, mark, read_review
from greyhound.cache.survey.table import Row
from greyhound.cache.suspects import check, review_labels

FIRST = Ranked(
    path="a/1.jpg",
    label="a",
    likelier="b",
    probability=0.01,
    likelier_probability=0.97,
    suspect=True,
    of_label=(Neighbour("a/2.jpg", 0.5),),
    of_likelier=(Neighbour("b/1.jpg", 0.75),),
    saliency="/9j/",
)
LAST = Ranked("b/1.jpg", "b", "a", 0.9, 0.1, suspect=False)
REVIEW = Review("a test", 0.5, 3, (FIRST, LAST))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(asdict(REVIEW)))
    assert read_review(tmp_path / "labels.json") == REVIEW
    assert REVIEW.suspects == [FIRST]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"judge": 3}'])
def test_what_is_no_review_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(
        PackError, match=r"labels.json is no review of labels \(.*\); make it again: greyhound review"
    ):
        read_review(tmp_path / "labels.json")
    with pytest.raises(PackError, match=r"none\.json cannot be read"):
        read_review(tmp_path / "none.json")


def test_suspects_are_marked_and_a_twin_stays_the_twin() -> None:
    rows = [
        Row("a/1.jpg", "a"),
        Row("b/1.jpg", "b"),
        Row("a/0.jpg", "a", findings=("truncated",), verdict="exclude"),
    ]
    twin = Row("a/1.jpg", "a", findings=("near-duplicate",), of="b/9.jpg", reason="is b/9.jpg again")
    why = "labelled a (probability 0.010), looks like b (0.970)"
    assert [*mark(rows, REVIEW)] == [
        Row("a/1.jpg", "a", findings=("label-issue",), reason=why),
        rows[1],
        rows[2],
    ]
    (marked,) = mark([twin], REVIEW)
    assert (marked.findings, marked.of) == (("near-duplicate", "label-issue"), "b/9.jpg")
    assert marked.reason == f"is b/9.jpg again; {why}"


def test_suspects_are_found_by_their_content_wherever_they_lie() -> None:
    one, other, near = "1" * 64, "2" * 64, "3" * 64
    ranking = (
        replace(FIRST, path="train/a/1.jpg", sha256=one, of_label=(Neighbour("train/a/2.jpg", 0.5),)),
        replace(FIRST, path="gone.jpg", sha256="4" * 64),
        replace(FIRST, path="a/same.gif", sha256="5" * 64),
        replace(FIRST, path="b/3.jpg", sha256=other),
        Ranked("train/a/2.jpg", "a", "b", 0.9, 0.1, suspect=False, sha256=near),
    )
    rows = [
        Row("a/same.gif", "a", sha256="6" * 64, findings=("transcoded",)),
        Row("b/0.jpg", "b", sha256=one),
        Row("b/3.jpg", "b", sha256=near),  # of that path, and another picture
        Row("x/1.jpg", "a", sha256=one),
        Row("z/9.jpg", "z", sha256=other),
    ]
    found = bring_home(replace(REVIEW, ranking=ranking), rows)
    assert [image.path for image in found.ranking] == ["x/1.jpg", "a/same.gif", "z/9.jpg"]
    assert found.ranking[0].of_label == (Neighbour("b/3.jpg", 0.5),)
    assert found.ranking[0].of_likelier == ()  # no such picture there


def test_a_run_that_is_not_there_is_said_before_anything_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"--run .*nowhere is no folder; expected a run folder"):
        check(tmp_path / "nowhere")


def test_the_review_runs_as_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "review.py"
    program.write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[-1]).write_text(' '.join(sys.argv[1:-2]))\n"
    )
    monkeypatch.setattr(suspects, "PROGRAM", program)
    out = tmp_path / "labels.json"
    assert review_labels(out, Path("images.arrow")) == 0
    assert out.read_text() == "--pack images.arrow"
    assert review_labels(out, Path("images.arrow"), Path("runs/dogs")) == 0
    assert out.read_text() == "--run runs/dogs"
    program.write_text("raise SystemExit(2)")
    assert review_labels(out, Path("images.arrow")) == 2


def test_the_program_is_where_it_is_looked_for() -> None:
    assert suspects.PROGRAM.is_file()
