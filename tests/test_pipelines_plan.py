"""pipelines/plan.py: bytes are counted, what fits is what `--tier auto` keeps, and every rate says where it is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Here

from greyhound.cache.store import Pack
from greyhound.cache.validate import available
from greyhound.pipelines import plan
from greyhound.pipelines.augment import Augment, halvings
from greyhound.pipelines.loader import Loader, Resources
from greyhound.pipelines.plan import Costs, Figure, Job, Machine, Route, Stage, footprints, routes, verdict
from greyhound.pipelines.tier import Tier
from greyhound.pipelines.tier import plan as choose

GPU = Machine(cores=16, memory=10**9, gpu_memory=80 * 10**9)
CPU = Machine(cores=2, memory=10**9, gpu_memory=None)


def everything(pack: Pack) -> Any:
    return np.arange(len(pack))


def decoded_bytes(pack: Pack) -> list[int]:
    tier = Tier(pack, np.zeros(len(pack), dtype=bool), halvings(Augment(), pack.sizes))
    return [tier.pixels(row).nbytes for row in range(len(pack))]


def test_every_tier_is_counted_by_the_byte(coded_pack: Pack) -> None:
    found = {each.name: each for each in footprints(coded_pack, Augment(), everything(coded_pack), 1234, GPU)}
    assert found["encoded, mmap"].nbytes == found["encoded, ram"].nbytes == coded_pack.nbytes
    assert found["batches"].nbytes == 1234
    total = sum(decoded_bytes(coded_pack))
    assert found["decoded, host"].nbytes == found["decoded, GPU"].nbytes == total
    assert found["decoded, host"].room == 500_000_000
    assert found["decoded, GPU"].room == 40_000_000_000
    assert {each.fitting for each in found.values()} == {20}


@pytest.mark.parametrize("fitting", [0, 3, 20])
def test_what_fits_is_what_the_tier_auto_keeps(coded_pack: Pack, fitting: int) -> None:
    memory = 2 * sum(decoded_bytes(coded_pack)[:fitting])
    rows = everything(coded_pack)
    found = {each.name: each for each in footprints(coded_pack, Augment(), rows, 0, Machine(2, memory, None))}
    kept = choose("auto", coded_pack, rows, halvings(Augment(), coded_pack.sizes), memory // 2, None).kept
    assert found["decoded, host"].fitting == kept.sum() == fitting
    assert (found["decoded, GPU"].room, found["decoded, GPU"].fitting) == (None, 0)
    assert found["encoded, ram"].fitting == (20 if coded_pack.nbytes <= memory else 0)


def test_without_a_gpu_only_cores_are_in_the_way(coded_pack: Pack) -> None:
    found = routes(coded_pack, Augment(), Costs(encoded=2.0, decoded=0.5), CPU)
    assert [route.name for route in found] == ["threads, encoded", "threads, decoded"]
    assert [route.slowest.rate.value for route in found] == [1000.0, 4000.0]  # 2 cores, 2 and 0.5 core-ms
    assert found[0].slowest.rate.origin == "measured here: 2.00 core-ms, 2 cores"


def test_with_a_gpu_links_and_decoder_are_in_the_way_too(coded_pack: Pack) -> None:
    found = {
        route.name: route for route in routes(coded_pack, Augment(), Costs(encoded=2.0, decoded=0.1), GPU)
    }
    assert found["threads, encoded"].slowest.rate.value == 8000.0
    floats = found["threads, decoded"].slowest  # 160,000 from the cores, and 32 GB/s of 786,432 bytes
    assert (floats.name, round(floats.rate.value)) == ("floats to the GPU", 40690)
    decoder = found["dali on the GPU, encoded"].slowest
    assert decoder.rate.value == 7000
    assert all(
        stage.rate.origin.startswith(("measured here", "literature"))
        for route in found.values()
        for stage in route.stages
    )


@pytest.mark.parametrize(
    ("rate", "start"), [(10.0, "bottleneck: the data"), (1000.0, "bottleneck: the training")]
)
def test_the_bottleneck_is_named(rate: float, start: str) -> None:
    slow = Route("slow", (Stage("a", Figure(1.0, "given")),))
    best = Route("best", (Stage("b", Figure(rate, "given")), Stage("c", Figure(2000.0, "given"))))
    assert verdict(best, [slow, best], Figure(100.0, "given")).startswith(start)
    assert "best, which auto takes" in verdict(best, [slow, best], Figure(100.0, "given"))
    assert "fastest" not in verdict(best, [slow, best], Figure(100.0, "given"))


def test_the_route_that_auto_takes_is_judged_and_a_faster_one_named() -> None:
    taken = Route("dali", (Stage("a", Figure(50.0, "given")),), "dali")
    other = Route("threads, decoded", (Stage("b", Figure(200.0, "given")),), keeps=True)
    said = verdict(taken, [other, taken], Figure(100.0, "given"))
    assert said.startswith(
        "bottleneck: the data. By dali, which auto takes, a lets 50 images a second through"
    )
    assert said.endswith(
        "The fastest route is threads, decoded, 200 images a second: --engine threads --tier auto"
    )


@pytest.mark.parametrize(("kept", "last", "rate"), [(1.0, "decoded", 2000.0), (0.5, "50% decoded", 1000.0)])
def test_what_fits_in_part_is_a_route_in_part(coded_pack: Pack, kept: float, last: str, rate: float) -> None:
    found = routes(coded_pack, Augment(), Costs(encoded=3.0, decoded=1.0), CPU, kept)
    assert [route.name for route in found] == ["threads, encoded", f"threads, {last}"]
    assert found[1].slowest.rate.value == rate  # 2 cores, 1 core-ms each, or half of them 3
    assert len(routes(coded_pack, Augment(), Costs(encoded=3.0, decoded=1.0), CPU, 0.0)) == 1


@pytest.mark.parametrize(
    ("network", "size", "rate", "said"),
    [
        ("efficientnet_b2", 256, 979.0, "RTX 3090; timm's benchmark results"),
        ("tf_efficientnet_lite2", 130, 4484.0, "scaled to 130 px by the pixels"),
    ],
)
def test_the_training_is_of_the_network_and_the_size(network: str, size: int, rate: float, said: str) -> None:
    found = Job(Path("dogs.arrow"), network=network, size=size).rate
    assert (found.value, found.origin.endswith(said)) == (rate, True)


@pytest.mark.parametrize(
    ("gpu", "engine"),
    [
        (("--gpu-memory", "80GB"), "dali"),
        pytest.param((), "threads", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU")),
    ],
)
@pytest.mark.skipif(not available(), reason="DALI is not installed")
def test_the_plan_is_the_loaders(here: Here, coded_pack: Pack, gpu: tuple[str, ...], engine: Any) -> None:
    """Of the same engine; what is free differs from one moment to the next."""
    answer = here(
        "pipelines/plan.py",
        "--pack",
        str(coded_pack.path),
        "--seconds",
        "0.05",
        "--json",
        "--size",
        "64",
        *gpu,
    )
    with Loader(coded_pack, Augment(size=64), coded_pack.ids("train"), Resources(engine, "cpu")) as loader:
        expected = f"engine: {loader.engine}; {loader.plan.why}"
    assert json.loads(answer.out)["auto"].split(" of ")[:2] == expected.split(" of ")[:2]
    assert "as asked" not in expected


def test_core_time_is_measured(coded_pack: Pack) -> None:
    costs = [
        plan.core_ms(coded_pack, Augment(), everything(coded_pack), name, 0.05)
        for name in ("encoded", "decoded")
    ]
    assert all(0 < cost < 100 for cost in costs)


def test_the_command_plans_for_a_machine_that_is_not_here(here: Here, coded_pack: Pack) -> None:
    machine = ("--gpu-memory", "80GB", "--cores", "16", "--memory", "128GB", "--training", "1500")
    answer = here(
        "pipelines/plan.py", "--pack", str(coded_pack.path), "--seconds", "0.05", "--json", *machine
    )
    assert answer.code == 0
    content = json.loads(answer.out)
    assert content["machine"] == {"cores": 16, "memory": 128_000_000_000, "gpu_memory": 80_000_000_000}
    assert content["auto"] == "engine: dali; tier: encoded, engine dali decodes each image anew"
    assert content["training"] == {"value": 1500.0, "origin": "given"}
    assert content["verdict"].startswith("bottleneck: ")
    words = here("pipelines/plan.py", "--pack", str(coded_pack.path), "--seconds", "0.05")
    assert words.code == 0
    assert "no GPU: --gpu-memory" in words.out
    assert "measured here" in words.out
    assert "literature" in words.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu-memory", "much"), "gpu_memory is 'much'; expected a size such as 4GB"),
        (("--cores", "0"), "cores is 0; expected more than 0"),
        (("--seconds", "-1"), "seconds is -1.0; expected more than 0"),
        (
            ("--network", "resnet50"),
            "how fast resnet50 trains is not known here; give its images a second: --training",
        ),
    ],
)
def test_bad_input_is_one_line(here: Here, coded_pack: Pack, arguments: tuple[str, ...], said: str) -> None:
    answer = here("pipelines/plan.py", "--pack", str(coded_pack.path), *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert answer.err.count("\n") == 1
    missing = here("pipelines/plan.py", "--pack", "nowhere.arrow")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
