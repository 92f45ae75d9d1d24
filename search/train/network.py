"""Training of one network with its own weights: what finalists, freezing and every baseline use.

SGD with Nesterov momentum over the one loop (:mod:`smash_search.train.loop`), by a
:class:`~smash_search.train.recipes.Recipe`. Works on any module from images to logits, so that hand-made
networks are compared under the same recipe.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smash_base.errors import UsageError, said_by_the_caller
from smash_base.preprocess import Preprocessing
from smash_search.data import Split
from smash_search.data.several import mean_average_precision
from smash_search.model.interpreter import Network, Norm
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.train.compute import (
    Ahead,
    Batches,
    DivergedError,
    Feed,
    Reduction,
    arrange_weights,
    augmentation_of,
    autocast,
    check_identity,
    check_mixing,
    class_loss,
    learns_wrongly,
    load_checkpoint,
    memory_format,
    memory_guard,
    multiplies_bfloat16,
    seed_of,
)
from smash_search.train.initial import begin_as_identity, first_convolution, whiten
from smash_search.train.loop import Loop, TrainingLimits, TrainingProgress
from smash_search.train.optimisers import Muon, Together
from smash_search.train.pruning import WHOLE_FROM, Drawn, PrunedBatches
from smash_search.train.recipes import FEW_IMAGES, PRUNED, Optimiser, Schedule, has_few_of_a_class
from smash_search.train.recipes import Recipe as Recipe

if TYPE_CHECKING:
    from smash_search.data import Dataset
    from smash_search.data.augment import Augmentation

EVALUATION_BATCH = 512
EVALUATION_PIXELS = 512 * 96 * 96  # in one batch, which holds fewer of larger images
PROBED_STEPS = 8
MOST_EPOCHS = 200  # that a time is filled with
LONG_STEPS = 2000  # from which a narrow first convolution is better off trained than whitening
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
PART_OF_TIME = 0.1  # that may be left unused for whole epochs
SHORT_STEPS = 12_000  # up to which Muon was better in every comparison, pruning no worse (docs/recipes.md)
TEMPERED = 10_000  # rows of a teacher's answers that tell how sure it is
MOST_TEMPERING = math.log(100)
WHOLE_SIZE_FROM = 0.7  # share of a training after which images have their whole size


class Measure(Protocol):
    """Says how good a network is on a split, 0 to 1."""

    def __call__(
        self, network: nn.Module, split: Split, preprocessing: Preprocessing, device: torch.device | str = ...
    ) -> float: ...


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean over its steps.
        accuracy: On the validation images, 0 to 1 (:func:`measure_of`); None where it was not asked for.
        skipped: Steps of the training so far that gave NaN or infinity.
    """

    epoch: int
    loss: float
    accuracy: float | None
    skipped: int


@dataclass(frozen=True)
class FitResult:
    """What training gave.

    Attributes:
        accuracy: on the validation images after the last epoch, 0 to 1 (:func:`measure_of`).
        history: what each epoch gave.
        steps: steps done in all, those before a resumption included.
        skipped: those of them that gave NaN or infinity.
        seconds: Seconds of this call; differs from run to run.
        recipe: what was used: with a limit of time the epochs that were measured when the job began, and
            the rest as :func:`settled`.
    """

    accuracy: float
    history: list[Epoch]
    steps: int
    skipped: int
    seconds: float
    recipe: Recipe


def new_network(
    architecture: Architecture, input_spec: InputSpec, classes: int, seed: int, norm: Norm = "sandwich"
) -> Network:
    """A network whose initial weights depend on the seed and on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 0x1217))
        return Network(architecture, input_spec, classes, norm)


def fit(
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 0.0,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[TrainingProgress], None] | None = None,
    evaluate: bool = True,
    teacher: np.ndarray | None = None,
    measure: Measure | None = None,
) -> FitResult:
    """Train a network in place; it is left in evaluation mode with its final, averaged or best weights.

    On a CPU with one number of threads the result depends on the initial weights, the data and the recipe
    only, whether or not the job was interrupted; with a limit of time also on how fast the machine is.

    Args:
        network: images [B, C, *S] -> logits [B, K]; its present weights are the start.
        dataset: training and validation images.
        recipe: how.
        device: where; the network is moved there.
        checkpoint: file that is written on the way and continued from when it exists.
        checkpoint_seconds: shortest time between two checkpoints; 0 writes one after every epoch.
        on_epoch: called with each entry of the history.
        on_step: called after every step.
        evaluate: measure validation accuracy after every epoch, not only after the last.
        teacher: logits float32 [N, K] of another network for the training images, in their order.
        measure: says how good the network is; :func:`measure_of` the recipe unless given.

    Raises:
        DivergedError: too many steps in a row gave NaN or infinity, or all of a few did.
        OutOfMemoryError: the batch does not fit into the memory of a GPU.
        UsageError: the checkpoint belongs to another job, or a batch of one image is normalised where its
            map has shrunk to one place.
    """
    device = torch.device(device)
    if recipe.seconds and checkpoint and (held := load_checkpoint(checkpoint, None)):
        # How many epochs fit was measured when the job began.
        recipe = replace(recipe, epochs=held["identity"]["recipe"]["epochs"])
    recipe = settled(recipe, network, dataset)
    split = Split.joined(dataset.train, dataset.validation) if recipe.include_validation else dataset.train
    feed = Feed(split, dataset.preprocessing, device)
    dims = dataset.train.images.ndim - 2
    network.to(device)
    arrange_weights(network, memory_format(dims, device))
    prepare(network, dataset, recipe)
    loop = _Loop(network, feed, recipe, len(dataset.classes), teacher)
    measured = measure or measure_of(recipe)
    loop.measure = lambda: measured(network, dataset.validation, dataset.preprocessing, device)
    loop.evaluate, loop.on_epoch = evaluate or recipe.keep_best, on_epoch
    loop.saves_within = checkpoint_seconds > 0
    identity = _identity(network, dataset, recipe)
    if teacher is not None:
        identity["teacher"] = hashlib.sha256(np.ascontiguousarray(teacher).tobytes()).hexdigest()
    loop.resume(checkpoint, identity)
    start = time.monotonic()
    try:
        gpus = [device] if device.type == "cuda" else []
        with _guards(device, recipe.batch), torch.random.fork_rng(gpus):
            loop.run(
                checkpoint=checkpoint,
                identity=identity,
                checkpoint_seconds=checkpoint_seconds,
                on_step=on_step,
            )
    finally:
        loop.close()
    if 0 < loop.step == loop.skipped:  # fewer than are too many in a row
        raise DivergedError(
            f"training gave NaN or infinity in each of its {loop.step} steps",
            hint="Lower the learning rate, clip the gradient, or look at the images' mean and deviation.",
        )
    if recipe.keep_best and loop.best is not None:
        network.load_state_dict(loop.best.weights)
    network.eval()
    final = loop.history[-1].accuracy if loop.history else None
    if recipe.keep_best and loop.best is not None:
        final = loop.best.accuracy
    if final is None:
        final = loop.measure()
    return FitResult(final, loop.history, loop.step, loop.skipped, time.monotonic() - start, recipe)


def check_resumable(
    checkpoint: Path,
    network: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    limits: Sequence[float] = (),
    taught: bool | None = None,
) -> Recipe | None:
    """The recipe of the training that :func:`fit` would go on with; None where there is none.

    To be asked before what takes long itself: a teacher, folds.

    Args:
        checkpoint: Its file.
        network, dataset, recipe: as for :func:`fit`.
        limits: seconds, some of which will decide about the epochs, and are not in the recipe yet.
        taught: whether there will be a teacher, whose answers are not compared; None where that is open.

    Raises:
        InvalidInputError: the file is damaged.
        UsageError: it is of another job.
    """
    loaded = load_checkpoint(checkpoint, None)
    if loaded is None:
        return None
    identity = dict(loaded["identity"])
    held, teacher = identity["recipe"], identity.pop("teacher", None)
    asked = limits or (recipe.seconds,)
    is_known = any(math.isclose(seconds, held["seconds"], rel_tol=1e-6) for seconds in asked)
    recipe = replace(recipe, seconds=held["seconds"] if is_known else asked[0])
    if limits:
        recipe = replace(recipe, epochs=held["epochs"])
    wanted = _identity(network, dataset, settled(recipe, network, dataset))
    if taught is not None:
        identity["teacher"], wanted["teacher"] = ("one" if it else "none" for it in (teacher, taught))
    check_identity(checkpoint, identity, wanted)
    return Recipe.from_json(held)


def _identity(network: nn.Module, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What a training is, for its checkpoint."""
    return {"recipe": recipe.to_json(), "data": dataset.fingerprint, "job": _job_name(network)}


@contextmanager
def _guards(device: torch.device, batch: int) -> Iterator[None]:
    """Turn a GPU out of memory, and BatchNorm's refusal of one value per channel, into errors that name the
    batch.
    """
    try:
        with memory_guard(device, batch, hint=f"Try --batch {max(1, batch // 2)}."):
            yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {batch} leaves BatchNorm one value per channel, where the map is of 1x1",
            expected="--batch 2 and more",
            received=batch,
        ) from None


def settled(recipe: Recipe, network: nn.Module, dataset: Dataset) -> Recipe:
    """The recipe as it is used for a network: nothing of it is "auto", or asked for in vain.

    - No best epoch is kept where validation images are trained on, since none is left that could tell.
    - A first convolution whitens unless it has fewer channels than there are whitening filters, and neither
      images nor steps are few: on CIFAR-10, with 16 channels for 27 filters, whitening gains four points in
      500 steps and loses half a point and more from 2,000 on; with 45 images of a class it gains at 11,000
      (docs/recipes.md).
    - Images of low loss are left out in short trainings, as Muon trains them, but not where they are mixed,
      or of several classes, or where classes are balanced.
    - Muon trains filters for so few steps that it gains by them, unless images are few, which it learns by
      heart.
    """
    if recipe.include_validation:
        recipe = replace(recipe, keep_best=False)
    if recipe.prune == "auto":
        is_short = _is_short(recipe, dataset)
        recipe = replace(recipe, prune=PRUNED if is_short and _tells(recipe, dataset) else 0.0)
    elif recipe.prune and not _tells(recipe, dataset):
        raise UsageError(
            "which images of low loss to leave out is not known where images are mixed, or of several "
            "classes, or classes are balanced",
            expected="prune 0",
            received=recipe.prune,
        )
    if recipe.whiten == "auto":
        filters, is_many = first_convolution(network), len(dataset.train) >= FEW_IMAGES
        narrow = filters is not None and len(filters) < filters[0].numel()
        recipe = replace(recipe, whiten=not (narrow and is_many and _steps(recipe, dataset) >= LONG_STEPS))
    optimiser = optimiser_of(recipe, dataset)
    if optimiser == "muon" and not mixing_filters(network):
        optimiser = "sgd"
    return replace(recipe, optimiser=optimiser)


def _tells(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether the loss of an image tells how much there is to learn from it."""
    is_mixing = recipe.augmentation.get("mixup") or recipe.augmentation.get("cutmix")
    return not (is_mixing or dataset.several or recipe.balance != "none")


def _is_short(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether a training has few steps for its images, which are many, in all and of a class."""
    is_many = len(dataset.train) >= FEW_IMAGES and not has_few_of_a_class(dataset)
    return is_many and _steps(recipe, dataset) <= SHORT_STEPS


def optimiser_of(recipe: Recipe, dataset: Dataset) -> Optimiser:
    """The optimiser of a recipe for a network that Muon can train (:func:`settled`)."""
    if recipe.optimiser != "auto":
        return recipe.optimiser
    return "muon" if _is_short(recipe, dataset) else "sgd"


def _steps(recipe: Recipe, dataset: Dataset) -> int:
    return recipe.epochs * _steps_per_epoch(recipe, _images_of(recipe, dataset))


def _images_of(recipe: Recipe, dataset: Dataset) -> int:
    """Number of images that are trained on."""
    return len(dataset.train) + (len(dataset.validation) if recipe.include_validation else 0)


def _steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Whole batches of an epoch, or one that is none."""
    if recipe.epoch_images:
        images = min(images, recipe.epoch_images)
    return max(1, images // recipe.batch)


def seconds_per_step(network: nn.Module, dataset: Dataset, recipe: Recipe, device: torch.device) -> float:
    """Wall seconds of a training step on this machine: the median of a few, on a copy of the network."""
    recipe = settled(recipe, network, dataset)
    times = [time.monotonic()]
    few = replace(recipe, epochs=1, epoch_images=PROBED_STEPS * recipe.batch, keep_best=False, seconds=0.0)
    little = replace(dataset, validation=_first(dataset.validation, 1))
    fit(copy.deepcopy(network), little, few, device=device, on_step=lambda _: times.append(time.monotonic()))
    return float(np.median(np.diff(times)[min(2, len(times) - 2) :]))


def seconds_of_validation(
    network: nn.Module, dataset: Dataset, recipe: Recipe, device: torch.device
) -> float:
    """Wall seconds of a look at all validation images on this machine, from a few batches of them."""
    copied = copy.deepcopy(network).to(device)
    arrange_weights(copied, memory_format(dataset.train.images.ndim - 2, device))
    some = _first(dataset.validation, PROBED_STEPS * recipe.batch)
    times = []
    for _ in range(2):  # the first one may have kernels to choose
        start = time.monotonic()
        answers_of(copied, some, dataset.preprocessing, device)
        times.append(time.monotonic() - start)
    return min(times) * len(dataset.validation) / len(some)


def seconds_per_epoch(network: nn.Module, dataset: Dataset, recipe: Recipe, device: torch.device) -> float:
    """Wall seconds of an epoch on this machine, validation after it included, measured on a few steps."""
    validation = 0.0
    if not recipe.include_validation:
        validation = seconds_of_validation(network, dataset, recipe, device)
    steps = _steps_per_epoch(recipe, _images_of(recipe, dataset))
    return steps * seconds_per_step(network, dataset, recipe, device) + validation


def within(recipe: Recipe, seconds: float, per_epoch: float) -> Recipe:
    """The recipe with as many epochs as a time allows, at most 200, and an end when the time is over.

    Where whole epochs would leave more than a tenth of it, another one is begun, which the time ends.

    Args:
        recipe: how.
        seconds: Seconds of the whole training.
        per_epoch: Seconds of one epoch (:func:`seconds_per_epoch`).
    """
    fitting = seconds / per_epoch
    whole = int(fitting) if int(fitting) >= (1 - PART_OF_TIME) * fitting else int(fitting) + 1
    return replace(recipe, epochs=int(np.clip(whole, 1, MOST_EPOCHS)), seconds=seconds)


def augmentation_for(recipe: Recipe, classes: int) -> Augmentation | None:
    """What is done to training batches of that many classes; raises InvalidInputError where it cannot be."""
    return augmentation_of({"classes": classes, **recipe.augmentation} if recipe.augmentation else {})


def recipe_with(recipe: Recipe, changes: Mapping[str, Any], classes: int) -> Recipe:
    """A recipe with what somebody says of it, for images of that many classes.

    Args:
        recipe: as it is.
        changes: fields and their values; those that are None are left out. An augmentation changes the
            recipe's own value by value; an empty one is none.
        classes: Number of classes.

    Raises:
        UsageError: no such field, or a value that it cannot have. A recipe read from a file raises
            InvalidInputError for the same.
    """
    said = {name: value for name, value in changes.items() if value is not None}
    if isinstance(augmentation := said.get("augmentation"), Mapping) and augmentation:
        said["augmentation"] = {**recipe.augmentation, **augmentation}
    with said_by_the_caller():
        changed = Recipe.from_json({**recipe.to_json(), **said})
        augmentation_for(changed, classes)
    return changed


def prepare(network: nn.Module, dataset: Dataset, recipe: Recipe) -> None:
    """Give a network the initial weights that a recipe asks for."""
    if recipe.identity:
        begin_as_identity(network)
    if recipe.whiten:
        whiten(network, dataset)


class Best(NamedTuple):
    """The epoch with the highest validation accuracy, and its weights."""

    accuracy: float
    weights: dict[str, Tensor]


class _Batch(NamedTuple):
    drawn: Drawn
    images: Tensor
    targets: Tensor
    """Labels int64 [B], or shares of classes or their presence, float32 [B, K]."""
    soft: Tensor | None
    """A teacher's logits [B, K]."""


class _Loop(Loop[Epoch]):
    """The loop of one network: batches by number of the step, epochs, and the best of them."""

    key = "network"
    entry = Epoch

    def __init__(
        self, network: nn.Module, feed: Feed, recipe: Recipe, classes: int, teacher: np.ndarray | None
    ) -> None:
        self.network, self._feed, self._recipe = network, feed, recipe
        self._several = feed.targets is not None
        self._tempering = 1.0
        if teacher is not None and not self._several:
            self._tempering = tempering(teacher, recipe.teacher_confidence)
        self._teacher = None if teacher is None else torch.from_numpy(teacher).to(feed.device)
        check_mixing(recipe.augmentation, taught=teacher is not None, several=self._several)
        self._augmentation = augmentation_for(recipe, classes)
        labels = feed.labels.cpu().numpy()
        classes_of = labels if feed.targets is None else feed.targets.cpu().numpy()
        sampled = classes_of if recipe.balance == "sampling" else None
        self._batches = Batches(recipe.seed, len(feed), recipe.batch, sampled)
        self._class_weights = None
        if recipe.balance == "loss":
            self._class_weights = class_weights(labels, classes).to(feed.device)
            if feed.targets is not None:
                self._class_weights = weights_of_presence(feed.targets)
        self._per_epoch = _steps_per_epoch(recipe, len(feed))
        limits = TrainingLimits(
            self._per_epoch * recipe.epochs,
            seconds=recipe.seconds,
            clip=recipe.clip,
            average=recipe.average,
            most_bad_steps=recipe.most_bad_steps,
        )
        super().__init__(network, _optimiser(network, recipe, limits.steps), limits)
        self._pruned: PrunedBatches | None = None
        if recipe.prune and recipe.prune != "auto":
            whole_from = min(WHOLE_FROM, 1 - 1 / max(1, recipe.epochs))
            self._pruned = PrunedBatches(
                recipe.seed, len(feed), recipe.batch, recipe.prune, lambda: self.progress, whole_from
            )
        self._ahead = Ahead(self._draw, self._batch, limits.steps)
        is_able = feed.device.type != "cpu" or not self._learns_wrongly()
        self._is_low = recipe.precision == "auto" and is_able
        self.best: Best | None = None
        self.measure: Callable[[], float] = lambda: math.nan
        self.evaluate = self.saves_within = False
        self.on_epoch: Callable[[Epoch], None] | None = None

    def _learns_wrongly(self) -> bool:
        """Whether bfloat16 is no way to train the network, on a CPU: see :func:`learns_wrongly`."""
        if self._feed.device.type != "cpu" or not multiplies_bfloat16():
            return False
        images = self._feed.blank(2)
        if self._recipe.first_size < 1:
            images = resized(images, self._recipe.first_size, 0.0)
        return learns_wrongly(self.network, images)

    def rate(self) -> float:
        """See :func:`schedule`."""
        recipe = self._recipe
        return recipe.learning_rate * schedule(self.progress, recipe.warmup, recipe.schedule)

    def gradients(self) -> Tensor:
        """Gradients of the mean loss over a batch."""
        if self.step % self._per_epoch == 0:
            self.network.train()
        recipe = self._recipe
        drawn, images, targets, soft = self._ahead[self.step]
        if recipe.first_size < 1:
            images = resized(images, recipe.first_size, self.progress)
        torch.manual_seed(seed_of(recipe.seed, 0xD20, self.step))  # what dropout draws is the step's own
        with autocast(images.device, on_cpu=True) if self._is_low else contextlib.nullcontext():
            logits = self.network(images)
        of_labels = self._loss(logits.float(), targets)
        loss = self._taught(of_labels, logits.float(), soft)
        if drawn.weights is not None:
            loss = loss * torch.from_numpy(drawn.weights).to(loss.device)
        loss = loss.mean()
        loss.backward()
        if self._pruned:  # not before, as a GPU would be waited for
            self._pruned.tell(drawn.indices, of_labels.detach().cpu().numpy())
        return loss.detach()

    @property
    def _reduction(self) -> Reduction:
        return "none" if self._pruned else "mean"

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss by the labels: the mean of a batch, or of each image where some are left out."""
        return class_loss(
            logits,
            targets,
            several=self._several,
            weights=self._class_weights,
            smoothing=self._recipe.label_smoothing,
            reduction=self._reduction,
        )

    def _taught(self, loss: Tensor, logits: Tensor, soft: Tensor | None) -> Tensor:
        """A loss by labels with the teacher's part in it."""
        if soft is None:
            return loss
        recipe, weights = self._recipe, self._class_weights
        if self._several:
            taught = distance_of_each(logits, soft, recipe.temperature, weights)
        else:
            taught = distance(logits, soft, recipe.temperature, weights, self._reduction)
        share = recipe.distillation * (1 - (1 - recipe.distillation_left) * self.progress)
        return (1 - share) * loss + share * taught

    def _draw(self, step: int) -> Drawn:
        """Which images a step has."""
        if self._pruned is not None:
            return self._pruned[step]
        return Drawn(self._batches[step], None, step // self._batches.per_pass)

    def _batch(self, step: int, drawn: Drawn) -> _Batch:
        """Images and targets of a step; a function of its number and images alone."""
        indices = torch.from_numpy(drawn.indices)
        images, targets = self._feed(drawn.indices)
        if self._augmentation is not None:
            generator = torch.Generator(images.device)
            generator.manual_seed(seed_of(self._recipe.seed, 0xA09, step))
            images, targets = self._augmentation(
                images, targets, generator, epoch=drawn.which, indices=indices
            )
        soft = None
        if self._teacher is not None:
            soft = self._teacher[indices] / self._tempering
        return _Batch(drawn, images, targets, soft)

    def after_step(self, loss: float) -> None:
        """Close an epoch with its last step, or with the last step that time allows."""
        if self.step % self._per_epoch and not self.is_over:
            return
        measured = None
        if self.evaluate or self.is_over:
            measured = self._measured()
        epoch = math.ceil(self.step / self._per_epoch)
        mean = sum(self.stretch) / len(self.stretch) if self.stretch else math.inf
        self.stretch = []
        entry = Epoch(epoch, mean, measured, self.skipped)
        self.history.append(entry)
        if self.on_epoch:
            self.on_epoch(entry)

    def _measured(self) -> float:
        """How good the weights are that training would end with now; keeps the best."""
        if self.average is None:
            result = self.measure()
            weights = self.network.state_dict()
        else:
            own = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.average.values)
            result = self.measure()
            self.network.load_state_dict(own)
            weights = self.average.values
        if self._recipe.keep_best and (self.best is None or result >= self.best.accuracy):
            self.best = Best(result, {name: value.detach().clone() for name, value in weights.items()})
        return result

    @property
    def may_save(self) -> bool:
        """At the ends of epochs; in between too when checkpoints have a time of their own."""
        return super().may_save and (self.saves_within or self.step % self._per_epoch == 0)

    def close(self) -> None:
        """Stop making batches."""
        self._ahead.close()

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Loop`; and the best epoch, and what is shown next."""
        best = None if self.best is None else [self.best.accuracy, self.best.weights]
        pruned = None if self._pruned is None else self._pruned.state_dict()
        return {**super().state_dict(), "best": best, "pruned": pruned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read :meth:`state_dict` back."""
        super().load_state_dict(state)
        self.best = None if state["best"] is None else Best(*state["best"])
        if self._pruned is not None:
            self._pruned.load_state_dict(state["pruned"])
        self.network.train()


def _optimiser(network: nn.Module, recipe: Recipe, steps: int) -> torch.optim.Optimizer:
    """SGD: weights decay, biases and norms do not; biases may have a rate of their own.

    Filters that mix channels have Muon where the recipe says so and the network has norms, without which
    their scale matters. Depthwise ones are no matrices, and a last layer needs the scale of its gradient.
    """
    filters = {id(value) for value in mixing_filters(network)} if recipe.optimiser == "muon" else set()
    mixing: list[Tensor] = []
    decayed: list[Tensor] = []
    scales: list[Tensor] = []
    biases: list[Tensor] = []
    for name, value in network.named_parameters():
        if not value.requires_grad:
            continue
        if value.dim() > 1:
            (mixing if id(value) in filters and bool(value.any()) else decayed).append(value)
        else:
            is_bias = name.endswith("bias") or name.startswith("biases.")
            (biases if is_bias else scales).append(value)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay, "share": 1.0},
        {"params": scales, "weight_decay": 0.0, "share": 1.0},
        {"params": biases, "weight_decay": 0.0, "share": recipe.bias_rate},
    ]
    rate, momentum = recipe.learning_rate, recipe.momentum
    muon = [{"params": mixing, "share": recipe.muon_rate / max(1, steps) ** 0.5}]
    rest = [group for group in groups if group["params"]]
    made: list[torch.optim.Optimizer] = []
    if rest:
        made.append(torch.optim.SGD(rest, lr=rate, momentum=momentum, nesterov=momentum > 0))
    if mixing:
        low = recipe.precision == "auto" and (mixing[0].is_cuda or multiplies_bfloat16())
        made.append(Muon(muon, rate, momentum, low))
    return Together(*made) if len(made) > 1 else made[0]


def mixing_filters(network: nn.Module) -> list[Tensor]:
    """Filters of convolutions that mix channels, in a network with norms: what Muon can train. None where it
    has no norms, since Muon keeps the scale of what it trains.

    Other parameters with several axes, such as embeddings of places and scales of layers, need their scale.
    """
    layers = list(network.modules())
    if not any(isinstance(layer, NORMS) for layer in layers):
        return []
    filters = [layer.weight for layer in layers if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    for layer in layers:
        if isinstance(layer, Network):
            filters += layer.weights.values()
    return [value for value in filters if value.dim() > 2 and value.shape[1] > 1]


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights of classes, float32 [K], inverse to their images; their mean over the images is 1."""
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))


def weights_of_presence(targets: Tensor) -> Tensor:
    """For each class images without it over images with it, float32 [K], 1 to 20; targets [N, K]."""
    there = targets.sum(0)
    return ((len(targets) - there) / there.clamp_min(1)).clamp(1, 20)


def distance(
    logits: Tensor,
    soft: Tensor,
    temperature: float,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of two answers [B, K] at a temperature, times its square (Hinton et al. 2015); with
    weights of the classes [K] as labels have them, else a teacher would undo these.
    """
    wanted = F.softmax(soft / temperature, 1)
    found = F.cross_entropy(logits / temperature, wanted, weight=weights, reduction=reduction)
    return found * temperature**2


def distance_of_each(
    logits: Tensor, soft: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """:func:`distance` of classes that do not exclude each other: of each class by itself, their mean."""
    wanted = torch.sigmoid(soft / temperature)
    found = F.binary_cross_entropy_with_logits(logits / temperature, wanted, pos_weight=weights)
    return found * temperature**2


def tempering(logits: np.ndarray, confidence: float) -> float:
    """What a teacher's logits [N, K] are divided by, so that they are no surer than that; 1 and more.

    A network that has its training images by heart answers them with certainty, which tells a student nothing
    beside the label and takes the label's smoothing away.

    Args:
        logits: float32 [N, K]; some rows of many tell how sure they are.
        confidence: largest mean top probability.
    """
    few = torch.from_numpy(logits[:: max(1, len(logits) // TEMPERED)])

    def is_surer(temperature: float) -> bool:
        return F.softmax(few / temperature, 1).amax(1).mean().item() > confidence

    low, high = 0.0, MOST_TEMPERING  # logarithms
    if not is_surer(1.0):
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_surer(math.exp(middle)) else (low, middle)
    return math.exp(high)


def resized(images: Tensor, first: float, progress: float) -> Tensor:
    """Images [B, C, H, W] at the size of this part of a training, in whole fours; volumes as they are."""
    share = first + (1 - first) * min(1.0, progress / WHOLE_SIZE_FROM)
    if images.dim() != 4 or share >= 1:
        return images
    size = [max(4, min(side, 4 * round(side * share / 4))) for side in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def schedule(progress: float, warmup: float, shape: Schedule = "cosine") -> float:
    """Factor of the learning rate at a share of the training: linear warm-up, then down to 0."""
    if progress < warmup:
        return progress / warmup
    left = (1 - progress) / max(1e-9, 1 - warmup)
    return left if shape == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def accuracy(
    network: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: torch.device | str = "cpu",
    *,
    batch: int | None = None,
) -> float:
    """Share of a split's images that a network puts into the right class.

    The mean average precision of the classes instead, where they do not exclude each other.
    """
    if split.targets is not None:
        answers = answers_of(network, split, preprocessing, device, batch=batch)
        return mean_average_precision(answers, split.targets)
    right = sum(
        int((logits.argmax(1) == labels).sum())
        for logits, labels in _outputs(network, split, preprocessing, torch.device(device), batch)
    )
    return right / len(split.labels)


def mean_recall(
    network: nn.Module, split: Split, preprocessing: Preprocessing, device: torch.device | str = "cpu"
) -> float:
    """Mean over the classes that a split has images of: the share of them that are put into it.

    As :func:`accuracy` where classes do not exclude each other: that is a mean over the classes already.
    """
    if split.targets is not None:
        return accuracy(network, split, preprocessing, device)
    answers = answers_of(network, split, preprocessing, device).argmax(1)
    return mean_over_classes(answers == split.labels, split.labels)


def mean_over_classes(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that there are of the mean over their images; values and labels [N]."""
    images, sums = np.bincount(labels), np.bincount(labels, weights=values)
    return float(np.mean(sums[images > 0] / images[images > 0]))


def measure_of(recipe: Recipe) -> Measure:
    """What tells how good a network is: :func:`accuracy`, or :func:`mean_recall` where a recipe balances
    classes, which a class of most images would decide alone otherwise.
    """
    return accuracy if recipe.balance == "none" else mean_recall


def evaluation_batch(images: np.ndarray, most: int = EVALUATION_BATCH) -> int:
    """Images [N, *S, C] that a network answers for at a time: in training a batch of larger ones is small,
    too, and memory that suffices there has to suffice for judging.
    """
    return max(1, min(most, EVALUATION_PIXELS // int(np.prod(images.shape[1:-1]))))


def answers_of(
    network: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: torch.device | str = "cpu",
    *,
    batch: int | None = None,
) -> np.ndarray:
    """Logits float32 [N, K] of a split's images, so many at a time; :func:`evaluation_batch` without."""
    outputs = _outputs(network, split, preprocessing, torch.device(device), batch)
    found: np.ndarray = torch.cat([logits.cpu() for logits, _ in outputs]).numpy()
    return found


def _outputs(
    network: nn.Module, split: Split, preprocessing: Preprocessing, device: torch.device, batch: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [B, K] in float32, and what a :class:`Feed` gives beside the images, of consecutive batches."""
    batch = batch or evaluation_batch(split.images)
    network.to(device)
    training = network.training
    network.eval()
    feed = Feed(split, preprocessing, device)
    try:
        with torch.inference_mode():
            for start in range(0, len(feed), batch):
                images, labels = feed(np.arange(start, min(start + batch, len(feed))))
                yield network(images).float(), labels
    finally:
        network.train(training)


def _first(split: Split, count: int) -> Split:
    return split.take(slice(count))


def _job_name(network: nn.Module) -> str:
    """What is trained: an architecture's key, or the kind, size and modules of a hand-made network, which may
    be changed between two commands that are the same.
    """
    if isinstance(network, Network):
        return f"{network.architecture.key} {network.norm}"
    parameters = [(name, tuple(value.shape)) for name, value in network.named_parameters()]
    modules = re.sub(r" at 0x[0-9a-f]+", "", f"{network} {parameters}")  # of functions that it holds
    known = hashlib.sha256(modules.encode()).hexdigest()[:16]
    return f"{type(network).__name__} {sum(value.numel() for value in network.parameters())} {known}"
