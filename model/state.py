"""The state of a training: all that going on needs, and the checkpoints that hold it.

Before it: a network and an optimizer. After it: train counts each step here; a resumed training goes on from
last.ckpt; eval and explain read best.ckpt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec

import torch
from torch import nn

from greyhound.model import distributed
from greyhound.model.checkpoint import Writer, rotate, save, to_cpu
from greyhound.model.network import head_grid
from greyhound.model.run import BEST, LAST, METRICS, STEPS, TIMES, Run, RunError, load_network

P = ParamSpec("P")
NEVER: Final = -1
MOST_ROWS: Final = 1_000, 10_000
"""Rows of steps.jsonl: in an epoch, and in all epochs together. The rest are thinned to means."""
FEWEST_ROWS: Final = 50
"""Of an epoch, however many there are."""


@dataclass(kw_only=True)
class Counters:
    """How far a training has come, in numbers."""

    epoch: int = 0
    images: int = 0
    """Images of this epoch that are done; `loss_sum` and `seconds` are theirs."""
    loss_sum: float = 0.0
    seconds: float = 0.0
    elapsed: float = 0.0
    """Seconds of the whole command, over every time that it was resumed."""
    best: float = -math.inf
    """Score of best.ckpt on the validation split, see `score`."""
    top: float = -math.inf
    """The highest score of this training so far. `best` is a file's, which may be newer than last.ckpt."""
    bad_epochs: int = 0
    """Epochs since then: none of them reached a higher score."""
    trained: dict[str, Any] | None = None
    """The row of metrics of an epoch that is trained and not yet validated."""
    diverged: int = NEVER
    """Images of this epoch done before the first batch whose loss or gradient was not finite."""
    curve: list[list[float]] = field(default_factory=list)
    """For steps.jsonl, rows of this epoch: images done before and after, sum of losses, learning rate."""

    def check(self) -> None:
        """Refuse what no training wrote. Raises TypeError."""
        counted = self.epoch, self.images, self.diverged, self.bad_epochs
        timed = self.loss_sum, self.seconds, self.elapsed
        if not all(isinstance(value, int) for value in counted):
            raise TypeError(f"{counted}; expected whole numbers")
        if not all(isinstance(value, int | float) for value in (*timed, self.best, self.top)):
            raise TypeError(f"{timed}; expected numbers")
        if not (0 <= self.epoch < 2**31 and 0 <= self.images < 2**63):
            raise TypeError(
                f"epoch {self.epoch}, image {self.images}; expected a place that a training reaches"
            )
        if self.trained is not None and not self.trained.keys() >= {"epoch", "seconds", "train_loss"}:
            raise TypeError(f"{self.trained}; expected a row of metrics")
        if not all(isinstance(value, int | float) for value in (self.trained or {}).values()):
            raise TypeError(f"{self.trained}; expected numbers")
        for row in self.curve:
            if not (
                len(row) == 4 and all(isinstance(value, int | float) for value in row) and row[0] < row[1]
            ):
                raise TypeError(f"{row}; expected four numbers, the first below the second")

    def judge(self, score: float) -> None:
        """Count an epoch by its validation's score."""
        self.bad_epochs = 0 if score > self.top else self.bad_epochs + 1
        self.top = max(self.top, score)

    def is_over(self, epochs: int, patience: int) -> bool:
        """Whether no epoch is left to train or to validate; see `Recipe.patience`."""
        return self.trained is None and (self.epoch >= epochs or 0 < patience <= self.bad_epochs)

    def restart_epoch(self) -> None:
        """Go back to the start of the epoch under way."""
        self.images, self.loss_sum, self.seconds, self.curve = 0, 0.0, 0.0, []


@dataclass(kw_only=True)
class TrainState(Counters):
    """A training between two steps: with torch's random state, all that going on needs."""

    network: nn.Module
    """Replaced, with its optimizer, where the linear probe chooses a wider head."""
    optimizer: torch.optim.Optimizer
    before: list[torch.Tensor] = field(default_factory=list)
    """The weights as the epoch under way found them."""
    since: float = field(default_factory=time.perf_counter)
    """When `elapsed` was last brought up to date."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def tick(self) -> float:
        """Bring `elapsed` up to date and return it."""
        now = time.perf_counter()
        self.elapsed += now - self.since
        self.since = now
        return self.elapsed

    def begin_epoch(self, images: int, epochs: int) -> None:
        """Start to add up losses on the device, from where the epoch stands.

        images: of the epoch. epochs: in all; of many, each gets fewer rows in steps.jsonl.
        """
        each, total = MOST_ROWS
        self._length, self._rows = images, min(each, max(FEWEST_ROWS, total // epochs))
        if not self.images or not self.before:
            self.before = [parameter.detach().clone() for parameter in self.network.parameters()]
        # Each rank adds its own; `flush` reads the sum of all.
        mine = self.loss_sum if distributed.is_main() else 0.0
        self._losses = torch.tensor(mine, dtype=torch.float64, device=self.device)
        if not self.images:
            self.curve = []
        sums = [row[2] if distributed.is_main() else 0.0 for row in self.curve] + [0.0] * (self._rows + 1)
        self._sums = torch.tensor(sums, dtype=torch.float64, device=self.device)
        self._diverged = torch.tensor(NEVER, device=self.device)
        self._begun, self._seconds = time.perf_counter(), self.seconds

    def record(self, loss: torch.Tensor, count: float) -> None:
        """Take in the mean loss over `count` images of this rank; several views of an image count as one."""
        self._note(loss)
        total = loss * count
        self._losses += total
        self._sums[self._row()].add_(total)

    def say_loss(self) -> str:
        """The epoch's mean loss so far. It waits for the device; nothing of several ranks, which share it."""
        if distributed.world_size() > 1 or not self.images:
            return ""
        return f"train loss {float(self._losses) / self.images:.4f}"

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradient down to this L2 norm, over all weights together; 0: leave it as it is.

        The batch is noted if that norm is not finite: its loss may be, and the next one has nan weights.
        """
        self._note(nn.utils.clip_grad_norm_(self.network.parameters(), max_norm or math.inf))

    def _note(self, value: torch.Tensor) -> None:
        first = ~value.isfinite() & (self._diverged == NEVER)
        self._diverged = torch.where(first, self.images, self._diverged)

    def advance(self, epoch: int, images: int) -> None:
        """Where the training is after a step."""
        row, rate = self._row(), max(group["lr"] for group in self.optimizer.param_groups)
        if row == len(self.curve):
            self.curve.append([self.images, 0, 0.0, 0.0])
        self.curve[row][1:] = [images or self._length, 0.0, rate]  # 0 of the next epoch are all of this
        self.epoch, self.images = epoch, images

    def _row(self) -> int:
        """Of `curve`, where the next step belongs: the last one, or a new one in the epoch's next part."""
        begun = self.curve[-1][0] if self.curve else -1
        same = self.images * self._rows // self._length == begun * self._rows // self._length
        return len(self.curve) - same

    def steps(self) -> list[dict[str, Any]]:
        """The epoch's rows of steps.jsonl, as `flush` read them last; in its middle without the last one."""
        epoch, rows = (self.epoch, self.curve[:-1]) if self.images else (self.epoch - 1, self.curve)
        return [
            {"epoch": epoch, "images": after, "train_loss": total / (after - before), "learning_rate": rate}
            for before, after, total, rate in rows
        ]

    def flush(self) -> None:
        """Read from the device what `record` added up, over all ranks."""
        total, first = torch.cat([self._losses[None], self._sums]), self._diverged.double()
        if distributed.world_size() > 1:
            distributed.all_reduce_sum([total])
            first = torch.where(first == NEVER, math.inf, first)
            distributed.all_reduce_min(first)
            first = torch.where(first.isinf(), NEVER, first)
        diverged, self.loss_sum, *sums = torch.cat([first[None], total]).tolist()
        for row, value in zip(self.curve, sums, strict=False):
            row[2] = value
        self.diverged = int(diverged)
        self.seconds = self._seconds + time.perf_counter() - self._begun

    def changed(self) -> float:
        """Share of the weights, 0..1, that changed since the epoch began; one read from the device."""
        pairs = list(zip(self.network.parameters(), self.before, strict=True))
        differ = torch.stack([(now.detach() != then).sum() for now, then in pairs]).sum()
        return float(differ) / sum(then.numel() for _, then in pairs)

    def content(self) -> dict[str, Any]:
        """What last.ckpt holds."""
        self.tick()
        return {
            "progress": {each.name: getattr(self, each.name) for each in fields(Counters)},
            "network": self.network.state_dict(),
            "grid": head_grid(self.network),
            "momentum": momentum(self),
            "before": self.before if self.images else [],
            "random": torch.get_rng_state(),
            "random_cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }


def score(result: dict[str, Any], by: Literal["accuracy", "loss"]) -> float:
    """What a validation is ranked by, the higher the better: its accuracy, or minus its cross entropy.

    -inf where the cross entropy is nan, whatever the accuracy.
    """
    if math.isnan(result["valid_loss"]):
        return -math.inf
    return float(result["accuracy"] if by == "accuracy" else -result["valid_loss"])


def scored(
    network: nn.Module, result: dict[str, Any], by: Literal["accuracy", "loss"], after: str
) -> dict[str, Any]:
    """A checkpoint's content: the network and its validation. after: what was done last, for the reader."""
    described = {"network": network.state_dict(), "grid": head_grid(network)}
    return described | {"score": score(result, by), "after": after} | result


def momentum(state: TrainState) -> dict[str, torch.Tensor]:
    """SGD's momentum of each weight, by the weight's name: an optimizer's own state goes by position."""
    found = {
        name: state.optimizer.state[weight].get("momentum_buffer")
        for name, weight in state.network.named_parameters()
        if weight in state.optimizer.state
    }
    return {name: buffer for name, buffer in found.items() if buffer is not None}


def restore(run: Run, content: dict[str, Any], state: TrainState) -> None:
    """Put weights, momentum and random state back. Raises RunError where they are another network's."""
    load_network(state.network, content, run.folder / LAST)
    try:
        restore_momentum(content["momentum"], state)
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and content["random_cuda"]:
            torch.cuda.set_rng_state(content["random_cuda"][0])
        counters = Counters(**content["progress"])
        counters.check()
        for name, value in asdict(counters).items():
            setattr(state, name, value)
        state.before = [weights.to(state.device) for weights in content["before"]]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        found = f"{run.folder / LAST} is no checkpoint that a training goes on from"
        raise RunError(f"{found}; put back the one that train wrote") from None


def restore_momentum(found: dict[str, torch.Tensor], state: TrainState) -> None:
    """What `momentum` kept. Raises ValueError where a weight has another shape."""
    for name, weight in state.network.named_parameters():
        if name in found and state.optimizer.defaults["momentum"]:
            if found[name].shape != weight.shape:
                raise ValueError(name)
            state.optimizer.state[weight]["momentum_buffer"] = found[name].to(weight.device)


def drop_later_rows(run: Run, state: TrainState) -> None:
    """Drop the rows of epochs and steps that are trained again."""
    here = state.epoch, state.images
    steps = [row for row in run.rows(STEPS) if (row.get("epoch", 0), row.get("images", 0)) <= here]
    run.write_rows(STEPS, steps)
    done = state.epoch - (state.trained is not None)
    for name in (METRICS, TIMES):
        run.write_rows(name, [row for row in run.rows(name) if row.get("epoch", done) < done])


class CheckpointSaver:
    """Writes last.ckpt and best.ckpt of a run beside its training, in order; rank 0 alone.

    It holds at most one copy of each in host memory. A failed write is raised by the next `wait`.
    """

    def __init__(self, run: Run, minutes: float = 0.0, steps: int = 0, keep: int = 2) -> None:
        """minutes, steps: `should_save` also after so many, 0: not. keep: how many of last.ckpt."""
        self._run, self._minutes, self._interval, self._keep = run, minutes, steps, keep
        self._steps, self._since, self._writer = 0, time.perf_counter(), Writer()

    def should_save(self) -> bool:
        """Whether last.ckpt is due on any rank; called after each step."""
        self._steps += 1
        late = time.perf_counter() - self._since >= 60 * self._minutes > 0
        if not distributed.all_reduce_max(late or self._steps >= self._interval > 0):
            return False
        self._steps, self._since = 0, time.perf_counter()
        return True

    def save_last(self, state: TrainState) -> None:
        """last.ckpt as the training stands now; the one before becomes last.1.ckpt."""
        self.wait()
        if distributed.is_main():
            self._writer(_save_rotated, self._run.folder / LAST, to_cpu(state.content()), self._keep)

    def save_best(self, state: TrainState, content: dict[str, Any]) -> None:
        """best.ckpt, if `scored` content has a higher score than any before."""
        if content["score"] > state.best:
            state.best = content["score"]
            if distributed.is_main():
                self._writer(save, self._run.folder / BEST, to_cpu(content))

    def later(self, work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Do something else in the same order."""
        if distributed.is_main():
            self._writer(work, *arguments, **named)

    def wait(self) -> None:
        """Until all of it is on the disk. Raises what failed, such as CheckpointError."""
        self._writer.wait()

    def __enter__(self) -> CheckpointSaver:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for all; raise what failed, unless another error is on its way."""
        self._writer.__exit__(kind, *rest)


def _save_rotated(path: Path, content: dict[str, Any], keep: int) -> None:
    rotate(path, keep)
    save(path, content)
