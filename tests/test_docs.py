"""The documentation: its links lead somewhere, its commands and flags exist, its Python runs."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from pictures import encode, folder, noise, scan_here
from runs import SMALL, Patch, never

from greyhound import __main__ as command
from greyhound import recipe, train
from greyhound.cache.store import Pack
from greyhound.model.run import LOCK

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = ("log.md",)
"""Pages that also have names of long ago."""
TODAY = [page for page in PAGES if page.name not in HISTORY]
OF_TORCHRUN = {"--nproc-per-node", "--nnodes", "--max-restarts"}
OF_CURL = {"--data-binary"}
OF_TRACKERS = {"--logdir", "--backend-store-uri", "--project"}
OF_TESTS = {"--minutes", "--images", "--shards", "--ours", "--seconds", "--pack", "--device"}
"""Flags of programs in tests/."""
WIDTH = 110


def each(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=[page.name for page in pages])


def anchors(page: Path) -> set[str]:
    """What `#...` can name: every heading, as GitHub writes it."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code(page: Path) -> str:
    """Blocks of code and spans of code, a line each."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *spans])


def commands(page: Path) -> Iterator[tuple[str, set[str]]]:
    """Every `greyhound COMMAND` and the flags behind it, the numbers in their names as N."""
    for line in code(page).splitlines():
        for name, rest in re.findall(r"\bgreyhound (\w+)([^#&]*)", line):
            yield name, flags(rest)


def flags(text: str) -> set[str]:
    return {re.sub(r"\.\d+\.", ".N.", flag) for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)}


@cache
def flags_of(name: str) -> set[str]:
    """What `greyhound NAME --help` lists."""
    arguments = ["greyhound", name, *(["paper"] if name == "train" else []), "--help"]
    with (
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stdout(io.StringIO()) as said,
        warnings.catch_warnings(),
        pytest.raises(SystemExit) as leaving,
    ):
        warnings.simplefilter("ignore")  # of runpy: we imported the program before
        command.main()
    assert not leaving.value.code
    return flags(said.getvalue())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@each(PAGES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if not target.startswith("http"):
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), anchor


@each(TODAY)
def test_every_command_and_flag_exists(page: Path) -> None:
    for name, named in commands(page):
        assert name in command.PROGRAMS, name
        assert not named - flags_of(name) - {"--help"}, f"greyhound {name}"
    known = set().union(*map(flags_of, command.PROGRAMS)) | OF_TORCHRUN | OF_CURL | OF_TRACKERS | OF_TESTS
    assert not flags(code(page)) - known


@each(TODAY)
def test_every_test_and_target_that_is_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for file in re.findall(r"\btests/\w+\.py\b", page.read_text()):
        assert (ROOT / file).exists(), file
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"(?:test_|\.\.\._)[\w.]+(?=`)", page.read_text()):
        pattern = re.escape(name).replace(re.escape("..."), r"\w*")
        found = re.search(rf"^def {pattern}\(", tests, re.MULTILINE)
        assert found or name.endswith(".py") or name == "test_efficientnet", name  # timm's smallest network
    for target in re.findall(r"^(?:make) ([\w-]+)", code(page), re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_the_comparison_names_files_of_ours_that_exist() -> None:
    text = (ROOT / "docs" / "compare.md").read_text()
    named = re.findall(r"`((?:(?:cache|model|pipelines)/[\w/]+|\w+)\.py)`", text)
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_flag_of_train_is_documented() -> None:
    said = flags(code(ROOT / "docs" / "training.md")) | {"--help", "--augment.size"}
    assert not {flag for flag in flags_of("train") if not flag.startswith("--no-")} - said


@pytest.mark.parametrize(("name", "column"), [("paper", 2), ("fine", 3)])
def test_the_tables_of_training_have_the_defaults(name: str, column: int) -> None:
    """Where a cell of the recipe's column is one number or one word, it is the recipe's."""
    checked, preset = 0, recipe.RECIPES[name][0]
    for line in (ROOT / "docs" / "training.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or not (flag := re.fullmatch(r"`--([a-z_-]+)`", cells[0])):
            continue
        said, value = cells[column].strip("`"), getattr(preset, flag[1].replace("-", "_"), None)
        if said and value is not None:
            expected = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
            expected = " ".join(map(str, value)) if isinstance(value, tuple) else expected
            assert said == str(expected) or float(said) == expected, (flag[1], said, expected)
            checked += 1
    assert checked > 12


@pytest.mark.parametrize("name", recipe.RECIPES)
def test_the_quickstart_lists_the_files_of_every_recipe(name: str, tmp_path: Path, colour_pack: Pack) -> None:
    table = (ROOT / "docs" / "quickstart.md").read_text().partition("| made by |")[2]
    listed: set[str] = set()
    for files, by in re.findall(r"^\| (`.+?`) \| .+ \| (.+) \|$", table, re.MULTILINE):
        if by == "every training" or f"`{name}`" in by:
            listed |= set(re.findall(r"`(.+?)`", files))
    words = [name, *SMALL, "--pack", str(colour_pack.path), "--out", str(tmp_path / "run"), "--threads", "1"]
    words += ["--epochs", "4"] if name == "paper" else []
    assert train.train(recipe.read_options(words), never) == 0
    assert {file.name for file in (tmp_path / "run").iterdir()} - {LOCK} == listed


@each(TODAY)
def test_prose_fits_the_page(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    assert not [line for line in prose if len(line) > WIDTH and not line.startswith("|")]


def test_the_python_page_runs(tmp_path: Path, monkeypatch: Patch) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    names = {f"{name}/{n}.jpg": 100 * k + n for k, name in enumerate("ab") for n in range(20)}
    pictures = {name: encode(noise(96, 80, seed), "JPEG") for name, seed in names.items()}
    folder(tmp_path / "photographs", pictures)
    monkeypatch.chdir(tmp_path)
    with mock.patch("greyhound.cache.pack.scan", scan_here):
        exec(compile("\n".join(blocks), "docs/python.md", "exec"), {"__name__": "page"})
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
