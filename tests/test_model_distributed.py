"""model/distributed.py: two processes on the CPU train, validate, average and solve as one does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import answers, on_ranks
from runs import ONE_THREAD, TINY, Patch, batches_seen, tiny_context, tiny_job, train_on
from torch import nn

from greyhound import begin, eval, session, train
from greyhound.cache.cli import Stopped
from greyhound.cache.store import Pack
from greyhound.model import averaging, checkpoint, distributed
from greyhound.model.network import build, convert_sync_batchnorm
from greyhound.model.precision import fuse_conv_bn
from greyhound.model.run import AVERAGED, BEST, EVALUATION, LAST, METRICS, PROBE, STEPS, SWA, Run, RunError
from greyhound.model.schedule import Phase
from greyhound.model.step import smoothed_cross_entropy, validate, weighted
from greyhound.pipelines.loader import Batch, Loader
from greyhound.recipe import Averaging
from greyhound.trained import Crops, collect, open_trained

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("test_efficientnet", 3, "none")


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, 32, 32, generator=drawn), torch.randint(3, (count,), generator=drawn)


def weights_of(images: int) -> list[torch.Tensor]:
    """Weights of seven images; of another number none."""
    return [torch.linspace(0, 2, 7)] if images == 7 else []


def share(*whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(part[distributed.rank() :: distributed.world_size()] for part in whole)


def joined(work: Callable[..., Any], *arguments: Any, device: torch.device = CPU) -> Any:
    with distributed.process_group(device):
        return work(*arguments)


def each(work: Callable[..., Any], arguments: list[Any]) -> list[Any]:
    return [work(*values) for values in arguments]


Pair: TypeAlias = list[dict[str, Any]]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """What two ranks come to."""
    return on_ranks(2, joined, everything)


def everything() -> dict[str, Any]:
    return {
        "gradients": {images: gradients(images, True) for images in (8, 7, 1)},
        "validated": validated(7),
        "averaged": {images: averaged(images, True) for images in (8, 7)},
        "refreshed": refreshed(),
    }


# --- one process --------------------------------------------------------------------------------------------


def test_one_process_is_rank_0_of_1_and_gets_back_what_it_gave() -> None:
    rows, stop, given = torch.arange(3.0), lambda: 15, network()
    with distributed.process_group(CPU) as restarted:
        assert not restarted
        assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)
        assert distributed.is_main() is True
        assert distributed.gather(rows) is rows
        assert distributed.any_rank(stop) is stop
        assert distributed.broadcast_from_main(lambda: 7) == 7
        distributed.all_reduce_sum([rows])
        distributed.broadcast([rows])
        assert rows.tolist() == [0, 1, 2]
        assert distributed.data_parallel(given) is given


# --- how they meet ------------------------------------------------------------------------------------------


def met(port: int, restarts: int, late: int) -> tuple[bool, int]:
    """Whether they were started again, and the ranks' sum, in a store of torchrun's that outlives them."""
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    rank = int(os.environ["RANK"])
    time.sleep(0.5 * (rank == late))
    with distributed.process_group(CPU) as restarted:
        total = torch.tensor([1 + rank])
        distributed.all_reduce_sum([total])
        return restarted, int(total)


@pytest.mark.parametrize("late", [0, 1])
def test_ranks_meet_again_where_the_dead_have_left_words(late: int) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    for restarts in (0, 1):
        assert on_ranks(2, met, store.port, restarts, late) == [(restarts > 0, 3)] * 2


def test_more_processes_than_gpus_is_one_line(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    expected = "3 processes on a machine where torch finds 2 GPUs; --nproc-per-node 2"
    with pytest.raises(distributed.DistributedError, match=expected):
        joined(distributed.rank, device=torch.device("cuda"))


# --- words between ranks ------------------------------------------------------------------------------------


def words() -> dict[str, Any]:
    rank, layer = distributed.rank(), nn.Linear(2, 1)
    nn.init.constant_(layer.weight, rank)
    distributed.broadcast(layer.parameters())
    total, low = torch.tensor([rank, 1.0]), torch.tensor([float(rank), 9.0 - rank])
    distributed.all_reduce_sum([total])
    distributed.all_reduce_min(low)
    torch.manual_seed(3)
    distributed.seed_per_rank()
    return {
        "gathered": distributed.gather(torch.full((rank, 2), float(rank))).tolist(),
        "from_first": distributed.broadcast_from_main(lambda: f"said by {rank}"),
        "stop": distributed.any_rank(lambda: 15 if rank == 1 else None)(),
        "total": total.tolist(),
        "least": low.tolist(),
        "weight": layer.weight.tolist(),
        "draw": float(torch.rand(1)),
    }


def test_what_the_ranks_tell_each_other() -> None:
    said = on_ranks(3, joined, words)
    assert [words.pop("gathered") for words in said] == [[[1, 1], [2, 2], [2, 2]], [], []]
    draws = [words.pop("draw") for words in said]
    expected = {"from_first": "said by 0", "stop": 15, "total": [3, 3], "least": [0, 7], "weight": [[0, 0]]}
    assert said == [expected] * 3
    torch.manual_seed(3)
    assert draws[0] == float(torch.rand(1))
    assert len(set(draws)) == 3


# --- a step -------------------------------------------------------------------------------------------------


def gradients(images: int, frozen: bool) -> list[torch.Tensor]:
    """Of one step on so many images, over all ranks; and what the step made of the weights."""
    learns = network()
    called = distributed.data_parallel(learns)
    examples = share(*batch(images), *weights_of(images))
    smoothed: dict[str, Any] = {"label_smoothing": 0.1, "freeze_bn": frozen, "max_grad_norm": 0.1}
    train_on(learns, [examples], 0.1, called=called, classes=3, whole=images, **smoothed)
    found = [parameter.grad.clone() for parameter in learns.parameters() if parameter.grad is not None]
    return found + [parameter.detach().clone() for parameter in learns.parameters()]


@pytest.mark.parametrize("images", [8, 7, 1])
def test_a_step_is_one_ranks_step_at_the_global_batch(pair: Pair, images: int) -> None:
    """Also where the shares are uneven, and where a rank has none."""
    expected = gradients(images, frozen=True)
    first, second = (found["gradients"][images] for found in pair)
    assert len(first) == len(expected)
    for one, other, alone in zip(first, second, expected, strict=True):
        assert torch.equal(one, other), "every rank takes the same step"
        torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-6)


def test_synchronised_batchnorm_keeps_the_names_of_the_weights() -> None:
    plain = network()
    converted = convert_sync_batchnorm(deepcopy(plain))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert plain.state_dict().keys() == converted.state_dict().keys()
    pixels, _ = batch(2)
    assert torch.equal(plain.eval()(pixels), converted.eval()(pixels))
    inference = fuse_conv_bn(converted, 32)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in inference.modules())


# --- validation and averaging -------------------------------------------------------------------------------


def validated(images: int) -> dict[str, Any]:
    return validate(network(), [share(*batch(images))], False)  # type: ignore[list-item]


def averaged(images: int, frozen: bool) -> dict[str, torch.Tensor]:
    examples = share(*batch(images), *weights_of(images))
    half = (len(examples[0]) + 1) // 2
    passes = [tuple(part[:half] for part in examples), tuple(part[half:] for part in examples)]
    loss = weighted(smoothed_cross_entropy(0.1, 3))
    result = averaging.average(network(), lambda: passes, images, loss, 0.1, 2, freeze_bn=frozen)
    return result.state_dict()


def test_validation_counts_every_image_once(pair: Pair) -> None:
    expected = validated(7)
    for found in (found["validated"] for found in pair):
        assert found["n"] == 7
        assert found["accuracy"] == expected["accuracy"]
        assert found["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-5)


@pytest.mark.parametrize("images", [8, 7])
def test_averaging_follows_the_same_gradient(pair: Pair, images: int) -> None:
    expected = averaged(images, frozen=True)
    first, second = (found["averaged"][images] for found in pair)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)


def refreshed() -> dict[str, torch.Tensor]:
    """BatchNorm's statistics of 8 images in batches of two."""
    pixels, labels = batch(8)
    batches = [(pixels[k : k + 2], labels[k : k + 2]) for k in range(0, 8, 2)]
    refresh = network()
    averaging.refresh_batchnorm(refresh, batches[distributed.rank() :: distributed.world_size()])
    return refresh.state_dict()


def test_batchnorm_is_refreshed_by_the_batches_of_all_ranks(pair: Pair) -> None:
    expected = refreshed()
    for found in (found["refreshed"] for found in pair):
        for name in (name for name in expected if "running" in name):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-4)


# --- a whole training ---------------------------------------------------------------------------------------

RECIPE = replace(
    TINY,
    freeze_bn=True,
    linear_probe=True,
    probe_grids=(0, 2),
    batch_size=14,
    micro_batch=5,
    views=2,
    phases=(Phase(epochs=2, high=1e-4, low=2e-5, cycles=0.5),),
    averaging=Averaging(steps=2, rate=1e-5),
)
"""All that `fine` asks for, and more. Seven images in two views on two ranks: no share is even."""

Alone: TypeAlias = tuple[Path, list[Any]]
Step: TypeAlias = tuple[int, list[tuple[int, int]]]
"""The epoch; and of each image its row of the pack, and a checksum of its pixels in all views."""


def trained(pack: Path, out: Path, resume: bool = False, steps: int = 10_000) -> list[Step]:
    """Train, until the last rank gets a signal before batch `steps`; each step's epoch, images, pixels."""
    asked, seen = iter(range(1, 10_000)), list[Step]()

    def look(title: str, loader: Loader, batch: Batch) -> None:
        if title.startswith("training"):
            sums = [zlib.crc32(image.numpy().tobytes()) for image in batch.images]
            seen.append((loader.position.epoch, list(zip(batch.ids.tolist(), sums, strict=True))))

    def stop() -> int | None:
        return 15 if next(asked) >= steps and distributed.rank() == distributed.world_size() - 1 else None

    try:
        with batches_seen(look):
            train.train(tiny_job(pack, out, resume, RECIPE), stop)
    except Stopped:
        seen.append((-1, []))
    return seen


@pytest.fixture(scope="module")
def alone(colour_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, trained(colour_pack.path, out)


def woven(shares: list[list[Any]]) -> list[Any]:
    """The steps of all ranks, as one rank would see them."""
    found = []
    for step in zip(*shares, strict=True):
        rows = [(0, 0)] * sum(len(ids) for _, ids in step)
        for rank, (_, ids) in enumerate(step):
            rows[rank :: len(step)] = ids
        found.append((step[0][0], rows))
    return found


def check_same(out: Path, whole: Path) -> None:
    for name in (LAST, BEST, AVERAGED):
        found, expected = (checkpoint.load(folder / name)["network"] for folder in (out, whole))
        for key, value in expected.items():
            near = 5e-3 if key == "classifier.weight" else 2e-4  # solved on features that differ by 0.0003
            torch.testing.assert_close(found[key], value, rtol=2e-3, atol=near, msg=f"{name} {key}")
    for one, other in zip(Run(out).rows(METRICS), Run(whole).rows(METRICS), strict=True):
        assert one["n"] == other["n"] == 6
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-2)
    for one, other in zip(Run(out).rows(STEPS), Run(whole).rows(STEPS), strict=True):
        assert one == pytest.approx(other, rel=1e-2)
    assert (out / SWA).exists()
    found, expected = (Run(folder).read(PROBE) for folder in (out, whole))
    assert found["images"] == expected["images"] == 42
    assert found["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-2)


def test_two_ranks_train_as_one_does(colour_pack: Pack, tmp_path: Path, alone: Alone) -> None:
    whole, expected = alone
    shares = on_ranks(2, trained, colour_pack.path, tmp_path / "run")
    assert woven(shares) == expected, "the same images and pixels, step by step"
    check_same(tmp_path / "run", whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}


def test_one_rank_goes_on_as_two_and_these_as_one(colour_pack: Pack, tmp_path: Path, alone: Alone) -> None:
    """A signal to one of the ranks ends all before the same batch."""
    whole, expected = alone
    out = tmp_path / "run"
    first = trained(colour_pack.path, out, steps=6)
    second = woven(on_ranks(2, trained, colour_pack.path, out, True, 4))
    third = trained(colour_pack.path, out, resume=True)
    assert first[-1] == second[-1] == (-1, [])
    assert len(first) > 1
    assert len(second) > 1
    assert first[:-1] + second[:-1] + third == expected
    check_same(out, whole)


def evaluated(run: Path) -> None:
    eval.evaluate(eval.Job(run=run, crops=3, resources=ONE_THREAD))


def test_two_ranks_evaluate_as_one_does(tiny_run: Path, tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(tiny_run, tmp_path / name)) for name in ("one", "two")]
    evaluated(runs[0])
    on_ranks(2, evaluated, runs[1])
    one, two = (Run(run).read(EVALUATION) for run in runs)
    assert one["n"] == two["n"] == 12
    assert all(one[name] == two[name] for name in ("confusion", "accuracy", "ensemble_accuracy"))


def looked_at(run: Path, pack: Path, count: int) -> Any:
    """Rows and logits of so many images, three crops each, four images a batch of two ranks; on rank 0."""
    opened, of_three = open_trained(Run(run), "auto", ONE_THREAD), Crops(3, 6)
    with distributed.process_group(CPU):
        packed = Pack(pack)
        found = opened.logits(packed, packed.ids("train")[:count], ONE_THREAD, of_three)
        rows, logits = collect(found, count)
    return rows.tolist(), logits.numpy()


def test_a_rank_without_an_image_of_the_last_batch_goes_on(tiny_run: Path, colour_pack: Pack) -> None:
    ((rows, logits), _) = on_ranks(2, looked_at, tiny_run, colour_pack.path, 5)
    assert rows == colour_pack.ids("train")[:5].tolist()
    ((alone, expected),) = on_ranks(1, looked_at, tiny_run, colour_pack.path, 5)
    assert alone == rows
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# --- what goes wrong ----------------------------------------------------------------------------------------


def failed(kind: str) -> str:
    """What this rank says where rank 0, or where rank 1, comes to an end."""
    try:
        with distributed.process_group(CPU):
            if kind == "killed" and distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            distributed.broadcast_from_main(refuse if kind == "refused" else lambda: None)
            distributed.all_reduce_max(1)
    except (RunError, distributed.DistributedError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def refuse() -> int:
    raise RunError("the folder is in use")


def test_a_killed_rank_ends_the_others_in_one_line() -> None:
    first, second = answers(2, failed, "killed")
    assert second == "ended without an answer"
    assert first == (
        "DistributedError: another process of this training has ended, and rank 0 ends with it; its own message says why",
    )


def test_what_rank_0_refuses_is_said_once() -> None:
    first, second = on_ranks(2, failed, "refused")
    assert first == "RunError: the folder is in use"
    assert second == "SystemExit: 2"


def test_what_several_ranks_cannot_do_is_said(colour_pack: Pack, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    job = tiny_job(colour_pack.path, tmp_path / "run")
    with pytest.raises(RunError, match="are for one process; start them without torchrun"):
        begin.on_this_rank(replace(job, dry_run=True), False, CPU)
    job = replace(job, recipe=replace(TINY, sync_batchnorm=True))
    with pytest.raises(RunError, match="--sync-batchnorm needs GPUs"):
        begin.on_this_rank(job, False, CPU)
    begin.on_this_rank(job, False, torch.device("cuda"))
    job = replace(job, recipe=replace(job.recipe, compile=True))
    with pytest.raises(RunError, match="--compile is tried by each process alone"):
        begin.on_this_rank(job, False, torch.device("cuda"))


SCRIPT = """
import os
import sys
from pathlib import Path
from greyhound import train
from greyhound.cache.cli import run
from greyhound.cache.store import PackError
from greyhound.model import distributed

from runs import batches_seen, never, tiny_job

def look(title, loader, batch):
    begun = loader.position.epoch == 1 and loader.position.images
    if distributed.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and begun:
        raise PackError("rank 1 has lost its pack")

def main():
    with batches_seen(look):
        return train.train(tiny_job(Path(sys.argv[1]), Path(sys.argv[2])), never)

run(main)
"""


@pytest.mark.slow
def test_torchrun_starts_a_training_again_there(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Rank 1 fails in the second epoch: all end, are started again, and go on from the end of the first."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["--max-restarts", "1", str(script), str(colour_pack.path), str(tmp_path / "run")]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "error: rank 1 has lost its pack" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert "resumed in epoch 1, after 0 of 42 images" in done.stdout
    assert re.findall(r"epoch: (\d)", done.stdout) == ["0", "1"]
    assert [row["epoch"] for row in Run(tmp_path / "run").rows(METRICS)] == [0, 1]
    assert "averaging: step 1" in done.stdout


def compiling(pack: Path, able: int) -> tuple[str, bool]:
    """What this rank says where so many ranks can compile; and whether the network was compiled."""
    notes: list[str] = []
    vars(session)["note"] = notes.append

    def compile(network: nn.Module, **options: object) -> nn.Module:
        if distributed.rank() >= able:
            raise RuntimeError("no compiler")
        return nn.Sequential(network)

    vars(torch)["compile"] = compile
    with tiny_context(Pack(pack), replace(TINY, compile=True)) as context:
        called = context.compiled()
    return "".join(notes), called is not context.state.network


def test_where_one_rank_cannot_compile_none_does_and_the_first_says_so(colour_pack: Pack) -> None:
    arguments = [(colour_pack.path, able) for able in (2, 1, 0)]
    first, second = on_ranks(2, joined, each, compiling, arguments)
    assert [compiled for _, compiled in first] == [compiled for _, compiled in second] == [True, False, False]
    (both, one, neither), silent = ([note for note, _ in notes] for notes in (first, second))
    assert both == "" and "another process cannot" in one and "(no compiler)" in neither
    assert silent == ["", "", ""]


@pytest.mark.parametrize(
    ("size", "count", "says"),
    [
        (1, 2, "2 processes have batches of 1 images, so some would have none; start fewer"),
        (8, 8, "8 processes have batches of 7 images, so"),  # of 42 images in six batches
        (8, 7, "7 processes have 6 images to validate on, so"),
        (8, 6, ""),
    ],
)
def test_more_processes_than_images_of_a_batch_are_refused(
    colour_pack: Pack, monkeypatch: Patch, size: int, count: int, says: str
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    recipe = replace(TINY, batch_size=size)
    if says:
        with pytest.raises(RunError, match=says):
            begin.refuse_idle(recipe, colour_pack)
    else:
        begin.refuse_idle(recipe, colour_pack)
