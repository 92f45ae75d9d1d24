"""``space``: what a search space holds and costs, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from smash_base.json_values import JsonObject

if TYPE_CHECKING:
    from smash_search.data import Dataset
    from smash_search.space.architecture import InputSpec
    from smash_search.space.cost import Cost
    from smash_search.space.limits import CostLimits


@dataclass(frozen=True)
class CostRange:
    """Smallest, median and largest cost of the networks that were drawn."""

    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class SpaceSurvey:
    """What :func:`space` found.

    Attributes:
        space: name of the space.
        log10_size: how many networks it holds, as a power of ten.
        input: Input of the networks.
        classes: Number of classes that they tell apart.
        samples: how many were drawn.
        parameters, macs, activation_bytes: what these cost.
        limits: Limits that were asked for.
        costs: Costs of every network drawn.
        others: Costs of the smallest network and of the known ones, which keep limits that no draw does.
    """

    space: str
    log10_size: float
    input: InputSpec
    classes: int
    samples: int
    parameters: CostRange
    macs: CostRange
    activation_bytes: CostRange
    limits: CostLimits
    costs: tuple[Cost, ...]
    others: tuple[Cost, ...]

    @property
    def share_within_limits(self) -> float:
        """Share of the drawn networks that keep the limits."""
        return sum(self.limits.refusal(cost) is None for cost in self.costs) / len(self.costs)

    def to_json(self) -> JsonObject:
        """JSON values; the single costs are left out."""
        shown = {name: value for name, value in vars(self).items() if name not in ("costs", "others")}
        share = self.share_within_limits
        return {**shown, "input": self.input.to_json(), "share_within_limits": share}


def space(
    data: str | Dataset | None = None,
    *,
    space: str | None = None,
    size: int = 28,
    channels: int = 1,
    classes: int = 10,
    samples: int = 500,
    limits: CostLimits | None = None,
) -> SpaceSurvey:
    """Draw networks of a space and count what they cost.

    Args:
        data: images whose size, channels and classes to take, instead of the three below.
        space: name of the space; by image size if None.
        size, channels, classes: Size, channels and classes of square images.
        samples: networks to draw.
        limits: on the cost of a network.
    """
    from smash_search.space.architecture import InputSpec
    from smash_search.space.limits import CostLimits, costs_beyond_draws, survey
    from smash_search.space.space import space_for

    spec = InputSpec(channels, (size, size))
    if data is not None:
        from smash_search.data import load_dataset
        from smash_search.rank.finalists import input_spec_of

        dataset = load_dataset(data) if isinstance(data, str) else data
        spec, classes = input_spec_of(dataset), len(dataset.classes)
    drawn = space_for(spec, space)
    costs = survey(drawn, spec, classes, samples=samples)
    return SpaceSurvey(
        space=drawn.name,
        log10_size=drawn.log10_size(samples=min(samples, 500)),
        input=spec,
        classes=classes,
        samples=len(costs),
        parameters=_range([cost.parameters for cost in costs]),
        macs=_range([cost.macs for cost in costs]),
        activation_bytes=_range([cost.activation_bytes for cost in costs]),
        limits=limits or CostLimits(),
        costs=tuple(costs),
        others=tuple(costs_beyond_draws(drawn, spec, classes)),
    )


def _range(values: list[int]) -> CostRange:
    return CostRange(min(values), int(median(values)), max(values))
