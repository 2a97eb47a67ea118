"""The GPU graph, inspected where there is no GPU: what runs where, and that it is the CPU's graph, for every role."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

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
from greyhound.pipelines.engine import Device, EngineConfig, Resources
from greyhound.pipelines.loader import Loader

pytestmark = needs_dali


NO_CACHE: Any = None
"""A graph asks for none."""


def operators(device: Device, views: int = 2) -> dict[str, Any]:
    """Name -> operator instance of everything that the graph's output depends on."""
    return reached(outputs(EngineConfig(64, 7, views, 8, 3, 2, device, NO_CACHE)))


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
    return {
        (kind(node.source), made[placement(node.source)], node.device)
        for node in read
        if made[placement(node.source)] != node.device
    }


def kind(operator: Any) -> str:
    return re.sub(r"_\d+$", "", operator.name).strip("_")


def placement(operator: Any) -> str:
    return str(operator._op.device)


def specification(operator: Any) -> str:
    """Arguments and inputs of an operator as text, without its placement and its place in our source."""
    lines = [line for line in str(operator.spec).splitlines() if "_origin_stack" not in line]
    return re.sub(r"(?<![A-Za-z])(cpu|gpu|mixed)\b", "DEVICE", "\n".join(lines))


def after(start: str, found: dict[str, Any]) -> Iterator[Any]:
    """Every operator that sees, directly or not, an output of an operator of this kind."""
    seen = {name for name, operator in found.items() if kind(operator) == start}
    while True:
        new = [
            operator
            for name, operator in found.items()
            if name not in seen and any(node.source.name in seen for node in operator.inputs)
        ]
        if not new:
            return
        yield from new
        seen |= {operator.name for operator in new}


def count(found: dict[str, Any]) -> dict[str, int]:
    kinds = [kind(operator) for operator in found.values()]
    return {name: kinds.count(name) for name in sorted(set(kinds))}


def test_the_graph_is_what_the_design_says() -> None:
    found = count(operators("gpu"))
    image_steps = {
        name: found[name] for name in ("Image", "Resize", "WarpPerspective", "CoordTransform", "Stack")
    }
    assert image_steps == {"Image": 1, "Resize": 3, "WarpPerspective": 2, "CoordTransform": 2, "Stack": 1}
    assert found["ExternalSource"] == 5
    assert set(found) - set(image_steps) == {
        "ExternalSource",
        "Split",
        "Merge",
        "ArithmeticGenericOp",
        "TensorSubscript",
    }


def test_one_view_needs_no_stack() -> None:
    found = count(operators("gpu", views=1))
    assert "Stack" not in found
    assert found["WarpPerspective"] == found["CoordTransform"] == 1


def test_decoding_is_mixed_everything_after_it_on_the_gpu_and_only_numbers_on_the_cpu() -> None:
    found = operators("gpu")
    (decoder,) = [operator for operator in found.values() if kind(operator) == "Image"]
    assert placement(decoder) == "mixed"
    downstream = {operator.name: operator for operator in after("Image", found)}
    images = {"Resize", "WarpPerspective", "CoordTransform", "Stack"}
    assert {kind(operator) for operator in downstream.values()} == {"Split", "Merge", *images}
    assert {placement(operator) for operator in downstream.values()} == {"gpu"}
    others = [op for name, op in found.items() if name not in downstream and op is not decoder]
    assert {placement(operator) for operator in others} == {"cpu"}
    assert not images & {kind(operator) for operator in others}
    takes = {"WarpPerspective": ["gpu", "gpu"], "CoordTransform": ["gpu", "cpu"]}
    for operator in found.values():
        devices = [node.device for node in operator.inputs]
        assert devices == takes.get(kind(operator), devices), "matrices on the GPU, colours on the CPU"
    texts = {kind(operator): specification(operator) for operator in found.values()}
    assert "adjust_orientation: False" in texts["Image"]
    assert "jpeg_fancy_upsampling: True" in texts["Image"]
    assert "fill_value: [7.0" in texts["WarpPerspective"]
    assert "antialias: False" in texts["Resize"]


def one_graph(on_gpu: dict[str, Any], on_cpu: dict[str, Any]) -> None:
    """Both graphs are one, operator for operator, and nothing runs on the GPU of the CPU's."""
    assert list(on_gpu) == list(on_cpu)
    for name, operator in on_gpu.items():
        assert [node.name for node in operator.inputs] == [node.name for node in on_cpu[name].inputs]
        assert specification(operator) == specification(on_cpu[name])
        assert placement(on_cpu[name]) == "cpu"
        assert {node.device for node in on_cpu[name].inputs} <= {"cpu"}


@pytest.mark.parametrize("views", [1, 2, 3])
def test_both_graphs_are_one_operator_for_operator(views: int) -> None:
    one_graph(operators("gpu", views), operators("cpu", views))


# --- every role, as the programs themselves ask for it --------------------------------------------------------------

ROLES: Final = ("train", "K views", "evaluation", "saliency")
IMAGE_STEPS: Final = {"Image": "mixed", "Resize": "gpu", "WarpPerspective": "gpu", "CoordTransform": "gpu"}
"""The kinds of operator that touch pixels, for one view, and where each runs on a machine with a GPU."""
STEPS: Final = {"Resize": 3, "WarpPerspective": 1, "CoordTransform": 1, "Image": 1}


@pytest.fixture(scope="module")
def roles(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, colour_pack: Pack
) -> dict[str, list[EngineConfig]]:
    """What each program asks its engine for, in a run of it on the CPU."""
    folder = tmp_path_factory.mktemp("roles")
    run = Path(shutil.copytree(tiny_run, folder / "run"))

    def training(views: int) -> int:
        job = tiny_job(colour_pack.path, folder / "none", recipe=replace(TINY, views=views))
        return train.train(replace(job, resources=ONE_THREAD, dry_run=True), never)

    programs: dict[str, Callable[[], object]] = {
        "train": lambda: training(1),
        "K views": lambda: training(4),
        "evaluation": lambda: evaluation.evaluate(evaluation.Job(run=run, crops=3, resources=ONE_THREAD)),
        "saliency": lambda: explain.explain(explain.Job(run=run, count=4, resources=ONE_THREAD)),
    }
    found: dict[str, list[EngineConfig]] = {name: [] for name in programs}
    with pytest.MonkeyPatch.context() as patch:
        for name, program in programs.items():

            def engine(pack: Pack, specs: Any, config: EngineConfig, name: str = name) -> Any:
                found[name].append(config)
                return threads.stream(pack, specs, config)

            patch.setitem(loader.ENGINES, "threads", engine)
            program()
    return found


def test_the_roles_are_those_that_they_are_named_after(roles: dict[str, list[EngineConfig]]) -> None:
    assert tuple(roles) == ROLES
    assert {config.views for config in roles["train"]} == {1}
    assert {config.views for config in roles["K views"]} == {1, 4}  # validation has one
    assert [config.views for config in roles["evaluation"]] == [3]
    assert [config.batch_size for config in roles["saliency"]] == [4]


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_graphs_differ_in_placement_alone_and_its_pixels_stay_on_the_gpu(
    roles: dict[str, list[EngineConfig]], role: str
) -> None:
    from nvidia.dali import types

    for config in roles[role]:
        nodes = outputs(replace(config, device="gpu"))
        found = reached(nodes)
        one_graph(found, reached(outputs(replace(config, device="cpu"))))
        steps = IMAGE_STEPS | ({"Stack": "gpu"} if config.views > 1 else {})
        assert {kind(op): placement(op) for op in found.values() if kind(op) in steps} == steps
        downstream = [op for op in after("Image", found) if kind(op) != "Image"]
        assert {placement(op) for op in downstream} == {"gpu"}
        assert [node.device for node in nodes] == ["gpu"]
        assert crossings(nodes) == {("TensorSubscript", "cpu", "gpu")}  # the geometry matrices
        many = {"WarpPerspective": config.views, "CoordTransform": config.views}
        many |= {"Stack": 1} if config.views > 1 else {}
        counted = count(found)
        assert {name: counted.get(name) for name in STEPS | many} == STEPS | many
        assert counted["ExternalSource"] == 5
        for operator in found.values():
            text = specification(operator)
            if kind(operator) == "WarpPerspective":
                assert f"fill_value: [{config.fill:.6f}, ]" in text
                assert f"size: [{config.size:.6f}, {config.size:.6f}, ]" in text
            if kind(operator) == "Image":
                assert "adjust_orientation: False" in text
                assert "jpeg_fancy_upsampling: True" in text
            if kind(operator) == "CoordTransform":
                assert f"dtype: {int(types.FLOAT)}\n" in text


def test_a_copy_back_would_be_found() -> None:
    nodes = outputs(EngineConfig(64, 7, 1, 8, 3, 2, "gpu", NO_CACHE))
    assert ("CoordTransform", "gpu", "cpu") not in crossings(nodes)
    assert ("CoordTransform", "gpu", "cpu") in crossings([node.cpu() for node in nodes])


@needs_gpu
def test_a_gpu_makes_the_pixels_of_a_cpu(coded_pack: Pack) -> None:
    augment, ids = Augment(size=48, fill=90), np.arange(len(coded_pack))
    with Loader(coded_pack, augment, ids, Resources("dali", "gpu"), epochs=2, views=2) as stream:
        on_gpu = list(stream)
    with Loader(coded_pack, augment, ids, Resources("threads", "cpu"), epochs=2, views=2) as stream:
        on_cpu = list(stream)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.images.is_cuda
        assert one.labels.is_cuda
        assert one.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert one.ids.tolist() == other.ids.tolist()
        apart = 255 * (one.images.cpu() - other.images).abs()
        assert apart.mean() < 1
