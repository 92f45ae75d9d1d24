"""Training of one network with its own weights: what finalists, freezing and every baseline use.

SGD with Nesterov momentum and a cosine per step, as the original program trains its winner (smash paper,
section 4), with a short warm-up, weight decay on weights only (biases and norms decay nothing), label
smoothing, and a moving average of the weights as an option. Works on any module from images to logits, so
that hand-made networks are compared under the same recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Preprocessing
from smash_search.model.interpreter import Network, Norm
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.train.compute import (
    Augment,
    Average,
    Batches,
    DivergedError,
    Feed,
    augmentation_of,
    autocast,
    load_checkpoint,
    memory_format,
    memory_guard,
    save_checkpoint,
    seed_of,
)

if TYPE_CHECKING:
    from smash_search.data import Dataset, Split

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images; the cosine ends with the last one.
        batch: images per step.
        learning_rate: highest, reached after the warm-up.
        warmup: share of the steps over which the learning rate grows from 0.
        momentum: of Nesterov's method.
        weight_decay: on weights of convolutions and of the linear layer.
        label_smoothing: share of the target spread over all classes.
        average: decay of the moving average that replaces the weights at the end, or 0.
        clip: largest norm of the gradient, or 0 for no limit.
        augmentation: arguments of :class:`smash_search.data.augment.Augmentation`; empty for none.
        include_validation: train on training and validation images (after all choices are made).
        epoch_images: most images of an epoch, or 0 for all. Shorter epochs go through all images in turn.
        seed: of the order of images and of the augmentation.
        most_bad_steps: steps in a row with NaN or infinity that are skipped before giving up.
    """

    epochs: int = 30
    batch: int = 64
    learning_rate: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    average: float = 0.0
    clip: float = 5.0
    augmentation: dict[str, Any] = field(default_factory=dict)
    include_validation: bool = False
    epoch_images: int = 0
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
            "label_smoothing": (0, 0.99),
            "average": (0, 0.999999),
            "clip": (0, 1e9),
            "most_bad_steps": (0, 10**6),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not low <= value <= high:
                raise InvalidInputError(f"recipe field {name!r}", expected=f"{low} to {high}", received=value)

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


@dataclass(frozen=True)
class FitResult:
    """What training gave.

    Attributes:
        accuracy: on the validation images after the last epoch, 0 to 1.
        history: per epoch: ``epoch`` (from 1), ``loss`` (mean over its steps), ``accuracy`` (validation;
            None where it was not asked for), ``skipped`` (steps so far that gave NaN or infinity).
        steps: steps done in all, those before a resumption included.
        skipped: those of them that gave NaN or infinity.
        seconds: of this call; differs from run to run.
    """

    accuracy: float
    history: list[dict[str, Any]]
    steps: int
    skipped: int
    seconds: float


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
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    evaluate: bool = True,
) -> FitResult:
    """Train a network in place; it is left in evaluation mode with its final (or averaged) weights.

    On a CPU with one number of threads the result depends on the initial weights, the data and the recipe
    only, whether or not the job was interrupted.

    Args:
        network: images [B, C, *S] -> logits [B, K]; its present weights are the start.
        dataset: training and validation images.
        recipe: how.
        device: where; the network is moved there.
        checkpoint: file that is written after epochs and continued from when it exists.
        checkpoint_seconds: shortest time between two checkpoints; 0 writes one after every epoch.
        on_epoch: called with each entry of the history.
        evaluate: measure validation accuracy after every epoch, not only after the last.

    Raises:
        DivergedError: too many steps in a row gave NaN or infinity.
        OutOfMemoryError: the batch does not fit into the memory of a GPU.
        UsageError: the checkpoint belongs to another job.
    """
    device = torch.device(device)
    split = joined(dataset.train, dataset.validation) if recipe.include_validation else dataset.train
    feed = Feed(split, dataset.preprocessing, device)
    dims = dataset.train.images.ndim - 2
    network.to(device)
    network.to(memory_format=memory_format(dims, device))  # type: ignore[call-overload]
    augmentation = {"classes": len(dataset.classes), **recipe.augmentation} if recipe.augmentation else {}
    loop = _Loop(network, feed, recipe, augmentation_of(augmentation))
    identity = {"recipe": recipe.to_json(), "data": dataset.fingerprint, "job": _job_name(network)}
    loaded = load_checkpoint(checkpoint, identity) if checkpoint else None
    if loaded is not None:
        loop.load_state_dict(loaded["state"])
    start = saved = time.monotonic()
    for epoch in range(loop.epochs_done, recipe.epochs):
        with memory_guard(device, recipe.batch, "--batch"):
            loss = loop.epoch(epoch)
        last = epoch + 1 == recipe.epochs
        measured = None
        if evaluate or last:
            measured = _accuracy_with(loop, dataset, device)
        entry = {"epoch": epoch + 1, "loss": loss, "accuracy": measured, "skipped": loop.skipped}
        loop.history.append(entry)
        if checkpoint and (last or time.monotonic() - saved >= checkpoint_seconds):
            save_checkpoint(checkpoint, identity, {"state": loop.state_dict()})
            saved = time.monotonic()
        if on_epoch:
            on_epoch(entry)
    if loop.average is not None:
        network.load_state_dict(loop.average.values)
    network.eval()
    final = loop.history[-1]["accuracy"] if loop.history else None
    if final is None:
        final = accuracy(network, dataset.validation, dataset.preprocessing, device)
    seconds = time.monotonic() - start
    return FitResult(final, loop.history, loop.step, loop.skipped, seconds)


class _Loop:
    """State of one training: everything that a checkpoint holds, and one epoch of it."""

    def __init__(
        self,
        network: nn.Module,
        feed: Feed,
        recipe: Recipe,
        augmentation: Augment | None,
    ) -> None:
        self.network, self._feed, self._recipe, self._augmentation = network, feed, recipe, augmentation
        decayed = [value for value in network.parameters() if value.dim() > 1]
        others = [value for value in network.parameters() if value.dim() <= 1]
        self._optimiser = torch.optim.SGD(
            [
                {"params": decayed, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        self.average = Average(network, recipe.average) if recipe.average else None
        self._batches = Batches(recipe.seed, len(feed), recipe.batch)
        self._steps_per_epoch = self._batches.per_pass
        if recipe.epoch_images:
            self._steps_per_epoch = min(self._steps_per_epoch, max(1, recipe.epoch_images // recipe.batch))
        self.step = self.skipped = self._bad_in_a_row = self.epochs_done = 0
        self.history: list[dict[str, Any]] = []

    def epoch(self, epoch: int) -> float:
        """One pass over the images, or a part of one; returns the mean loss of its good steps."""
        self.network.train()
        losses: list[Tensor] = []
        for _ in range(self._steps_per_epoch):
            loss = self._one_step(self._batches[self.step])
            self.step += 1
            if loss is None:
                self._count_bad()
                continue
            self._bad_in_a_row = 0
            losses.append(loss)
            if self.average is not None:
                self.average.update(self.network)
        self.epochs_done = epoch + 1
        return float(torch.stack(losses).mean()) if losses else math.inf

    def _one_step(self, indices: np.ndarray) -> Tensor | None:
        """The loss, or None when the step was skipped because of NaN or infinity."""
        recipe = self._recipe
        rate = recipe.learning_rate * schedule(
            self.step, self._steps_per_epoch * recipe.epochs, recipe.warmup
        )
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        images, labels = self._feed(indices)
        targets = labels
        if self._augmentation is not None:
            generator = torch.Generator(images.device)
            generator.manual_seed(seed_of(recipe.seed, 0xA09, self.step))
            images, targets = self._augmentation(images, labels, generator)
        buffers = [value for value in self.network.buffers() if value.is_floating_point()]
        held = [value.clone() for value in buffers]
        with autocast(images.device):
            logits = self.network(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip or math.inf)
        if not bool(torch.isfinite(norm + loss.detach())):
            torch._foreach_copy_(buffers, held)  # BatchNorm has taken the bad batch in already
            return None
        self._optimiser.step()
        return loss.detach()

    def _count_bad(self) -> None:
        self.skipped += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row > self._recipe.most_bad_steps:
            raise DivergedError(
                f"training gave NaN or infinity in {self._bad_in_a_row} steps in a row, "
                f"the last of them step {self.step}",
                hint=f"Lower the learning rate (now {self._recipe.learning_rate}).",
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "counters": [self.step, self.skipped, self._bad_in_a_row, self.epochs_done],
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.skipped, self._bad_in_a_row, self.epochs_done = state["counters"]
        self.history = list(state["history"])


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at a step: linear warm-up, then half a cosine down to 0."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))


def _accuracy_with(loop: _Loop, dataset: Dataset, device: torch.device) -> float:
    """Validation accuracy with the weights that training would end with now."""
    network = loop.network
    if loop.average is None:
        return accuracy(network, dataset.validation, dataset.preprocessing, device)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(loop.average.values)
    result = accuracy(network, dataset.validation, dataset.preprocessing, device)
    network.load_state_dict(own)
    return result


def accuracy(
    network: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: torch.device | str = "cpu",
    *,
    batch: int = EVALUATION_BATCH,
) -> float:
    """Share of a split's images that a network puts into the right class."""
    right = sum(
        int((logits.argmax(1) == labels).sum())
        for logits, labels in _outputs(network, split, preprocessing, torch.device(device), batch)
    )
    return right / len(split.labels)


def _outputs(
    network: nn.Module, split: Split, preprocessing: Preprocessing, device: torch.device, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [B, K] in float32 and labels [B] of consecutive batches."""
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


def joined(first: Split, second: Split) -> Split:
    """Two splits as one; for training on everything but the test images."""
    return replace(
        first,
        images=np.concatenate([first.images, second.images]),
        labels=np.concatenate([first.labels, second.labels]),
    )


def _job_name(network: nn.Module) -> str:
    """What is trained: an architecture's key, or the kind and size of a hand-made network."""
    if isinstance(network, Network):
        return f"{network.architecture.key} {network.norm}"
    return f"{type(network).__name__} {sum(value.numel() for value in network.parameters())}"
