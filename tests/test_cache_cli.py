"""cache/cli.py: what was written comes back, and what was edited is one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from greyhound.cache.cli import ValueFormatError, from_json
from greyhound.recipe import FAST, RECIPES, Recipe


@pytest.mark.parametrize("recipe", [recipe for recipe, _ in RECIPES.values()], ids=[*RECIPES])
def test_every_recipe_survives_its_file(recipe: Recipe) -> None:
    assert from_json(Recipe, json.loads(json.dumps(asdict(recipe))), "r") == recipe


def fast() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(asdict(FAST)))
    return content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(batch_size="32"), r"r: batch_size: .* integer, not '32'"),
        (lambda c: c["augment"].update(size=None), r"r: augment\.size: .*, not None"),
        (lambda c: c.update(batch_size=0), "r: batch_size is 0; expected 1 or more"),
        (lambda c: c.pop("linear_probe"), "r: no linear_probe; expected one"),
        (lambda c: c.update(sovle_head=True), "r: unknown sovle_head; expected none"),
        (lambda c: c["phases"][0].pop("warm_up"), r"r: no phases\.0\.warm_up; expected one"),
        (lambda c: c.update(phases={}), "r: phases: .*not {}"),
    ],
)
def test_an_edit_that_changes_the_meaning_is_one_line(change: Any, says: str) -> None:
    content = fast()
    change(content)
    with pytest.raises(ValueFormatError, match=says) as refusal:
        from_json(Recipe, content, "r")
    assert "\n" not in str(refusal.value)


def test_what_is_no_object_at_all() -> None:
    with pytest.raises(ValueFormatError, match=r"^r: .*not 7$"):
        from_json(Recipe, 7, "r")
