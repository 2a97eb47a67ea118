"""The GPU graph, inspected where there is no GPU: what runs where, and that it is the CPU's graph, for every role."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from engines import needs_dali, needs_gpu
from runs import ONE_THREAD, TINY, never, tiny_job

from greyhound import eval as evaluation
from greyhound import explain, train
from greyhound.cache.store import Pack
from greyhound.pipelines import dali, loader, threads
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import EngineConfig, Resources
from greyhound.pipelines.loader import Loader

pytestmark = needs_dali
NO_CACHE: Any = None
"""A graph asks for none."""


def made_up(views: int) -> EngineConfig:
    return EngineConfig(64, 7, views, 8, 3, 2, "gpu", NO_CACHE)


def outputs(config: EngineConfig) -> list[Any]:
    """The outputs of the graph, from which every operator can be reached."""
    pipeline = dali.graph(lambda: None, config)
    pipeline._build_graph()  # runs our function; only `build` needs a driver
    return list(pipeline._graph_outputs)


def reached(nodes: list[Any]) -> dict[str, Any]:
    """Name -> operator instance of everything that these nodes depend on."""
    found: dict[str, Any] = {}
    waiting = list(nodes)
    while waiting:
        operator = waiting.pop().source
        if operator.name not in found:
            found[operator.name] = operator
            waiting.extend(operator.inputs)
    return found


def crossings(nodes: list[Any]) -> set[tuple[str, str, str]]:
    """Every kind of operator whose output is read on another device than it was made on: kind, from, to."""
    read = [*nodes, *(node for operator in reached(nodes).values() for node in operator.inputs)]
    made = {"cpu": "cpu", "gpu": "gpu", "mixed": "gpu"}
    ways = {(kind(node.source), made[placement(node.source)], node.device) for node in read}
    return {(name, there, here) for name, there, here in ways if there != here}


def kind(operator: Any) -> str:
    return re.sub(r"_\d+$", "", operator.name).strip("_")


def placement(operator: Any) -> str:
    return str(operator._op.device)


def specification(operator: Any) -> str:
    """Arguments and inputs of an operator as text, without its placement and its place in our source."""
    lines = [line for line in str(operator.spec).splitlines() if "_origin_stack" not in line]
    return re.sub(r"(?<![A-Za-z])(cpu|gpu|mixed)\b", "DEVICE", "\n".join(lines))


def after(start: str, found: dict[str, Any]) -> list[Any]:
    """Every operator that sees, directly or not, an output of an operator of this kind."""
    return [operator for operator in found.values() if start in map(kind, reached(operator.inputs).values())]


def check(config: EngineConfig) -> None:
    """The graph is the design's: on both devices it is one, and on a GPU pixels stay there once they are there."""
    from nvidia.dali import types

    nodes = outputs(replace(config, device="gpu"))
    found, on_cpu = reached(nodes), reached(outputs(replace(config, device="cpu")))
    assert list(found) == list(on_cpu)
    for name, operator in found.items():
        assert [node.name for node in operator.inputs] == [node.name for node in on_cpu[name].inputs]
        assert specification(operator) == specification(on_cpu[name])
        assert placement(on_cpu[name]) == "cpu"
        assert {node.device for node in on_cpu[name].inputs} <= {"cpu"}

    stack = {"Stack": 1} if config.views > 1 else {}
    each = ("WarpPerspective", "Erase", "CoordTransform")
    many = {"Image": 1, "Resize": 3} | dict.fromkeys(each, config.views)
    counted = Counter(kind(operator) for operator in found.values())
    assert {name: counted[name] for name in many | stack} == many | stack
    assert counted["ExternalSource"] == 7
    numbers = {"Max", "ExternalSource", "Split", "Merge", "ArithmeticGenericOp", "TensorSubscript"}
    assert set(counted) == {*many, *stack, *numbers}

    (decoder,) = [operator for operator in found.values() if kind(operator) == "Image"]
    assert placement(decoder) == "mixed"
    downstream = after("Image", found)
    assert {kind(operator) for operator in downstream} == {"Split", "Merge", *many, *stack} - {"Image"}
    assert {placement(operator) for operator in downstream} == {"gpu"}
    others = [operator for operator in found.values() if operator not in [decoder, *downstream]]
    assert {placement(operator) for operator in others} == {"cpu"}
    assert not {*many, *stack} & {kind(operator) for operator in others}
    assert [node.device for node in nodes] == ["gpu"]
    assert crossings(nodes) == {("TensorSubscript", "cpu", "gpu")}  # the geometry matrices
    takes = {"WarpPerspective": ["gpu", "gpu"], "CoordTransform": ["gpu", "cpu"]}
    says = {
        "Image": ["adjust_orientation: False", "jpeg_fancy_upsampling: True"],
        "Resize": ["antialias: False"],
        "WarpPerspective": ["border_mode: replicate", f"size: [{config.size:.6f}, {config.size:.6f}, ]"],
        "Erase": [f"fill_value: [{config.fill:.6f}, ]"],
        "CoordTransform": [f"dtype: {int(types.FLOAT)}\n"],
    }
    for operator in found.values():
        devices = [node.device for node in operator.inputs]
        assert devices == takes.get(kind(operator), devices), "matrices on the GPU, colours on the CPU"
        for text in says.get(kind(operator), []):
            assert text in specification(operator)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_graph_is_what_the_design_says(views: int) -> None:
    check(made_up(views))


def test_every_roles_graph_is_the_designs(
    run: Path, colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each program asks its engine for, in a run of it on the CPU."""

    def training(views: int) -> int:
        job = tiny_job(colour_pack.path, tmp_path / "none", recipe=replace(TINY, views=views))
        return train.train(replace(job, dry_run=True), never)

    programs: dict[str, Callable[[], object]] = {
        "train": lambda: training(1),
        "K views": lambda: training(4),
        "evaluation": lambda: evaluation.evaluate(evaluation.Job(run=run, crops=3, resources=ONE_THREAD)),
        "saliency": lambda: explain.explain(explain.Job(run=run, count=4, resources=ONE_THREAD)),
    }
    roles: dict[str, list[EngineConfig]] = {}
    for name, program in programs.items():
        engine = mock.Mock(side_effect=threads.stream)
        monkeypatch.setitem(loader.ENGINES, "threads", engine)
        program()
        roles[name] = [call.args[2] for call in engine.call_args_list]
    assert {config.views for config in roles["train"]} == {1}
    assert {config.views for config in roles["K views"]} == {1, 4}  # validation has one
    assert {config.views for config in roles["evaluation"]} == {3}  # validation too, for the temperature
    assert [config.batch_size for config in roles["saliency"]] == [4]
    for config in itertools.chain(*roles.values()):
        check(config)


def test_a_copy_back_would_be_found() -> None:
    nodes = outputs(made_up(views=1))
    assert ("CoordTransform", "gpu", "cpu") not in crossings(nodes)
    assert ("CoordTransform", "gpu", "cpu") in crossings([node.cpu() for node in nodes])


@needs_gpu
def test_a_gpu_makes_the_pixels_of_a_cpu(coded_pack: Pack) -> None:
    augment, ids = Augment(size=48, fill=90), np.arange(len(coded_pack))
    sides = []
    for resources in (Resources("dali", "gpu"), Resources("threads", "cpu")):
        with Loader(coded_pack, augment, ids, resources, epochs=2, views=2) as stream:
            sides.append(list(stream))
    for one, other in zip(*sides, strict=True):
        assert one.images.is_cuda
        assert one.labels.is_cuda
        assert one.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert one.ids.tolist() == other.ids.tolist()
        apart = 255 * (one.images.cpu() - other.images).abs()
        assert apart.mean() < 1
