"""Sweep: search over fields of a recipe; each trial is a run folder of its own.

Before it: train hands itself over, and `--sweep lr=1e-4..1e-2 batch-size=16,32`. After it: sweep.json, a
page, and the run folder of the best trial. What a trial tries depends on the seed, on its number, and on the
trials before it alone: a sweep that is resumed goes on as if nothing had happened.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args, get_origin

import numpy as np

from greyhound.cache.cli import Stop, note
from greyhound.cache.errors import UserError
from greyhound.cache.machine import alone
from greyhound.cache.options import OptionError, apply, options, read_word, without_none
from greyhound.model.network import UnreachableError, WeightsError
from greyhound.model.report import compare, report
from greyhound.model.report.report import Group
from greyhound.model.resume import differences
from greyhound.model.run import EVALUATION, PACK, SWEEP, RecipeError, Run, RunError
from greyhound.recipe import ALIASES, Recipe, TrainOptions, idle, stretched
from greyhound.session import open_device, open_pack, open_versions
from greyhound.several import Train, begun, train_into

PAGE: Final = "sweep.html"
DECADE: Final = 10
"""From this ratio of its ends on, a range is searched on a logarithmic scale."""
DRAWS: Final = 2_000
"""Draws without a new combination; then every one counts as tried."""

Words: TypeAlias = dict[str, str]
"""Fields by the names of their flags, and their values as on a command line."""


class Field(NamedTuple):
    """A field to search over: among words, or in the range between two. values: what the words stand for."""

    name: str
    words: tuple[str, ...]
    values: tuple[Any, ...]
    is_range: bool

    @property
    def log(self) -> bool:
        """Whether a range is searched on a logarithmic scale."""
        low, high = self.values
        return bool(low > 0 and high >= DECADE * low * (1 - 1e-9))  # 0.7 / 0.07 is a little below ten

    @property
    def size(self) -> float:
        """How many values there are."""
        low, high = self.values[0], self.values[-1]
        return len(self.words) if not self.is_range else high - low + 1 if type(low) is int else math.inf

    def __str__(self) -> str:
        """As it is said before the first trial."""
        if not self.is_range:
            return f"{self.name}: {' or '.join(self.words)}"
        return f"{self.name}: {' to '.join(self.words)}, {'logarithmic' if self.log else 'linear'}"

    def value(self, word: str) -> Any:
        """What a word stands for."""
        return type(self.values[0])(word) if self.is_range else self.values[self.words.index(word)]

    def distribution(self) -> Any:
        """As optuna has it: words as they are, a range in numbers."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if not self.is_range:
            return CategoricalDistribution(self.words)
        kind = IntDistribution if type(self.values[0]) is int else FloatDistribution
        return kind(self.values[0], self.values[1], log=self.log)

    def word(self, proposed: Any) -> str:
        """What optuna proposes; of a number four digits, where they are in the range."""
        if type(proposed) is not float:
            return str(proposed)
        short = f"{proposed:.4g}"
        return short if self.values[0] <= float(short) <= self.values[1] else repr(proposed)


def sweep(asked: TrainOptions, stop: Stop, train: Train) -> int:
    """Train trial after trial, and say which is the best. The exit code. Raises UserError, Stopped."""
    alone(asked, "--sweep")
    if find_spec("optuna") is None:
        raise UserError("optuna is not installed, which chooses what to try; pip install optuna")
    fields, by = read_fields(asked.recipe, asked.sweep), asked.recipe.select
    if asked.pack is None:
        raise RunError("a sweep needs a pack: --pack PACK, made by: greyhound pack IMAGES --out PACK")
    pack, run = open_pack(asked.pack, asked.resources), Run(asked.out)
    used = open_versions(*open_device(asked.resources)) | {"optuna": version("optuna")}
    used = {name: found for name, found in used.items() if name not in ("date", "machine")}
    described = {"recipe": asdict(asked.recipe), "fields": asked.sweep, "pack": pack.header.digest}
    with begun(run, SWEEP, described, asked.resume) as content:
        trials, better = content.setdefault("trials", []), "lower" if by == "loss" else "higher"
        others = differences(content.setdefault("versions", used), used)
        if found := "; ".join(f"{name} {was}, and here is {now}" for name, was, now in others):
            note(f"the sweep began with {found}; what its trials reached may differ by that")
        print(*fields, f"{asked.trials} trials, by validation {by}: {better} is better", sep="\n", flush=True)
        for index in range(asked.trials):
            if index == len(trials):
                words = propose(fields, trials, asked.recipe.seed, by == "loss")
                if words is None:
                    print("every combination was tried")
                    break
                trials.append({"parameters": words, "state": "running"})
            if trials[index]["state"] == "running":
                run.write(SWEEP, content)
                print(f"trial {index} of {asked.trials}: {say(trials[index]['parameters'])}", flush=True)
                trials[index] |= attempt(asked, stop, train, fields, index, trials[index]["parameters"])
                run.write(SWEEP, content)
        conclude(run, by, trials)
    return 0


def read_fields(recipe: Recipe, asked: Sequence[str]) -> list[Field]:
    """What `--sweep` names. Raises OptionError, also where no trial could have one of the values."""
    kinds = {each.name: each.kind for each in options(recipe)} | {"lr": float, "epochs": int}
    found: list[Field] = []
    for text in asked:
        name, _, after = text.partition("=")
        name = next((field for field, flags in ALIASES.items() if f"--{name}" in flags), name)
        if name not in kinds or name in [field.name for field in found]:
            near = [each for each in kinds if each.endswith(f".{name}")] + get_close_matches(name, kinds)
            hint = f"did you mean {near[0]}?" if near else "see greyhound train --help"
            raise OptionError(f"--sweep {text}: expected a field of the recipe, once; {hint}")
        if name == "select":
            raise OptionError(f"--sweep {text}: it ranks the trials, so all have the same; expected --select")
        if not after:
            shown = f"{name}=LOW..HIGH or {name}=A,B, such as --sweep lr=1e-4..1e-2"
            raise OptionError(f"--sweep {text} names no values; expected {shown}")
        low, dots, high = after.partition("..")
        words = (low, high) if dots else tuple(after.split(","))
        values = tuple(read_value(kinds[name], name, word) for word in words)
        if dots and not (kinds[name] in (int, float) and -math.inf < values[0] < values[1] < math.inf):
            shown = f"expected finite numbers LOW..HIGH, LOW below HIGH, or {name}=A,B"
            raise OptionError(f"--sweep {text} is no range; {shown}")
        if len(set(values)) < max(len(values), 2):
            raise OptionError(f"--sweep {text}: expected two different values or more, or LOW..HIGH")
        found.append(Field(name, words, values, bool(dots)))
    for each in found:
        for word in each.words:
            try:
                changed(recipe, [each], {each.name: word})
            except OptionError:
                if not any(allowed(recipe, found, words) for words in combinations(found, each.name, word)):
                    raise
    refuse_idle(recipe, found)
    return found


def refuse_idle(recipe: Recipe, fields: Sequence[Field]) -> None:
    """Refuse a field that changes no validation, whatever the others are. Raises OptionError."""
    for field in fields:
        why = ""
        for words in combinations(fields, field.name, field.words[0]):
            if allowed(recipe, fields, words):
                why = idle(changed(recipe, fields, words), crops=False).get(field.name, "")
                if not why:
                    break
        if why:
            raise OptionError(f"--sweep {field.name}: every trial would validate the same; {why}")


def combinations(fields: Sequence[Field], name: str, word: str) -> Iterator[Words]:
    """Those of all fields in which one has this word; of a range its ends."""
    names = [field.name for field in fields]
    for words in itertools.product(*((word,) if field.name == name else field.words for field in fields)):
        yield dict(zip(names, words, strict=True))


def allowed(recipe: Recipe, fields: Sequence[Field], words: Words) -> bool:
    """Whether there is such a recipe."""
    try:
        changed(recipe, fields, words)
    except OptionError:
        return False
    return True


def read_value(kind: Any, name: str, word: str) -> Any:
    """A word as a value of a field. Raises OptionError."""
    kind = without_none(kind)
    if kind is bool:
        return read_word(Literal["on", "off"], name, word) == "on"
    if get_origin(kind) is not tuple:
        return read_word(kind, name, word)
    first, *more = get_args(kind)
    found = tuple(read_word(first, name, each) for each in word.split())
    if Ellipsis not in more and len(found) != 1 + len(more):
        raise OptionError(f"{name} is {word!r}; expected {1 + len(more)} values, apart by a space")
    return found


def changed(recipe: Recipe, fields: Sequence[Field], words: Words) -> Recipe:
    """The recipe of a trial. Raises OptionError."""
    values = {field.name: field.value(words[field.name]) for field in fields}
    epochs, lr = values.pop("epochs", None), values.pop("lr", None)
    places = {tuple(name.replace("-", "_").split(".")): value for name, value in values.items()}
    try:
        return stretched(apply(recipe, places), epochs, lr)
    except ValueError as error:
        raise OptionError(f"--sweep {say(words)}: {error}") from None


def propose(fields: Sequence[Field], trials: Sequence[Any], seed: int, minimise: bool) -> Words | None:
    """What the next trial tries: new, by TPE (Bergstra et al. 2011). None where nothing new is left."""
    from optuna import create_study, logging, samplers
    from optuna.trial import TrialState, create_trial

    logging.set_verbosity(logging.WARNING)
    tried = [trial["parameters"] for trial in trials]
    if len(tried) >= math.prod(field.size for field in fields):
        return None
    space = {field.name: field.distribution() for field in fields}
    for again in range(DRAWS):
        draw = int(np.random.SeedSequence([seed, len(trials), again]).generate_state(1)[0])
        sampler = samplers.RandomSampler(seed=draw) if again else samplers.TPESampler(seed=draw)
        study = create_study(direction="minimize" if minimise else "maximize", sampler=sampler)
        for trial in trials if not again else ():
            # Failed ones too, as pruned: TPE takes those for the worst, and stays away from what diverges.
            state = TrialState.COMPLETE if "value" in trial else TrialState.PRUNED
            words = trial["parameters"]
            told = {f.name: f.value(words[f.name]) if f.is_range else words[f.name] for f in fields}
            study.add_trial(
                create_trial(state=state, params=told, distributions=space, value=trial.get("value"))
            )
        proposed = study.ask(fixed_distributions=space).params
        words = {field.name: field.word(proposed[field.name]) for field in fields}
        if words not in tried:
            return words
    return None


def attempt(
    asked: TrainOptions, stop: Stop, train: Train, fields: Sequence[Field], index: int, words: Words
) -> dict[str, Any]:
    """Train one trial: what its kept weights reached, or why it failed. Raises UserError, Stopped."""
    try:
        recipe = changed(asked.recipe, fields, words)
        kept = train_into(train, asked, stop, asked.out / name_of(index), recipe)
    except UnreachableError:
        raise
    except (RecipeError, WeightsError, OptionError) as error:
        note(f"trial {index} failed: {error}")
        return {"state": "failed", "why": str(error)}
    key = "valid_loss" if recipe.select == "loss" else "accuracy"
    return {"state": "done", "value": kept.result[key], "after": kept.after}


def name_of(index: int) -> str:
    """A trial's folder."""
    return f"trial-{index:03}"


def say(words: Words) -> str:
    """What a trial tries."""
    return ", ".join(f"{name} = {word}" for name, word in words.items())


def conclude(run: Run, by: str, trials: Sequence[Any]) -> None:
    """The page, the best trial first, and what comes next. Raises RunError where all failed."""
    done = [(trial["value"], index) for index, trial in enumerate(trials) if "value" in trial]
    done.sort(key=lambda each: (each[0] if by == "loss" else -each[0], each[1]))
    failed = [index for index, trial in enumerate(trials) if "why" in trial]
    if not done:
        raise RunError(f"all {len(failed)} trials failed; the last one: {trials[failed[-1]]['why']}")
    value, best = done[0]
    folder, words = run.folder / name_of(best), trials[best]["parameters"]
    result = f"Best of {len(done)} trials: {folder.name}, {say(words)}; validation {by} {value:.4g}."
    level = sum(other == value for other, _ in done) - 1
    result += f" {level} other{'s' * (level > 1)} reached the same." if level else ""
    result += f" {len(failed)} failed." if failed else ""
    chosen = "The validation split chose it, which flatters: test it on other images, and it alone."
    order = [index for _, index in done]
    rows = tuple(
        (
            name_of(index),
            *trial["parameters"].values(),
            f"{trial['value']:.4f}" if "value" in trial else "failed",
        )
        for index in (*order, *failed)
        for trial in [trials[index]]
    )
    table = Group("Trials, the best first", columns=("trial", *words, f"validation {by}"), rows=rows)
    runs = [run.folder / name_of(index) for index in order]
    command = report.command(folder, EVALUATION, pack=report.read(folder, PACK))
    page = compare.build(runs, run.folder / PAGE, "A sweep", [result, chosen, command, table]).path
    print(f"{result}\n{chosen}\npage: {page}\nnext: {command}")
