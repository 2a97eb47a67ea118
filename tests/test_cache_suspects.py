"""Label issues on their way from review.py into the survey."""

from __future__ import annotations

from dataclasses import replace

from greyhound.cache.survey.labels import Neighbour, Ranked, Review, bring_home, mark
from greyhound.cache.survey.table import Row

NEAR = (Neighbour("a/2.jpg", 0.5),), (Neighbour("b/1.jpg", 0.75),)
FIRST = Ranked("a/1.jpg", "a", "b", 0.01, 0.97, True, *NEAR, saliency="/9j/")
LAST = Ranked("b/1.jpg", "b", "a", 0.9, 0.1, is_issue=False)
REVIEW = Review("a test", 0.5, 3, (FIRST, LAST))


def test_label_issues_are_marked_and_a_twin_stays_the_twin() -> None:
    assert REVIEW.label_issues == [FIRST]
    truncated = Row("a/0.jpg", "a", findings=("truncated",), causes=("truncated",))
    rows = [Row("a/1.jpg", "a"), Row("b/1.jpg", "b"), truncated]
    why = "labelled a (probability 0.010), looks like b (0.970)"
    assert [*mark(rows, REVIEW)] == [replace(rows[0], findings=("label-issue",), reason=why), *rows[1:]]
    twin = Row("a/1.jpg", "a", findings=("near-duplicate",), of="b/9.jpg", reason="is b/9.jpg again")
    (marked,) = mark([twin], REVIEW)
    assert (marked.findings, marked.of) == (("near-duplicate", "label-issue"), "b/9.jpg")
    assert marked.reason == f"is b/9.jpg again; {why}"


def test_label_issues_are_found_by_their_content_wherever_they_lie() -> None:
    one, other, near = "1" * 64, "2" * 64, "3" * 64
    ranking = (
        replace(FIRST, path="train/a/1.jpg", sha256=one, of_label=(Neighbour("train/a/2.jpg", 0.5),)),
        replace(FIRST, path="gone.jpg", sha256="4" * 64),
        replace(FIRST, path="a/same.gif", sha256="5" * 64),
        replace(FIRST, path="b/3.jpg", sha256=other),
        Ranked("train/a/2.jpg", "a", "b", 0.9, 0.1, is_issue=False, sha256=near),
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
