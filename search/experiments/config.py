"""Sizes of the experiments: everything that decides their result, as plain data. No torch.

The size "edge" is that of today's searches: the space ``edge`` and its prior, networks of one band of cost,
the recipe of finalists. The size "cpu" keeps the space wide, above all in what a network may lack (blocks of
2 to 32 channels and more), for networks that are all alike cannot be ranked. It keeps the work small: a stem
of stride 4, square kernels, few ops. The paper's size is the paper's: section 4 of arXiv 1708.05344, one GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank.scoring import ScoringConfig
from smash_search.space.architecture import InputSpec
from smash_search.space.space import Space, space_for
from smash_search.train.hypernet import TrainingConfig
from smash_search.train.network import Recipe


@dataclass(frozen=True)
class ExperimentConfig:
    """What an experiment does.

    Attributes:
        size: name, for people.
        space: name of a space; None for the one that suits the images.
        changes: fields of the space that are replaced.
        macs: least and most multiply-accumulates of every network, those included that the HyperNet trains
            on; None for all of the space.
        train_images, validation_images, test_images: taken from each split; 0 for all.
        hypernet, training, scoring, recipe: Settings of the stages. Networks are compared after ``recipe``.
        networks: random architectures that are scored and trained.
        second_seeds: Number of networks that are trained with a second seed, for the ceiling.
        statistics_networks: random architectures that running BatchNorm statistics are averaged over.
        hypernets: smaller HyperNets of ``capacity``, by name.
        corrupted: architectures of ``encoding``.
        starts, steps, mutants, batch, rate: Settings of ``gradient``: starting points, steps from each,
            mutations that are ranked in a step, those that are scored, and how much a mutation changes.
        picks: best architectures of ``transfer``, and as many random ones beside them.
        transfer_to: data sets of ``transfer``.
        seed: Random seed of everything that is drawn.
    """

    size: str
    space: str | None
    changes: dict[str, Any]
    train_images: int
    validation_images: int
    test_images: int
    hypernet: HyperNetConfig
    training: TrainingConfig
    scoring: ScoringConfig
    recipe: Recipe
    networks: int
    second_seeds: int
    statistics_networks: int
    hypernets: dict[str, HyperNetConfig]
    corrupted: int
    starts: int
    steps: int
    mutants: int
    batch: int
    rate: float
    picks: int
    transfer_to: tuple[str, ...]
    macs: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "transfer_to", tuple(self.transfer_to))
        if self.macs is not None:
            object.__setattr__(self, "macs", tuple(self.macs))
            if not 0 <= self.macs[0] < self.macs[1]:
                raise InvalidInputError(
                    "experiment field 'macs'", expected="least and most", received=self.macs
                )
        for name in ("networks", "corrupted", "starts", "steps", "mutants", "batch", "picks"):
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"experiment field {name!r}", expected="1 or more", received=getattr(self, name)
                )
        if not 0 <= self.second_seeds <= self.networks:
            raise InvalidInputError(
                "second_seeds", expected=f"0 to {self.networks}", received=self.second_seeds
            )

    def to_json(self) -> JsonObject:
        """Plain lists and numbers, as config.json holds them."""
        plain = asdict(self)
        plain["scoring"] = self.scoring.to_json()
        plain["transfer_to"] = list(self.transfer_to)
        if self.macs is None:
            del plain["macs"]  # as in folders of sizes that never had a band
        else:
            plain["macs"] = list(self.macs)
        for entry in (plain["hypernet"], *plain["hypernets"].values()):
            entry["depths"] = list(entry["depths"])
        return plain

    def space_of(self, input_spec: InputSpec) -> Space:
        """The space for images of this size."""
        return replace(space_for(input_spec, self.space), **self.changes)


_CPU = ExperimentConfig(
    size="cpu",
    space="small",
    changes={
        "unit": 2,
        "stem_strides": (4,),
        "stem_kernel": 7,
        "widths": ((1, 2, 4, 8, 16), (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 24)),
        "max_banks": 48,
        "max_ops": 4,
        "reference_reads": (16, 24, 40),
        "budget": (0.03, 1.0),
        "per_axis": False,
    },
    train_images=6000,
    validation_images=6000,
    test_images=10_000,
    hypernet=HyperNetConfig(depths=(3, 3), growth=8),
    training=TrainingConfig(
        steps=6000,
        batch=32,
        architectures=1,
        learning_rate=5e-3,
        hypernet_rate=0.2,
        clip=1.0,
        average=0.99,
    ),
    scoring=ScoringConfig(statistics_images=500, images=(0,), batch=250),
    recipe=Recipe(epochs=6, batch=128, warmup=0.1),
    networks=64,
    second_seeds=32,
    statistics_networks=20,
    hypernets={"a tenth": HyperNetConfig(depths=(1,), growth=3)},
    corrupted=24,
    starts=6,
    steps=2,
    mutants=32,
    batch=2,
    rate=0.05,
    picks=4,
    transfer_to=("digits",),
)

_EDGE = replace(
    _CPU,
    size="edge",
    space="edge",
    changes={},
    macs=(9e6, 14e6),  # a factor of 1.25 about that of MLPerf Tiny's ResNet-8 at the same latency
    train_images=12_000,
    validation_images=5000,
    hypernet=HyperNetConfig(depths=(4, 5, 2), centred=True, whiten=True),
    training=TrainingConfig(steps=1500, batch=64, architectures=1, learning_rate=0.03, hypernet_rate=0.07),
    scoring=ScoringConfig(statistics="batch", images=(1000,), batch=250),
    recipe=Recipe(
        epochs=4, batch=128, whiten=True, label_smoothing=0.1, augmentation={"pad_crop": 2, "flip": True}
    ),
    networks=40,
    second_seeds=8,
    hypernets={"a tenth": HyperNetConfig(depths=(1,), growth=3, centred=True, whiten=True)},
    corrupted=120,  # another description costs a tenth of a point, which 24 could not tell from nothing
    transfer_to=("fashion-mnist",),
)

SIZES: dict[str, ExperimentConfig] = {
    "cpu": _CPU,
    "edge": _EDGE,
    "paper": ExperimentConfig(
        size="paper",
        space="paper",
        changes={},
        train_images=0,
        validation_images=0,
        test_images=0,
        hypernet=HyperNetConfig(compression=2),
        training=TrainingConfig(
            steps=300 * 900,  # 300 epochs of 45,000 images in batches of 50
            batch=50,
            architectures=1,
            average=0.999,
            augmentation={"pad_crop": 4, "flip": True},
        ),
        scoring=ScoringConfig(statistics_images=2000, images=(5000,), batch=250),
        recipe=Recipe(epochs=30, batch=50, weight_decay=1e-4, augmentation={"pad_crop": 4, "flip": True}),
        networks=250,
        second_seeds=50,
        statistics_networks=100,
        hypernets={
            "half": HyperNetConfig(depths=(4, 5, 2), growth=10, compression=2),
            "a tenth": HyperNetConfig(depths=(2, 2), growth=4, compression=2),
        },
        corrupted=250,
        starts=10,
        steps=25,
        mutants=64,
        batch=4,
        rate=0.05,
        picks=5,
        transfer_to=("stl10:stl10", "imagenet32:imagenet32"),
    ),
}


def size_named(name: str) -> ExperimentConfig:
    """The configuration of that name.

    Raises:
        UsageError: no such size.
    """
    if name not in SIZES:
        raise UsageError(f"there is no size {name!r}", expected=", ".join(SIZES), received=name)
    return SIZES[name]
