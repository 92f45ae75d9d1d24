"""Limits on cost, checked before anything is trained or measured, and a survey of a space. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from smash_base.errors import GateError, InvalidInputError
from smash_base.json_values import JsonObject
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import Cost, cost_of
from smash_search.space.known import known_networks
from smash_search.space.regular import smallest
from smash_search.space.space import Space

SURVEY = 500  # draws; a share of 1 % is found with a probability of 99 %


@dataclass(frozen=True)
class CostLimits:
    """The largest cost that a network may have; None for no limit.

    Attributes:
        parameters: numbers stored.
        macs: multiply-accumulates per image.
        memory: bytes of live float32 activations at batch 1.
    """

    parameters: int | None = None
    macs: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise InvalidInputError(f"limit of {name}", expected="1 or more", received=value)

    def to_json(self) -> JsonObject:
        """Plain numbers."""
        return asdict(self)

    def refusal(self, cost: Cost) -> str | None:
        """Which limit a network breaks, in words; None when it keeps all."""
        for name, limit, value in self._pairs(cost):
            if limit is not None and value > limit:
                return f"{value:,} {name}, where at most {limit:,} are allowed"
        return None

    def _pairs(self, cost: Cost) -> list[tuple[str, int | None, int]]:
        return [
            ("parameters", self.parameters, cost.parameters),
            ("MACs", self.macs, cost.macs),
            ("bytes of activations", self.memory, cost.activation_bytes),
        ]

    def check_possible(self, costs: list[Cost], space: str) -> None:
        """Raise GateError where no network of a space, by these costs, keeps the limits."""
        if all(self.refusal(cost) is not None for cost in costs):
            wanted = [f"at most {limit:,} {name}" for name, limit, _ in self._pairs(costs[0]) if limit]
            smallest = [
                f"{min(self._pairs(cost)[index][2] for cost in costs):,} {name}"
                for index, (name, limit, _) in enumerate(self._pairs(costs[0]))
                if limit
            ]
            raise GateError(
                f"no network of {len(costs)} from the space {space} keeps the limits",
                expected=" and ".join(wanted),
                received=f"smallest found: {', '.join(smallest)}",
                hint="Raise the limit or take a smaller space: smash-export space.",
            )


def survey(
    space: Space, input_spec: InputSpec, classes: int, *, samples: int = SURVEY, seed: int = 0
) -> list[Cost]:
    """Exact costs of ``samples`` draws of a space."""
    return [cost_of(space.draw(seed, slot), input_spec, classes) for slot in range(samples)]


def costs_beyond_draws(space: Space, input_spec: InputSpec, classes: int) -> list[Cost]:
    """Exact costs of the smallest network of a space and of the known ones: few draws are as small."""
    return [cost_of(entry, input_spec, classes) for entry in (smallest(space), *known_networks(space))]
