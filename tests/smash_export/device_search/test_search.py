"""What a search is, and whether its latency limit can be kept: by networks that are likely the fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from smash_base.errors import GateError
from smash_export.device_search.latency import (
    DOWNHILL,
    DeviceLatency,
    LatencyTable,
    Setting,
    candidate_graph,
    features,
)
from smash_export.device_search.plan import Units, search_parts
from smash_export.device_search.search import FASTEST, SPACE_DEFAULTS, check_latency, configure
from smash_export.progress import Output
from smash_search.data import Split
from smash_search.rank.latency_model import VECTORS
from smash_search.space import limits
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.regular import is_regular, smallest
from smash_search.space.space import SPACES, form_of
from tests.search.small_data import small_digits

SPEC = InputSpec(1, (8, 8))
DRAWS = 60


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SURVEY", DRAWS)


def by_work(architecture: Architecture) -> float:
    """Milliseconds of a device that does a hundred multiply-accumulates in one."""
    return cost_of(architecture, SPEC, 10).macs / 100


def by_nodes(architecture: Architecture) -> float:
    """Milliseconds of a device that takes one for each convolution, ten where its window is one pixel."""
    kernels = [part.kernel for part in architecture.convolutions(SPEC.channels, 10)]
    return sum(10.0 if kernel == (1, 1) else 1.0 for kernel in kernels) + by_work(architecture) / 1e6


def by_activations(architecture: Architecture) -> float:
    """Milliseconds of a device that takes one for a leaky ReLU, ten for any other activation."""
    ops = [op for _, _, op in architecture.ops()]
    named = [conv.activation for op in ops for conv in op.convs if conv is not None]
    named += [op.project for op in ops if op.project is not None]
    return sum(1.0 if name == "leaky_relu" else 10.0 for name in named)


class StandIn(DeviceLatency):
    """A device whose time is a function of the network; knows what it measured."""

    def __init__(self, time: Callable[[Architecture], float]) -> None:
        super().__init__(SPEC, 10, Setting())
        self.time = time
        self.measured: list[Architecture] = []

    def measure(self, architecture: Architecture) -> dict[str, float]:
        self.measured.append(architecture)
        return {"latency_ms": self.time(architecture)}


def test_a_latency_limit_that_only_the_smallest_network_keeps_is_not_refused() -> None:
    dataset, check = small_digits(), partial(check_latency, latency=StandIn(by_work))
    space = configure(dataset).space_for(SPEC)
    least = by_work(smallest(space))
    others = [*known_networks(space), *(space.draw(0, slot) for slot in range(DRAWS))]
    assert least < min(map(by_work, others))
    check(configure(dataset, latency_limits={"tight": least}), dataset)
    with pytest.raises(GateError, match=f"{smallest(space).key}"):
        check(configure(dataset, latency_limits={"tighter": 0.99 * least}), dataset)


@pytest.mark.parametrize(("space", "is_strange"), [("tiny", False), ("edge-tiny", True)])
def test_a_latency_table_that_lacks_what_the_space_has_is_warned_of(
    space: str, is_strange: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = [SPACES["tiny"].draw(0, slot) for slot in range(40)]
    explained = [zip(VECTORS, features(candidate_graph(one, SPEC, 10)), strict=True) for one in networks]
    rows = [
        {"key": one.key, "features": {str(vector): row for vector, row in found}, "latency": {"p50_ms": 0.1}}
        for one, found in zip(networks, explained, strict=True)
    ]
    table = LatencyTable(
        {"input": SPEC.to_json(), "classes": 10, "setting": {"target": "onnxruntime"}, "networks": rows}
    )
    config = configure(small_digits(), space=space, latency_limits={"9ms": 9.0})
    check_latency(config, small_digits(), DeviceLatency(SPEC, 10, Setting(), table=table), Output())
    assert ("which the latency table has not" in capsys.readouterr().err) == is_strange


def test_a_latency_limit_that_only_a_known_network_of_few_nodes_keeps_is_not_refused() -> None:
    dataset, device = small_digits(), StandIn(by_nodes)
    wanted: dict[str, Any] = {"space": "edge", "prior": "paper"}
    space = configure(dataset, **wanted).space_for(SPEC)
    known = sorted(known_networks(space), key=by_nodes)
    others = [*known[1:], smallest(space), *(space.draw(0, slot) for slot in range(DRAWS))]
    least = by_nodes(known[0])
    assert least < min(map(by_nodes, others))
    fewest = sorted([known[0], *others], key=by_work)
    assert fewest.index(known[0]) > 12, "those of fewest multiply-accumulates are slower"
    check_latency(configure(dataset, latency_limits={"tight": least}, **wanted), dataset, device)
    assert device.measured[-1] == known[0], "without any mutation"
    check_latency(configure(dataset, latency_limits={"tighter": least - 1e-6}, **wanted), dataset, device)
    assert by_nodes(device.measured[-1]) < least, "a mutation of it"
    with pytest.raises(GateError) as refused:
        check_latency(configure(dataset, latency_limits={"never": 1.0}, **wanted), dataset, device)
    assert min(device.measured, key=by_nodes).key in str(refused.value)


def test_a_latency_limit_that_only_mutations_of_the_fastest_network_keep_is_not_refused() -> None:
    dataset, device = small_digits(), StandIn(by_activations)
    check_latency(configure(dataset, latency_limits={"tight": 6.0}), dataset, device)
    *slower, last = map(by_activations, device.measured)
    assert last <= 6.0 < min(slower), "it stops at the first within the limit"
    assert min(slower[: FASTEST + 1]) >= 20, "the smallest networks have other activations"
    again = StandIn(by_activations)
    check_latency(configure(dataset, latency_limits={"tight": 6.0}), dataset, again)
    assert again.measured == device.measured


def test_a_refused_latency_limit_names_the_fastest_of_some_fifty_networks() -> None:
    dataset, device = small_digits(), StandIn(by_activations)
    with pytest.raises(GateError, match="for the fastest found") as refused:
        check_latency(configure(dataset, latency_limits={"never": 0.5}), dataset, device)
    least = min(map(by_activations, device.measured))
    assert f"{least:.3g} ms for the fastest found" in str(refused.value)
    assert any(entry.key in str(refused.value) for entry in device.measured if by_activations(entry) == least)
    assert len(set(device.measured)) == len(device.measured) <= 2 * FASTEST + 1 + DOWNHILL
    assert len(device.measured) > DOWNHILL + FASTEST


def test_only_networks_within_the_limits_on_cost_are_measured_to_see_whether_a_latency_limit_is_kept() -> (
    None
):
    """Wide networks are the fast ones of this device, and too large for the limit on parameters."""
    dataset, device = small_digits(), StandIn(lambda entry: 1e6 / cost_of(entry, SPEC, 10).parameters)
    allowed: dict[str, int | None] = {"parameters": 5_000}
    with pytest.raises(GateError, match="fastest found"):
        check_latency(configure(dataset, latency_limits={"1ms": 1.0}, limits=allowed), dataset, device)
    assert device.measured
    assert max(cost_of(entry, SPEC, 10).parameters for entry in device.measured) <= 5_000
    check_latency(configure(dataset, latency_limits={"1ms": 1.0}, limits={"macs": 5}), dataset, device)


def test_of_several_latency_limits_only_the_largest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    dataset, check = small_digits(), partial(check_latency, latency=StandIn(by_work), output=Output())
    fastest = smallest(configure(dataset).space_for(SPEC))
    kept, missed = 2 * by_work(fastest), 0.5 * by_work(fastest)
    check(configure(dataset, latency_limits={"loose": 10 * kept, "kept": kept}), dataset)
    assert "warning" not in capsys.readouterr().err
    check(configure(dataset, latency_limits={"missed": missed, "kept": kept}), dataset)
    assert f"keeps missed: the fastest found, {fastest.key}, takes" in capsys.readouterr().err
    with pytest.raises(GateError, match=f"at most {missed:g} ms"):
        check(configure(dataset, latency_limits={"worse": missed / 2, "missed": missed}), dataset)


@pytest.mark.parametrize("name", list(SPACE_DEFAULTS))
def test_the_strategy_smash_searches_the_space_of_the_paper_as_the_paper_does(name: str) -> None:
    config = configure(small_digits(), space=name, strategy="smash")
    space = config.space_for(SPEC)
    drawn = [space.draw(0, slot) for slot in range(100)]
    assert {block.pool for network in drawn for block in network.blocks} == {2}
    for network in drawn:
        for _, block, op in network.ops():
            assert (form_of(op), op.squeeze) == ("reduced", 0)
            assert op.bottleneck <= len(op.reads) * block.bank_channels
            assert {conv.activation for conv in op.convs if conv is not None} == {"relu"}
    regular = sum(is_regular(block) for network in drawn for block in network.blocks)
    assert regular < 0.2 * len(drawn) * space.blocks, "drawn as the paper's sampler does"
    hypernet, finalists = config.hypernet, config.finalists
    assert (hypernet.norm, hypernet.sharing, hypernet.whiten, hypernet.depths) == (
        "none",
        "block",
        False,
        (8, 10, 4),
    )
    assert (config.known, finalists.known, finalists.rounds, finalists.random) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", list(SPACE_DEFAULTS))
def test_the_hypernet_of_the_strategy_smash_takes_most_of_the_time(name: str) -> None:
    """By images of digits or CIFAR: a step generates filters too, so that its images take longer."""
    images = 1_080 if "tiny" in name else 45_000
    many = Split(np.zeros((images, 8, 8, 1), np.uint8), np.zeros(images, np.int64))
    dataset = replace(small_digits(), train=many, validation=many.take(np.arange(images // 9)))
    config = configure(dataset, space=name, strategy="smash")
    assert config.training.steps >= configure(dataset, space=name).training.steps
    per_step = config.training.batch * config.training.architectures
    scored = config.scoring.stages(images // 9)[0]
    parts = search_parts(config, dataset, Units(0.0, per_step, 0.0, scored / 3, 1 / 3, 1.0, 1.0))
    seconds = {part.label: part.seconds for part in parts}
    assert seconds["HyperNet"] > 0.5 * sum(seconds.values())
