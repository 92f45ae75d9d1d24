"""Recipes: how a network is trained, as documented values. No torch.

``quick``, ``standard`` and ``long`` differ in their epochs. What single values bring was measured on
validation images of CIFAR-10; docs/recipes.md has the table and says what was not. :func:`recipe_for` fits a
recipe to a data set: how many images, of which size, and whether their class survives a flip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject, JsonValue

if TYPE_CHECKING:
    from smash_search.data import Dataset

Schedule = Literal["cosine", "linear"]
Balance = Literal["none", "loss", "sampling"]
Precision = Literal["auto", "float32"]
Optimiser = Literal["auto", "sgd", "muon"]
Whiten = bool | Literal["auto"]

PRUNED = 0.5  # of the images of low loss, by "auto"
MOST_PRUNED = 0.9
TOLD = (
    *("epochs", "batch", "optimiser", "learning_rate", "warmup", "schedule", "momentum", "weight_decay"),
    *("label_smoothing", "clip", "augmentation"),
)
"""Values that people are told in any case (:meth:`Recipe.words`)."""


LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (0, 100_000),
    "epoch_images": (0, 2**40),
    "batch": (1, 2**20),
    "learning_rate": (0, 1e3),
    "warmup": (0, 1),
    "momentum": (0, 0.9999),
    "weight_decay": (0, 10),
    "muon_rate": (0, 1000),
    "bias_rate": (0, 1000),
    "label_smoothing": (0, 0.99),
    "average": (0, 0.999999),
    "clip": (0, 1e9),
    "first_size": (0.25, 1),
    "distillation": (0, 1),
    "distillation_left": (0, 1),
    "temperature": (0.1, 100),
    "teacher_confidence": (0, 1),
    "seconds": (0, 1e8),
    "most_bad_steps": (0, 10**6),
    "seed": (0, 2**63 - 1),
}
"""Least and largest value of each number."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images; the schedule ends with the last one.
        batch: images per step.
        optimiser: "sgd" is Nesterov's method for all weights; with "muon" convolutions whose filters mix
            channels have orthogonalised updates (:class:`smash_search.train.optimisers.Muon`), and the rest
            has SGD. "auto" takes it where it wins: in short trainings of many images
            (:func:`smash_search.train.network.settled`).
        learning_rate: highest, reached after the warm-up.
        warmup: share of the training over which the learning rate grows from 0.
        schedule: how it falls from there to 0: "cosine" (half of one) or "linear".
        momentum: Momentum of Nesterov's method.
        weight_decay: on weights of convolutions and of the linear layer that SGD trains.
        muon_rate: how far Muon turns filters over a whole training: its steps are this times the learning
            rate, over the root of their number, as shares of a filter's norm (docs/recipes.md).
        bias_rate: learning rate of biases, those of norms included, as a multiple of the others'.
        label_smoothing: share of the target spread over all classes.
        average: decay of the moving average that replaces the weights at the end, or 0.
        clip: largest norm of the gradient, or 0 for no limit.
        augmentation: arguments of :class:`smash_search.data.augment.Augmentation`; empty for none.
        whiten: the first convolution whitens patches of training images and stays as it is
            (KellerJordan/cifar10-airbench). "auto" leaves it out where that loses in the end: in long
            trainings of a convolution too narrow for all whitening filters
            (:func:`smash_search.train.network.settled`).
        identity: convolutions begin as the identity on as many channels as they can (same source).
        first_size: share of the images' height and width that training begins with; grows to 1 until 70 %
            of the training are over. 1 for whole images throughout.
        balance: against classes of unequal size: "loss" weighs each class by the inverse of its images,
            "sampling" shows every class equally often. With either, networks and epochs are compared by the
            mean recall of the classes rather than by accuracy.
        distillation: weight of a teacher's answers beside the labels, 0 to 1; used with a teacher only.
            0.9 gained most with a teacher that is better than its student (docs/recipes.md).
        distillation_left: share of that weight that is left at the end of the training, to which it goes in
            a straight line (teacher annealing, Clark et al. 2019, 1907.04829): a student that becomes better
            than its teacher is not held back.
        temperature: at which the teacher's answers are compared.
        teacher_confidence: most that the mean top probability of a teacher's answers may be, before that
            temperature; surer ones are divided (:func:`smash_search.train.network.tempering`). 1 takes them
            as they are.
        precision: "auto" multiplies in bfloat16 where the processor has it, "float32" never.
        prune: share of the images of low loss that a pass leaves out by lot, while the rest of them count for
            them too (:mod:`smash_search.train.pruning`); 0 shows every image in each pass. An epoch has as
            many steps either way. "auto" leaves out half of them in short trainings of many images.
        keep_best: end with the weights of the best epoch on validation images, if that was not the last; not
            where they are trained on.
        include_validation: train on training and validation images (after all choices are made).
        epoch_images: most images of an epoch, or 0 for all. Shorter epochs go through all images in turn.
        seconds: wall time after which training is over and annealed, or 0 for no limit.
        seed: Random seed of the order of images and of the augmentation.
        most_bad_steps: steps in a row with NaN or infinity that are skipped before giving up.
    """

    epochs: int = 30
    batch: int = 64
    optimiser: Optimiser = "sgd"
    learning_rate: float = 0.1
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    muon_rate: float = 7.0
    bias_rate: float = 1.0
    label_smoothing: float = 0.0
    average: float = 0.0
    clip: float = 5.0
    augmentation: Mapping[str, JsonValue] = field(default_factory=dict)
    whiten: Whiten = False
    identity: bool = False
    first_size: float = 1.0
    balance: Balance = "none"
    distillation: float = 0.9
    distillation_left: float = 1.0
    temperature: float = 2.0
    teacher_confidence: float = 0.9
    precision: Precision = "auto"
    prune: float | Literal["auto"] = 0.0
    keep_best: bool = False
    include_validation: bool = False
    epoch_images: int = 0
    seconds: float = 0.0
    seed: int = 0
    most_bad_steps: int = 10

    def __post_init__(self) -> None:
        for name in ("identity", "keep_best", "include_validation"):
            if not isinstance(value := getattr(self, name), bool):
                raise InvalidInputError(f"recipe field {name!r}", expected="true or false", received=value)
        for name in ("epochs", "batch", "epoch_images", "seed", "most_bad_steps"):
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool):
                raise InvalidInputError(f"recipe field {name!r}", expected="a whole number", received=value)
        if not isinstance(self.augmentation, Mapping):
            raise InvalidInputError(
                "recipe field 'augmentation'", expected="names and values", received=self.augmentation
            )
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InvalidInputError(f"recipe field {name!r}", expected=f"{low} to {high}", received=value)
        self._check_prune()
        if not isinstance(self.whiten, bool) and self.whiten != "auto":
            raise InvalidInputError(
                "recipe field 'whiten'", expected="true, false or auto", received=self.whiten
            )
        for name, choices in (
            ("optimiser", Optimiser),
            ("schedule", Schedule),
            ("balance", Balance),
            ("precision", Precision),
        ):
            if getattr(self, name) not in get_args(choices):
                expected = " or ".join(get_args(choices))
                raise InvalidInputError(
                    f"recipe field {name!r}", expected=expected, received=getattr(self, name)
                )

    def _check_prune(self) -> None:
        value = self.prune
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "auto" and not (is_number and 0 <= value <= MOST_PRUNED):
            expected = f"auto, or 0 to {MOST_PRUNED}"
            raise InvalidInputError("recipe field 'prune'", expected=expected, received=value)

    def to_json(self) -> JsonObject:
        """Plain numbers, as provenance and checkpoints hold them."""
        return asdict(self)

    def words(self) -> str:
        """The values that decide most, and every other one that is not the default, for people."""
        usual = asdict(Recipe())
        values = {name: value for name, value in asdict(self).items() if name in TOLD or value != usual[name]}
        changes = " ".join(f"{name}={value}" for name, value in self.augmentation.items())
        values["augmentation"] = changes or "none"
        return ", ".join(f"{name} {value}" for name, value in values.items())

    @classmethod
    def from_json(cls, value: Any) -> Recipe:
        """Read :meth:`to_json` back; raises InvalidInputError for unknown fields."""
        names = {entry.name for entry in fields(cls)}
        if not isinstance(value, dict):
            raise InvalidInputError("recipe", expected=", ".join(sorted(names)), received=value)
        if unknown := sorted(set(value) - names):
            expected = ", ".join(sorted(names))
            raise InvalidInputError("a recipe has no such value", expected=expected, received=unknown[0])
        return cls(**value)


CROP = {"pad_crop": 2}

_NAMED = Recipe(
    batch=64,
    optimiser="auto",
    whiten="auto",
    label_smoothing=0.1,
    augmentation=CROP,
    prune="auto",
    keep_best=True,
)

RECIPES: dict[str, Recipe] = {
    "quick": replace(_NAMED, epochs=6),
    "standard": replace(_NAMED, epochs=25),
    "long": replace(_NAMED, epochs=200, batch=128),
}
"""For data of CIFAR-10's size; flips are added where a class survives them (:func:`survives_flip`)."""

AUTO = "auto"
NAMES = (AUTO, *RECIPES)
FEW_IMAGES = 5000  # below this many, smaller batches; on digits 32 gave 99.15 % and 64 98.77 %
HANDFUL_OF_IMAGES = 450  # below this many, batches of a sixteenth of them, 8 at least
VERY_FEW_IMAGES = 1000  # below this many, more passes
FEW_OF_A_CLASS = 100  # images below which a class is treated as in few images, however many classes there are
SMALL = 4  # pixels below which a crop would move a third of the image and more out of the frame
LARGE = 48  # pixels from which crops move by an eighth of the side instead of two
PROBE_IMAGES = 3000  # that flips are decided with
PROBE_SIDE = 16
PROBED = 16_000  # images in all halvings of a probe: 16 halvings of 1,000 images, 5 of 3,000
FLIP_SHARE = 0.9  # of the accuracy that must be left on mirrored images
FLIP_DOUBT = 1.28  # standard errors by which less may be left: it is less with a confidence of 90 %


def recipe_for(name: str, dataset: Dataset, seed: int = 0) -> Recipe:
    """A recipe by name, fitted to a data set.

    ``auto`` chooses epochs and batch by the number of images, in all and of a class; crops, flips and,
    for few images, stronger changes are chosen by the images for every recipe. Digits and letters are not
    flipped.

    Raises:
        UsageError: no recipe of that name.
    """
    if name not in NAMES:
        raise UsageError("unknown recipe", expected=" or ".join(NAMES), received=name)
    images = len(dataset.train)
    recipe = RECIPES.get(name, RECIPES["standard"])
    if name == AUTO:
        most = 80 if images < VERY_FEW_IMAGES or has_few_of_a_class(dataset) else 30
        recipe = replace(recipe, epochs=int(np.clip(round(400_000 / images), 15, most)))
    if images < FEW_IMAGES:
        recipe = replace(recipe, batch=_batch_of_few(images), learning_rate=0.05)
    return replace(recipe, augmentation=augmentation_for(dataset), seed=seed)


def _batch_of_few(images: int) -> int:
    """32, and fewer where an epoch would be a handful of steps: 36 images are one batch of 32."""
    return 32 if images >= HANDFUL_OF_IMAGES else min(32, max(8, images // 16))


def augmentation_for(dataset: Dataset) -> JsonObject:
    """Arguments of :class:`smash_search.data.augment.Augmentation` that suit the images."""
    *axes, _ = dataset.train.images.shape[1:]
    if len(axes) == 3:
        return {"jitter": 2}
    side = min(axes)
    small = 1 if side >= SMALL else 0
    chosen: JsonObject = {"pad_crop": small if side < PROBE_SIDE else 2 if side < LARGE else side // 8}
    if survives_flip(dataset.train.images, dataset.train.labels):
        chosen["flip"] = True
        if len(dataset.train) < FEW_IMAGES or has_few_of_a_class(dataset):
            chosen["trivial"] = True
    return chosen


def has_few_of_a_class(dataset: Dataset) -> bool:
    """Whether the mean class has fewer than 100 training images; one of several classes counts for each."""
    targets = dataset.train.targets
    shown = len(dataset.train) if targets is None else int(targets.sum(dtype=np.int64))
    return shown < FEW_OF_A_CLASS * len(dataset.classes)


def survives_flip(images: np.ndarray, labels: np.ndarray) -> bool:
    """Whether mirrored images show what they showed, as linear classifiers see it.

    Each learns from one half of at most 3,000 small images and answers for the other half, as it is and
    mirrored. Over several halvings the share that is right must not fall, on mirrored images, below nine
    tenths of what it is on the images as they are, beyond what chance does with so few of them. Pictures of
    things pass; digits, letters and shoes that all look the same way do not. What no classifier learns from
    a handful of images passes as well.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
    """
    if len(labels) < 2:
        return False
    order = np.sort(np.random.default_rng(0).permutation(len(labels))[:PROBE_IMAGES])
    step = max(1, min(images.shape[1:3]) // PROBE_SIDE)
    small = np.asarray(images[:, ::step, ::step][order]).astype(np.float32) / 255
    _, classes = np.unique(labels[order], return_inverse=True)  # those that are shown, of perhaps 100,000
    as_is, mirrored, shown = _right_as_is_and_mirrored(small, classes)
    if not as_is.any():
        return False
    lost = ((FLIP_SHARE * as_is - mirrored) / np.maximum(shown, 1))[shown > 0]
    return bool(lost.mean() <= FLIP_DOUBT * lost.std() / np.sqrt(len(lost)))


def _right_as_is_and_mirrored(
    small: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each image is put into its class as it is, and mirrored, and how often it is shown: [N] each.

    Args:
        small: float32 [N, H, W, C].
        truth: Labels, int64 [N].
    """
    count = len(truth)
    as_is, mirrored, shown = np.zeros(count), np.zeros(count), np.zeros(count)
    random = np.random.default_rng(1)
    for _ in range(int(np.clip(PROBED // count, 4, 16))):
        mixed = random.permutation(count)
        learn, test = mixed[::2], mixed[1::2]
        mean = small[learn].mean(0)
        weights = _ridge((small[learn] - mean).reshape(len(learn), -1), truth[learn])
        for right, images in ((as_is, small[test]), (mirrored, small[test][:, :, ::-1])):
            answers = (images - mean).reshape(len(test), -1) @ weights
            right[test] += answers.argmax(1) == truth[test]
        shown[test] += 1
    return as_is, mirrored, shown


def _ridge(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Linear classifier [F, K] of centred inputs [N, F] by least squares with a ridge."""
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    targets -= targets.mean(0)
    count, features = inputs.shape
    ridge = 0.05 * count * float(inputs.var()) + 1e-6
    if count < features:  # the same solution by the smaller system
        held = inputs @ inputs.T + ridge * np.eye(count, dtype=np.float32)
        by_images: np.ndarray = inputs.T @ np.linalg.solve(held, targets)
        return by_images
    held = inputs.T @ inputs + ridge * np.eye(features, dtype=np.float32)
    by_features: np.ndarray = np.linalg.solve(held, inputs.T @ targets)
    return by_features
