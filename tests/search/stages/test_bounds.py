"""Which networks are measured to predict the latency of others."""

from __future__ import annotations

import pytest

from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks
from smash_search.space.space import space_for
from smash_search.stages.survey import KNOWN_PROBES, table_networks

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
