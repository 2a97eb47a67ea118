"""A command line from a dataclass: every field a flag, with its docstring, unit and default in `--help`.

Before it: a frozen dataclass whose fields may be dataclasses again. After it: a value of that class. Only
the standard library is imported, so `--help` and a mistyped flag are answered before anything slow is loaded.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from greyhound.cache.errors import UserError

T = TypeVar("T")
WIDTH: Final = 100
"""Columns of `--help`."""
_KINDS: Final = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "text"),
    Path: ("PATH", "a path"),
}
SYNONYMS: Final = {
    "learning-rate": "lr",
    "image-size": "size",
    "img-size": "size",
    "imgsz": "size",
    "model": "network",
    "arch": "network",
    "workers": "threads",
    "num-workers": "threads",
}
"""What other trainers call a flag, and its name here."""


class OptionError(UserError):
    """The command line names something that is not there, or leaves out something that is needed."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag. place: the path to its field, such as `("augment", "size")`. bare: words without a flag."""

    place: tuple[str, ...]
    kind: Any
    default: Any
    help: str
    bare: bool = False

    @property
    def name(self) -> str:
        """As it is typed: `augment.size`."""
        return ".".join(self.place).replace("_", "-")


def options(value: Any, inline: Sequence[str] = (), place: tuple[str, ...] = ()) -> list[Option]:
    """The fields of a dataclass, its values the defaults. inline: nested fields without a prefix."""
    found: list[Option] = []
    hints, docs = get_type_hints(type(value)), field_docs(type(value))
    for each in dataclasses.fields(value):
        held, path = getattr(value, each.name), (*place, each.name)
        if each.metadata.get("hidden"):
            continue
        if dataclasses.is_dataclass(held):
            found += options(held, inline, place if each.name in inline else path)
        elif isinstance(held, tuple) and dataclasses.is_dataclass(get_args(hints[each.name])[0]):
            for index, item in enumerate(held):
                found += options(item, inline, (*path, str(index)))
        else:
            bare = bool(each.metadata.get("bare"))
            found.append(Option(path, hints[each.name], held, docs.get(each.name, ""), bare))
    return found


def without_none(kind: Any) -> Any:
    """X of `X | None`: an option that is named has a value."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    return next(each for each in get_args(kind) if each is not type(None))


def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a class, on one line."""
    (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for pair in itertools.pairwise(tree.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=text):
                found[name] = " ".join(str(ast.literal_eval(text)).split())
    return found


def apply(value: T, given: Mapping[tuple[str, ...], Any], inline: Sequence[str] = ()) -> T:
    """`value` with the fields of `given`, path -> value, replaced. Raises what the dataclass raises."""
    changes: dict[str, Any] = {}
    for each in dataclasses.fields(value):  # type: ignore[arg-type]
        held = getattr(value, each.name)
        below = {path[1:]: new for path, new in given.items() if path[0] == each.name}
        if each.name in inline:
            own = {field.name for field in dataclasses.fields(held)}
            below = {path: new for path, new in given.items() if path[0] in own}
        if () in below:
            changes[each.name] = below[()]
        elif below and isinstance(held, tuple):
            parts = [{p[1:]: new for p, new in below.items() if p[0] == str(i)} for i in range(len(held))]
            changes[each.name] = tuple(apply(item, part) for item, part in zip(held, parts, strict=True))
        elif below:
            changes[each.name] = apply(held, below, inline)
    return dataclasses.replace(value, **changes) if changes else value  # type: ignore[type-var]


class Parser(argparse.ArgumentParser):
    """argparse that complains in one line, and says which flag a mistyped one may have been."""

    def __init__(self, prog: str, description: str) -> None:
        """No abbreviations: a flag that is added later must not change what an old command means."""
        shape = partial(argparse.HelpFormatter, max_help_position=36, width=WIDTH)
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=shape)
        self._words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Raises OptionError. Of a flag with too few words it says which they are."""
        flags, _, expected = message.removeprefix("argument ").partition(": expected ")
        count = 1 if expected == "one argument" else int(expected[:1]) if expected[:1].isdigit() else 0
        for place, word in enumerate(self._words):
            flag, inline, value = word.partition("=")
            after = itertools.takewhile(lambda each: not each.startswith("--"), self._words[place + 1 :])
            found = [value] if inline else [*after]
            if flag in flags.split("/") and len(found) < count:
                said = f"is {' '.join(found)!r}" if found else "has no value"
                values = expected.replace("argument", "value")
                raise OptionError(f"{flag} {said}; expected {values}; see {self.prog} --help")
        raise OptionError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's; it remembers the words for `error`."""
        self._words = args or ()
        return super().parse_known_args(args, namespace)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Only what was named is in the result. Raises OptionError."""
        found, unknown = self.parse_known_intermixed_args(arguments)
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        if flags:
            wanted = flags[0][2:]
            known = [flag[2:] for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(wanted, known, n=2, cutoff=0.6)
            near += [name for name in known if name not in near and name.endswith(f".{wanted}")]
            near = [name for name in known if name == SYNONYMS.get(wanted.replace("_", "-"))] or near
            meant = " or ".join(f"--{name}" for name in near[:3])
            hint = f"did you mean {meant}?" if near else f"see {self.prog} --help"
            raise OptionError(f"there is no flag {flags[0]}; {hint}")
        if unknown:
            self.error(f"{unknown[0]!r} belongs to no flag")
        for name, value in vars(found).items():
            if isinstance(value, list):  # of a flag that takes several words
                setattr(found, name, tuple(value))
        return found

    def add(self, option: Option, group: argparse._ActionsContainer, aliases: Sequence[str] = ()) -> None:
        """Add one option. The default is shown and not filled in, so that `read` tells what was named."""
        flags, kind, default = [*aliases, f"--{option.name}"], without_none(option.kind), option.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        said = "" if default in (None, "", (), Path()) else f" [{shown}]"
        more: dict[str, Any] = {"help": f"{option.help}{said}".replace("%", "%%")}
        if kind is bool:
            more["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is tuple:
            more["nargs"] = "*" if get_args(kind)[1:] == (Ellipsis,) else len(get_args(kind))
            kind = get_args(kind)[0]
        if kind is not bool:
            words = "{" + ",".join(get_args(kind)) + "}" if get_origin(kind) is Literal else _KINDS[kind][0]
            more |= {"type": partial(read_word, kind, flags[0]), "metavar": words}
        if option.bare:
            group.add_argument(
                option.name, default=argparse.SUPPRESS, **more | {"metavar": option.name.upper()}
            )
            return
        group.add_argument(*flags, dest=".".join(option.place), default=argparse.SUPPRESS, **more)


def read_word(kind: Any, flag: str, word: str) -> Any:
    """One word as a `kind`. Raises OptionError, with what was found and what was expected."""
    if get_origin(kind) is Literal:
        if word in get_args(kind):
            return word
        raise OptionError(f"{flag} is {word!r}; expected {' or '.join(get_args(kind))}")
    try:
        return kind(word)
    except ValueError:
        raise OptionError(f"{flag} is {word!r}; expected {_KINDS[kind][1]}") from None


def read_options(kind: type[T], arguments: Sequence[str], prog: str) -> T:
    """The command line of a program whose options are the fields of the dataclass `kind`.

    A nested field's flags carry no prefix. A field without a default must be named. Raises OptionError.
    """
    base = object.__new__(kind)  # not checked until the command line is read
    required, nested = [], []
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if value is dataclasses.MISSING:
            required.append(each.name)
            value = None
        elif dataclasses.is_dataclass(value):
            nested.append(each.name)
        object.__setattr__(base, each.name, value)
    parser = Parser(prog, inspect.getdoc(kind) or "")
    for option in options(base, nested):
        said = f"{option.help} Required." if option.name in required else option.help
        parser.add(dataclasses.replace(option, help=said), parser)
    return apply_named(base, vars(parser.read(arguments)), nested, required, prog)


def apply_named(
    base: T, named: Mapping[str, Any], inline: Sequence[str], required: Sequence[str], prog: str
) -> T:
    """`apply`, to fields by their dotted names. Raises OptionError, also where a number is refused."""
    _check_named(required, named, prog)
    try:
        found = apply(base, {tuple(place.split(".")): value for place, value in named.items()}, inline)
        return dataclasses.replace(found)  # type: ignore[type-var]  # checked, also where nothing is named
    except ValueError as error:
        raise OptionError(str(error)) from None


def read_call(function: Callable[..., T], arguments: Sequence[str], prog: str) -> Callable[[], T]:
    """The call of `function` that a command line asks for: its first parameter positional, the others flags.

    Help is from the docstring: its text, and a line for each parameter under "Args:". A name may end in an
    underscore, where its flag is a word of Python's. Raises OptionError.
    """
    about, _, args = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")
    lines = (line.partition(":") for line in args.splitlines())
    docs = {name.strip(): text.strip() for name, _, text in lines}
    hints, parser = get_type_hints(function), Parser(prog, " ".join(about.split()))
    first, *others = inspect.signature(function).parameters.values()
    read = partial(read_word, hints[first.name], first.name)
    parser.add_argument(first.name, metavar=first.name.upper(), type=read, help=docs[first.name])
    required = [each.name for each in others if each.default is each.empty]
    for each in others:
        default, said = (None, " Required.") if each.name in required else (each.default, "")
        option = Option((each.name.rstrip("_"),), hints[each.name], default, docs[each.name] + said)
        parser.add(option, parser)
    named = vars(parser.read(arguments))
    _check_named(required, named, prog)
    names = {each.name.rstrip("_"): each.name for each in (first, *others)}
    return lambda: function(**{names[name]: value for name, value in named.items()})


def _check_named(required: Sequence[str], named: Mapping[str, Any], prog: str) -> None:
    if missing := [name for name in required if name not in named]:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise OptionError(f"{flags} {'is' if len(missing) == 1 else 'are'} missing; see {prog} --help")


def check_field(name: str, value: object, holds: bool, expected: str) -> None:
    """Refuse the value of a field that does not hold what is expected. Raises ValueError."""
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {expected}")


def check_counts(**counts: int | None) -> None:
    """Refuse a field below 1; None is not given. Raises ValueError."""
    for name, count in counts.items():
        check_field(name, count, count is None or count >= 1, "at least 1")


def check_seed(seed: int) -> None:
    """Refuse a seed that draws nothing. Raises ValueError."""
    check_field("seed", seed, 0 <= seed < 2**63, "0 to 2**63 - 1")


def check_command(name: str, known: Sequence[str]) -> None:
    """Raises OptionError, with what it may have meant, where `name` is none of the known commands."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise OptionError(f"there is no command {name!r}; {hint}")
