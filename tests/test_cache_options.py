"""cache/options.py and cli.py: a dataclass as a command line and as JSON, and one line for whatever is wrong with either."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from runs import Capture

from greyhound.cache.cli import ValueFormatError, from_json, read_or_exit
from greyhound.cache.options import WIDTH, OptionError, Parser, apply, field_docs, options
from greyhound.recipe import FINE, RECIPES, Recipe


@dataclass(frozen=True)
class Inner:
    """What lies inside."""

    size: int = 4
    """Side, in
    pixels, of 100 % of the image."""
    scale: tuple[float, float] = (1.0, 2.0)

    def __post_init__(self) -> None:
        """Refuse a size below 1."""
        if self.size < 1:
            raise ValueError(f"size is {self.size}; expected 1 or more")


@dataclass(frozen=True)
class Outer:
    """A value with everything that a field can be."""

    out: Path | None = None
    """Where to write."""
    kind: Literal["soft", "hard"] = "soft"
    rate: float = 0.5
    inner: Inner = field(default_factory=Inner)
    steps: tuple[Inner, ...] = (Inner(), Inner(size=9))
    flat: Inner = field(default_factory=lambda: Inner(size=7))
    words: tuple[Literal["a", "b"], ...] = ()
    to_write: bool = True
    secret: str = field(default="s", metadata={"hidden": True})


def parser() -> Parser:
    found = Parser("tool", "What it does.")
    for option in options(Outer(), ["inner"]):
        found.add(option, found, ["--alias"] if option.name == "rate" else [])
    return found


def read(*words: str) -> Outer:
    given = vars(parser().read(words))
    return apply(Outer(), {tuple(name.split(".")): value for name, value in given.items()}, ["inner"])


def test_every_field_is_a_flag_but_for_a_hidden_one() -> None:
    steps = [f"steps.{k}.{name}" for k in (0, 1) for name in ("size", "scale")]
    nested = ["size", "scale", *steps, "flat.size", "flat.scale"]
    found = [option.name for option in options(Outer(), ["inner"])]
    assert found == ["out", "kind", "rate", *nested, "words", "to-write"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Outer()),
        (("--out", "a/b"), Outer(out=Path("a/b"))),
        (("--kind=hard", "--rate", "1e-3"), Outer(kind="hard", rate=0.001)),
        (("--alias", "-2"), Outer(rate=-2.0)),
        (("--size", "3"), Outer(inner=Inner(size=3))),
        (("--scale", "3", "4.5", "--size", "2"), Outer(inner=Inner(2, (3.0, 4.5)))),
        (("--steps.1.size", "8"), Outer(steps=(Inner(), Inner(size=8)))),
        (("--flat.scale", "0", "1"), Outer(flat=Inner(7, (0.0, 1.0)))),
        (("--words", "b", "a"), Outer(words=("b", "a"))),
        (("--words",), Outer()),
        (("--no-to-write",), Outer(to_write=False)),
        (("--size", "3", "--size", "5"), Outer(inner=Inner(size=5))),
    ],
)
def test_what_is_named_replaces_the_default(words: tuple[str, ...], expected: Outer) -> None:
    assert read(*words) == expected


def test_only_what_was_named_is_read_and_what_the_dataclass_refuses_is_its_own_error() -> None:
    """So a value that is the default too can be told from one that nobody named."""
    assert vars(parser().read(["--rate", "0.5"])) == {"rate": 0.5}
    with pytest.raises(ValueError, match="size is 0; expected 1 or more"):
        read("--steps.0.size", "0")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--sizes 1", "there is no flag --sizes; did you mean --size?"),
        ("--siz 1", "there is no flag --siz; did you mean --size?"),
        ("--colour 1", "there is no flag --colour; see tool --help"),
        ("--outt=1", "there is no flag --outt; did you mean --out?"),
        ("stray", "'stray' belongs to no flag; see tool --help"),
        ("--rate x", "--alias is 'x'; expected a number"),
        ("--size 1.5", "--size is '1.5'; expected a whole number"),
        ("--kind firm", "--kind is 'firm'; expected soft or hard"),
        ("--words a c", "--words is 'c'; expected a or b"),
        ("--scale 1 2 --scale 1", "--scale is '1'; expected 2 values; see tool --help"),
        ("--scale=1", "--scale is '1'; expected 2 values; see tool --help"),
        ("--scale", "--scale has no value; expected 2 values; see tool --help"),
        ("--scale 1", "--scale is '1'; expected 2 values; see tool --help"),
        ("--size", "--size has no value; expected one value; see tool --help"),
    ],
)
def test_a_slip_is_one_line(words: str, says: str) -> None:
    with pytest.raises(OptionError) as refused:
        parser().read(words.split())
    assert str(refused.value) == says


def test_the_docstring_below_a_field_is_its_help() -> None:
    assert field_docs(Inner) == {"size": "Side, in pixels, of 100 % of the image."}
    text = parser().format_help()
    assert "Side, in pixels, of 100 % of the image. [4]" in text
    assert "--kind {soft,hard}  [soft]" in " ".join(text.split()).replace("[soft]", " [soft]")
    assert "--rate FLOAT" in text and "[1.0 2.0]" in text
    assert "Where to write.\n" in text, "no default is shown where there is none"
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_an_error_leaves_with_code_2(capsys: Capture) -> None:
    def fail() -> None:
        raise OptionError("two\n lines")

    assert read_or_exit(argparse.Namespace) == argparse.Namespace()
    with pytest.raises(SystemExit) as leaving:
        read_or_exit(fail)
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"


@pytest.mark.parametrize("recipe", [recipe for recipe, _ in RECIPES.values()], ids=[*RECIPES])
def test_every_recipe_survives_its_file(recipe: Recipe) -> None:
    assert from_json(Recipe, json.loads(json.dumps(asdict(recipe))), "r") == recipe


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(batch_size="32"), r"r: batch_size: .* integer, not '32'"),
        (lambda c: c["augment"].update(size=None), r"r: augment\.size: .*, not None"),
        (lambda c: c.update(batch_size=0), "r: --batch-size is 0; expected 1 or more"),
        (lambda c: c.pop("linear_probe"), "r: no linear_probe; expected one"),
        (lambda c: c.update(sovle_head=True), "r: unknown sovle_head; expected none"),
        (lambda c: c["phases"][0].pop("warm_up"), r"r: no phases\.0\.warm_up; expected one"),
        (lambda c: c.update(phases={}), "r: phases: .*not {}"),
    ],
)
def test_an_edit_that_changes_the_meaning_is_one_line(change: Any, says: str) -> None:
    content = json.loads(json.dumps(asdict(FINE)))
    change(content)
    with pytest.raises(ValueFormatError, match=says) as refusal:
        from_json(Recipe, content, "r")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueFormatError, match=r"^r: .*not 7$"):
        from_json(Recipe, 7, "r")
