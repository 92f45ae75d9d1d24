"""Latency that is predicted from measured networks."""

from __future__ import annotations

import numpy as np
import pytest

from smash_base.errors import InvalidInputError
from smash_search.rank.latency_model import fit_latency, parts_of
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for

SPEC = InputSpec(3, (32, 32))
SPACE = space_for(SPEC, "edge")


def device(slot: int, vector: int = 1) -> float:
    """Milliseconds of a made-up device: a price per node, per MAC and per number written."""
    parts = parts_of(SPACE.draw(1, slot), SPEC, 10, vector)
    return (
        0.01
        + 0.002 * sum(value for name, value in parts.items() if name.endswith("nodes"))
        + 1e-8 * sum(value for name, value in parts.items() if name.endswith("MACs"))
        + 5e-8 * parts["added"]
    )


def test_networks_that_were_not_measured_are_predicted_within_a_few_percent() -> None:
    known, unseen = range(80), range(80, 160)
    model = fit_latency([SPACE.draw(1, slot) for slot in known], [device(s) for s in known], SPEC, 10)
    errors = [model.predict(SPACE.draw(1, slot)) / device(slot) - 1 for slot in unseen]
    assert np.median(np.abs(errors)) < 0.05
    assert model.error < 0.1
    assert min(model.prices.values()) >= 0


@pytest.mark.parametrize("vector", [8, 16])
def test_the_vectors_of_a_device_are_those_that_explain_its_times(vector: int) -> None:
    slots = range(80)
    model = fit_latency([SPACE.draw(1, slot) for slot in slots], [device(s, vector) for s in slots], SPEC, 10)
    assert model.vector == (4 if vector == 8 else vector), "channels of the space fill vectors of 4 and of 8"
    assert model.error < 0.02


def test_the_parts_hold_every_multiply_accumulate() -> None:
    for slot in range(30):
        architecture = SPACE.draw(2, slot)
        parts = parts_of(architecture, SPEC, 10)
        macs = sum(value for name, value in parts.items() if name.endswith("MACs"))
        assert macs == cost_of(architecture, SPEC, 10).macs


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="too few"):
        fit_latency([SPACE.draw(0, 0)], [1.0], SPEC, 10)
