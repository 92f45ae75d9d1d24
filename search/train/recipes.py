"""Recipes: how a network is trained, as documented values. No torch.

``quick``, ``standard`` and ``long`` differ in their epochs and in what pays at that length; each value was
chosen on validation images of CIFAR-10 (docs/recipes.md has the table). :func:`recipe_for` fits one to a data
set: how many images, of which size, and whether their class survives a flip.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject

Schedule = Literal["cosine", "linear"]
Balance = Literal["none", "loss", "sampling"]
Precision = Literal["auto", "float32"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images; the schedule ends with the last one.
        batch: images per step.
        learning_rate: highest, reached after the warm-up.
        warmup: share of the training over which the learning rate grows from 0.
        schedule: how it falls from there to 0: "cosine" (half of one) or "linear".
        momentum: of Nesterov's method.
        weight_decay: on weights of convolutions and of the linear layer.
        bias_rate: learning rate of biases, those of norms included, as a multiple of the others'.
        label_smoothing: share of the target spread over all classes.
        average: decay of the moving average that replaces the weights at the end, or 0.
        clip: largest norm of the gradient, or 0 for no limit.
        augmentation: arguments of :class:`smash_search.data.augment.Augmentation`; empty for none.
        whiten: the first convolution whitens patches of training images and stays as it is
            (KellerJordan/cifar10-airbench).
        identity: convolutions begin as the identity on as many channels as they can (same source).
        first_size: share of the images' height and width that training begins with; grows to 1 until 70 %
            of the training are over. 1 for whole images throughout.
        balance: against classes of unequal size: "loss" weighs each class by the inverse of its images,
            "sampling" shows every class equally often.
        distillation: weight of a teacher's answers beside the labels, 0 to 1; used with a teacher only.
        temperature: at which the teacher's answers are compared.
        precision: "auto" multiplies in bfloat16 where the processor has it, "float32" never.
        keep_best: end with the weights of the best epoch on validation images, if that was not the last.
        include_validation: train on training and validation images (after all choices are made).
        epoch_images: most images of an epoch, or 0 for all. Shorter epochs go through all images in turn.
        seconds: wall time after which training is over and annealed, or 0 for no limit.
        seed: of the order of images and of the augmentation.
        most_bad_steps: steps in a row with NaN or infinity that are skipped before giving up.
    """

    epochs: int = 30
    batch: int = 64
    learning_rate: float = 0.1
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_rate: float = 1.0
    label_smoothing: float = 0.0
    average: float = 0.0
    clip: float = 5.0
    augmentation: dict[str, Any] = field(default_factory=dict)
    whiten: bool = False
    identity: bool = False
    first_size: float = 1.0
    balance: Balance = "none"
    distillation: float = 0.5
    temperature: float = 2.0
    precision: Precision = "auto"
    keep_best: bool = False
    include_validation: bool = False
    epoch_images: int = 0
    seconds: float = 0.0
    seed: int = 0
    most_bad_steps: int = 10

    def __post_init__(self) -> None:
        limits = {
            "epochs": (0, 100_000),
            "epoch_images": (0, 2**40),
            "batch": (1, 2**20),
            "learning_rate": (0, 1e3),
            "warmup": (0, 1),
            "momentum": (0, 0.9999),
            "weight_decay": (0, 10),
            "bias_rate": (0, 1000),
            "label_smoothing": (0, 0.99),
            "average": (0, 0.999999),
            "clip": (0, 1e9),
            "first_size": (0.25, 1),
            "distillation": (0, 1),
            "temperature": (0.1, 100),
            "seconds": (0, 1e8),
            "most_bad_steps": (0, 10**6),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InvalidInputError(f"recipe field {name!r}", expected=f"{low} to {high}", received=value)
        for name, choices in (("schedule", Schedule), ("balance", Balance), ("precision", Precision)):
            if getattr(self, name) not in get_args(choices):
                expected = " or ".join(get_args(choices))
                raise InvalidInputError(
                    f"recipe field {name!r}", expected=expected, received=getattr(self, name)
                )

    def to_json(self) -> JsonObject:
        """Plain numbers, as provenance and checkpoints hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Recipe:
        """Read :meth:`to_json` back; raises InvalidInputError for unknown fields."""
        names = {entry.name for entry in fields(cls)}
        if not isinstance(value, dict) or set(value) - names:
            raise InvalidInputError("recipe", expected=", ".join(sorted(names)), received=value)
        return cls(**value)
