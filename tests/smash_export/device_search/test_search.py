"""Whether a latency limit can be kept is said before a search, by networks that are likely the fastest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from smash_base.errors import GateError
from smash_export.device_search.latency import DeviceLatency, Setting
from smash_export.device_search.search import check_latency, configure
from smash_export.progress import Output
from smash_search.space import limits
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.regular import smallest
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


class StandIn(DeviceLatency):
    """A device whose time is a function of the network."""

    def __init__(self, time: Callable[[Architecture], float]) -> None:
        super().__init__(SPEC, 10, Setting())
        self.time = time

    def measure(self, architecture: Architecture) -> dict[str, float]:
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


def test_a_latency_limit_that_only_a_known_network_of_few_nodes_keeps_is_not_refused() -> None:
    dataset, check = small_digits(), partial(check_latency, latency=StandIn(by_nodes))
    wanted = {"space": "edge", "prior": "paper"}
    space = configure(dataset, **wanted).space_for(SPEC)
    known = sorted(known_networks(space), key=by_nodes)
    others = [*known[1:], smallest(space), *(space.draw(0, slot) for slot in range(DRAWS))]
    least = by_nodes(known[0])
    assert least < min(map(by_nodes, others))
    fewest = sorted([known[0], *others], key=by_work)
    assert fewest.index(known[0]) > 12, "those of fewest multiply-accumulates are slower"
    check(configure(dataset, latency_limits={"tight": least}, **wanted), dataset)
    with pytest.raises(GateError, match=known[0].key):
        check(configure(dataset, latency_limits={"tighter": least - 1e-6}, **wanted), dataset)


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
