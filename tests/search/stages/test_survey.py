"""Which networks are measured to predict the latency of others: of all sizes, then near the limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from smash_search.rank.latency_model import parts_of
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.prior import Prior
from smash_search.space.space import space_for
from smash_search.stages.survey import (
    KNOWN_PROBES,
    PROBES,
    Survey,
    table_networks,
)

SPEC = InputSpec(3, (32, 32))


def parts(architecture: Architecture) -> set[str]:
    """Activations of a network, and whether it has squeeze-excitation."""
    found = {conv.activation for _, _, op in architecture.ops() for conv in op.convs if conv is not None}
    return found | {"squeezed" for _, _, op in architecture.ops() if op.squeeze}


@pytest.mark.parametrize("name", ["edge", "edge-tiny"])
def test_a_latency_table_is_of_draws_and_of_known_networks_with_relu6_and_squeeze_excitation(
    name: str,
) -> None:
    space = space_for(SPEC, name)
    measured, known = table_networks(space, SPEC, 10, 1, 150), set(known_networks(space))
    assert measured[:-KNOWN_PROBES] == [space.draw(1, slot) for slot in range(150 - KNOWN_PROBES)]
    beside = measured[-KNOWN_PROBES:]
    assert set(beside) <= known
    assert sum("relu6" in parts(entry) for entry in beside) >= 2
    assert sum("squeezed" in parts(entry) for entry in beside) >= 2
    largest = max(cost_of(space.draw(1, slot), SPEC, 10).macs for slot in range(150))
    assert all(cost_of(entry, SPEC, 10).macs <= largest for entry in beside)


@pytest.mark.parametrize(("name", "count"), [("tiny", 10), ("edge-tiny", 40), ("small", 40)])
def test_a_latency_table_is_of_as_many_networks_as_asked_for(name: str, count: int) -> None:
    space = space_for(SPEC, name)
    measured, known = table_networks(space, SPEC, 10, 1, count), set(known_networks(space))
    assert len(set(measured)) == len(measured) == count
    assert sum(entry in known for entry in measured) == count // 5


SPACE = space_for(SPEC, "edge")
KNOWN = known_networks(SPACE)


def milliseconds(architecture: Architecture) -> float:
    """Time on a made-up device with vectors of 16 channels, which no sum of parts tells to the last tenth."""
    parts = parts_of(architecture, SPEC, 10, 16)
    work = sum(value for name, value in parts.items() if name.endswith("MACs"))
    nodes = sum(value for name, value in parts.items() if name.endswith("nodes"))
    return (0.02 + 4e-9 * work + 2e-3 * nodes) * (1 + int(architecture.key, 16) % 97 / 970)


def survey(limits: list[float], accepts: Callable[[Architecture], bool] = lambda entry: True) -> Survey:
    """One of seed 0."""
    return Survey(SPACE, 0, limits, lambda entry: cost_of(entry, SPEC, 10), KNOWN, accepts)


@pytest.mark.parametrize("limits", [[0.1], [0.2], [0.1, 0.4]])
def test_half_of_what_is_measured_is_near_the_limits_by_what_the_other_half_told(
    limits: list[float],
) -> None:
    surveyed = survey(limits)
    measured, model = surveyed.measured(milliseconds, SPEC, 10)
    assert len(set(measured)) == len(measured) == surveyed.most == PROBES + KNOWN_PROBES
    half = len(measured) // 2

    def distances(networks: list[Architecture]) -> list[float]:
        return [min(abs(np.log(milliseconds(entry) / limit)) for limit in limits) for entry in networks]

    assert np.median(distances(measured[half:])) < np.median(distances(measured[:half])) / 2
    for limit in limits:
        assert sum(0.8 < milliseconds(entry) / limit < 1.25 for entry in measured) >= 8
    known = set(KNOWN)
    assert sum(entry in known for entry in measured[half:]) >= KNOWN_PROBES // 2
    assert model is not None
    assert model.vector == 16
    assert survey(limits).measured(milliseconds, SPEC, 10) == (measured, model)


def test_what_a_narrow_prior_draws_again_is_measured_once_and_takes_no_place_near_the_limit() -> None:
    single = {"forms": "plain", "wirings": "residual", "patterns": "1000", "kernels": 3, "depths": 1}
    shares = {name: ((option, 1.0),) for name, option in single.items()}
    prior = Prior(**shares, stems=(1.0, 0.0, 0.0), odd=0.0, squeeze=0.0, repeat=1.0, same=1.0)  # type: ignore[arg-type]
    spec, own = InputSpec(1, (8, 8)), space_for(InputSpec(1, (8, 8)), "edge-tiny", prior)
    known = known_networks(own)
    surveyed = Survey(own, 0, [0.1], lambda entry: cost_of(entry, spec, 10), known, lambda entry: True)
    measured, _ = surveyed.measured(milliseconds, spec, 10)
    assert len(set(measured)) == len(measured)
    assert sum(entry in set(known) for entry in measured) >= KNOWN_PROBES


def test_networks_beyond_the_limits_on_cost_are_not_measured() -> None:
    def accepts(entry: Architecture) -> bool:
        return cost_of(entry, SPEC, 10).macs <= 5_000_000

    measured, _ = survey([0.1], accepts).measured(milliseconds, SPEC, 10)
    assert len(measured) == PROBES + KNOWN_PROBES
    assert all(map(accepts, measured))


def test_too_few_networks_tell_nothing() -> None:
    few = set(KNOWN[:5])
    measured, model = survey([0.1], few.__contains__).measured(milliseconds, SPEC, 10)
    assert set(measured) == few
    assert model is None


def test_the_reference_is_a_rather_small_draw_that_keeps_the_limits_on_cost() -> None:
    def macs(entry: Architecture) -> int:
        return cost_of(entry, SPEC, 10).macs

    draws = sorted(macs(SPACE.draw(1, slot)) for slot in range(100))
    reference = survey([0.1]).reference
    assert reference is not None
    assert draws[5] < macs(reference) < draws[40]
    small = survey([0.1], lambda entry: macs(entry) <= draws[4]).reference
    assert small is not None
    assert macs(small) <= draws[4]
    assert survey([0.1], lambda entry: False).reference is None
