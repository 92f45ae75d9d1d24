"""Training of the HyperNet: one weight generator for every network of a space (SMASH paper, algorithm 1).

Every step draws some architectures, generates their weights, runs each on a batch of its own, and moves
HyperNet and shared filters along the mean gradient. Several architectures per step make that gradient one
of the space rather than of one network (GHN, OFA).

Everything random about the n-th draw (its architecture, images, augmentation and noise) is a pure function
of (seed, slot), slot = step * architectures per step + position. One process, several ranks and a resumed
run therefore train the same HyperNet.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject, JsonValue
from smash_search.model.interpreter import forward
from smash_search.model.supernet import Supernet
from smash_search.space.architecture import Architecture
from smash_search.space.space import form_of
from smash_search.train.compute import (
    Batches,
    Feed,
    OutOfMemoryError,
    augmentation_of,
    autocast,
    check_mixing,
    class_loss,
    load_checkpoint,
    memory_format,
    memory_guard,
    seed_of,
)
from smash_search.train.distributed import ALONE, Ranks
from smash_search.train.initial import whiten_stems
from smash_search.train.loop import Loop, TrainingLimits
from smash_search.train.optimisers import Together

if TYPE_CHECKING:
    from smash_search.data import Dataset

HISTORY_POINTS = 100  # of the loss over a whole training
WARMUP = 0.02  # share of the steps
MOMENTUM = 0.9  # of SGD
ATTEMPTS = 200  # draws for one slot, where only some are acceptable
# Acceptable draws that later slots take again, where draws are refused: a share of all, within bounds.
KEPT_SHARE, LEAST_KEPT, MOST_KEPT = 0.25, 256, 4096


@dataclass(frozen=True)
class TrainingConfig:
    """How a HyperNet is trained; the defaults are the original program's where it has one.

    Attributes:
        steps: updates; kernels and budgets of the drawn architectures grow with step / steps.
        batch: images of each architecture.
        architectures: drawn per step.
        optimiser: Optimiser of the shared filters and norms: "adam" as in the original program (betas 0.5
            and 0.999, epsilon 1e-4), or "sgd" with Nesterov momentum. The HyperNet itself always has Adam.
        learning_rate: Learning rate of that optimiser; it falls as half a cosine.
        hypernet_rate: the HyperNet's learning rate as a multiple of that of the shared filters. Its filters
            are divided by their norms, so that one step turns them the further the larger they are.
        weight_decay: on shared filters only; generated filters are normalised.
        clip: largest norm of the gradient, or 0 for no limit.
        average: decay of a moving average of all weights that scoring uses, or 0.
        augmentation: arguments of :class:`smash_search.data.augment.Augmentation`; empty for none.
        seed: Random seed of draws, images and noise.
        most_bad_steps: steps in a row with NaN or infinity that are skipped before giving up.
        halve_batch: when a GPU's memory is too small, run each batch in halves instead of stopping.
            BatchNorm then takes its moments over a half.
    """

    steps: int = 2000
    batch: int = 64
    architectures: int = 2
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    hypernet_rate: float = 1.0
    weight_decay: float = 1e-4
    clip: float = 0.0
    average: float = 0.0
    augmentation: JsonObject = field(default_factory=dict)
    seed: int = 0
    most_bad_steps: int = 10
    halve_batch: bool = False

    def __post_init__(self) -> None:
        limits = {
            "steps": (1, 10**8),
            "batch": (2, 2**20),
            "architectures": (1, 4096),
            "learning_rate": (0, 10),
            "hypernet_rate": (0, 1000),
            "weight_decay": (0, 10),
            "clip": (0, 1e9),
            "average": (0, 0.999999),
            "most_bad_steps": (0, 10**6),
        }
        if self.optimiser not in ("adam", "sgd"):
            raise InvalidInputError("training optimiser", expected="adam or sgd", received=self.optimiser)
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not low <= value <= high:
                raise InvalidInputError(
                    f"training field {name!r}", expected=f"{low} to {high}", received=value
                )

    def to_json(self) -> JsonObject:
        """Plain numbers, as config.json holds them."""
        return asdict(self)


@dataclass(frozen=True)
class Stretch:
    """Some consecutive steps of a training.

    Attributes:
        step: Number of the last one.
        loss: Mean loss.
    """

    step: int
    loss: float


@dataclass(frozen=True)
class TrainingResult:
    """What training gave.

    Attributes:
        history: about a hundred stretches of the training.
        counts: how often each choice of the space was trained: "kernel 7" -> number of convolutions. A
            choice with few is under-trained, and networks that use it are scored too low.
        steps: updates done in all.
        skipped: those that gave NaN or infinity.
        seconds: Seconds of this call; differs from run to run.
    """

    history: list[Stretch]
    counts: dict[str, int]
    steps: int
    skipped: int
    seconds: float

    def to_json(self) -> JsonObject:
        """What a run keeps of it: nothing that differs from run to run."""
        history: list[JsonValue] = [asdict(stretch) for stretch in self.history]
        return {"history": history, "skipped": self.skipped, "counts": dict(self.counts)}


def train(
    supernet: Supernet,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    on_step: Callable[[int, float], None] | None = None,
    ranks: Ranks = ALONE,
    accept: Callable[[Architecture], bool] | None = None,
) -> TrainingResult:
    """Train a HyperNet and the shared filters in place; they end as the moving average, if there is one.

    Args:
        supernet: its present weights are the start (:func:`new_supernet`).
        dataset: training images.
        config: how.
        device: where; the supernet is moved there.
        checkpoint: file that is written every ``checkpoint_seconds`` and at the end, and continued from.
        on_step: called after each step with its number from 1 and its loss.
        ranks: processes that train together, all of them in this call; rank 0 alone uses the checkpoint.
        accept: which draws to train on, for example those near a latency limit; the same in every process.

    Raises:
        DivergedError: too many steps in a row gave NaN or infinity; the last good checkpoint stays.
        OutOfMemoryError: the batch does not fit into the memory of a GPU, and may not be halved.
        UsageError: the checkpoint belongs to another job, or images of several classes are mixed.
    """
    ranks.check(config.architectures)
    checkpoint = checkpoint if ranks.is_first else None
    device = torch.device(device)
    if supernet.config.whiten:
        whiten_stems(supernet, dataset)
    supernet.to(device)
    loop = _Loop(supernet, dataset, config, device, ranks, accept)
    identity = {
        "training": config.to_json(),
        "data": dataset.fingerprint,
        "space": supernet.space.to_json(),
        "hypernet": asdict(supernet.hypernet.config),
    }
    loaded = ranks.from_first(load_checkpoint(checkpoint, identity) if checkpoint else None)
    if loaded is not None:
        loop.load_state_dict(loaded["state"])
    start = time.monotonic()
    told = (lambda progress: on_step(progress.step, progress.loss)) if on_step else None
    loop.run(checkpoint=checkpoint, identity=identity, checkpoint_seconds=checkpoint_seconds, on_step=told)
    seconds = time.monotonic() - start
    return TrainingResult(loop.history, dict(sorted(loop.counts.items())), loop.step, loop.skipped, seconds)


class _Loop(Loop[Stretch]):
    """The loop of a HyperNet: architectures of a step, their batches and the mean of their gradients."""

    key = "supernet"
    entry = Stretch

    def __init__(
        self,
        supernet: Supernet,
        dataset: Dataset,
        config: TrainingConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        accept: Callable[[Architecture], bool] | None = None,
    ) -> None:
        self._accept = accept
        self._supernet, self._config, self._device, self._ranks = supernet, config, device, ranks
        self._feed = Feed(dataset.train, dataset.preprocessing, device)
        self._format = memory_format(supernet.space.dims, device)
        check_mixing(config.augmentation, taught=False, several=dataset.several)
        self._augmentation = augmentation_of(config.augmentation)
        filters = [*supernet.filters.parameters(), *supernet.hypernet.bases.parameters()]
        hypernet = list(supernet.hypernet.layers.parameters())
        apart = {id(value) for value in (*filters, *hypernet)}
        others = [value for value in supernet.parameters() if id(value) not in apart]
        shared = [
            {"params": filters, "weight_decay": config.weight_decay, "share": 1.0},
            {"params": others, "weight_decay": 0.0, "share": 1.0},
        ]
        generating = {"params": hypernet, "weight_decay": 0.0, "share": config.hypernet_rate}
        optimiser: torch.optim.Optimizer
        if config.optimiser == "adam":
            optimiser = _adam([*shared, generating], config.learning_rate)
        else:
            descent = torch.optim.SGD(shared, config.learning_rate, momentum=MOMENTUM, nesterov=True)
            optimiser = Together(descent, _adam([generating], config.learning_rate))
        limits = TrainingLimits(
            config.steps, clip=config.clip, average=config.average, most_bad_steps=config.most_bad_steps
        )
        super().__init__(supernet, optimiser, limits)
        self._batches = Batches(seed_of(config.seed, 0xDA7A), len(self._feed), config.batch)
        self._parts = 1  # of a batch, after the memory of a GPU was too small
        self._drawn: list[tuple[int, Architecture]] = []  # of the present step
        self._kept: dict[int, Architecture | None] = {}  # by slot: its acceptable draw, if it has one
        self.counts: Counter[str] = Counter()

    def rate(self) -> float:
        """Half a cosine after a short warm-up."""
        return self._config.learning_rate * cosine(self.step, self._config.steps)

    def gradients(self) -> Tensor:
        """The mean over the architectures of a step, those of other ranks included."""
        self._drawn = self._draw()
        mine = self._drawn[self._ranks.rank :: self._ranks.world]
        loss = self._gradients(mine, len(self._drawn))
        return self._ranks.sum_gradients(list(self._supernet.parameters()), loss)

    def after_step(self, loss: float) -> None:
        """Count what was trained, and note the loss about a hundred times in all."""
        if math.isfinite(loss):
            for _, architecture in self._drawn:
                self.counts.update(choices_of(architecture))
        steps = self._config.steps
        if self.step * HISTORY_POINTS // steps > (self.step - 1) * HISTORY_POINTS // steps and self.stretch:
            self.history.append(Stretch(self.step, sum(self.stretch) / len(self.stretch)))
            self.stretch = []

    def _draw(self) -> list[tuple[int, Architecture]]:
        config, space = self._config, self._supernet.space
        first, progress = self.step * config.architectures, self.step / config.steps
        slots = range(first, first + config.architectures)
        if self._accept is None:
            return [(slot, space.draw(config.seed, slot, progress)) for slot in slots]
        return [(slot, self._accepted(slot)) for slot in slots]

    def _accepted(self, slot: int) -> Architecture:
        """The first acceptable one of the draws that belong to a slot.

        Near a tight limit one draw in a hundred is acceptable, and finding one takes longer than training on
        it, so that slots after the first ones, where their first draw is none, have those again.
        """
        config = self._config
        assert self._accept is not None
        slots = config.steps * config.architectures
        kept = min(max(round(KEPT_SHARE * slots), LEAST_KEPT), MOST_KEPT, slots)
        if slot >= kept:
            drawn = self._attempt(slot, 0, slot / slots)
            if self._accept(drawn):
                return drawn
        return self._kept_draw(slot % kept, kept)

    def _kept_draw(self, slot: int, kept: int) -> Architecture:
        """The same for one of the first slots: where all its draws are refused, what the last slot before it
        has, and its own last draw where no slot before it has any.
        """
        assert self._accept is not None
        for earlier in range(slot, -1, -1):
            if earlier not in self._kept:
                # What is kept goes through all that grows with the training.
                draws = (self._attempt(earlier, attempt, earlier / kept) for attempt in range(ATTEMPTS))
                self._kept[earlier] = next(filter(self._accept, draws), None)
            if (found := self._kept[earlier]) is not None:
                return found
        return self._attempt(slot, ATTEMPTS - 1, slot / kept)

    def _attempt(self, slot: int, attempt: int, progress: float) -> Architecture:
        return self._supernet.space.draw(self._config.seed, slot * ATTEMPTS + attempt, progress)

    def _gradients(self, drawn: list[tuple[int, Architecture]], share: int) -> Tensor:
        """Fill in gradients of the loss, divided by ``share``: the architectures of all ranks.

        A batch too large for the GPU is halved if allowed.
        """
        while True:
            self._optimiser.zero_grad(set_to_none=True)
            batch = self._config.batch // self._parts
            try:
                with memory_guard(self._device, batch, hint=f"Try --batch {max(2, batch // 2)}."):
                    total = torch.zeros((), device=self._device)
                    for slot, architecture in drawn:
                        total += self._backward(slot, architecture, share)
                    return total
            except OutOfMemoryError:
                if not self._config.halve_batch or batch < 4:
                    raise
                self._parts *= 2

    def _backward(self, slot: int, architecture: Architecture, share: int) -> Tensor:
        """Add one architecture's part of the gradient; returns its part of the loss."""
        images, targets = self._batch(slot)
        total = torch.zeros((), device=self._device)
        parts = zip(images.chunk(self._parts), targets.chunk(self._parts), strict=True)
        for part, wanted in parts:
            with autocast(self._device, on_cpu=True):
                source = self._supernet.source(
                    architecture, noise_seed=seed_of(self._config.seed, 0x2015E, slot)
                )
                logits = forward(architecture, source, part)
            loss = class_loss(logits.float(), wanted, several=self._feed.targets is not None)
            loss = loss * (len(part) / len(images) / share)
            loss.backward()
            total += loss.detach()
        return total

    def _batch(self, slot: int) -> tuple[Tensor, Tensor]:
        """Images and targets of a slot: consecutive slots go through permutations of the images."""
        config = self._config
        images, targets = self._feed(self._batches[slot])
        if self._augmentation is not None:
            generator = torch.Generator(images.device)
            generator.manual_seed(seed_of(config.seed, 0xA09, slot))
            images, targets = self._augmentation(images, targets, generator)
        return images.contiguous(memory_format=self._format), targets

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Loop`; and how batches are cut, and what was counted."""
        return {**super().state_dict(), "parts": self._parts, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read :meth:`state_dict` back."""
        super().load_state_dict(state)
        self._parts, self.counts = state["parts"], Counter(state["counts"])


def _adam(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    """On a CPU in one pass over the parameters; on a GPU PyTorch's default has as few kernels."""
    fused = True if groups[0]["params"][0].device.type == "cpu" else None
    return torch.optim.Adam(groups, lr=rate, betas=(0.5, 0.999), eps=1e-4, fused=fused)


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: a short linear warm-up for Adam's moments, then half a cosine to 0."""
    warm = WARMUP * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def choices_of(architecture: Architecture) -> Iterator[str]:
    """Every choice that an architecture made, as "name value", once per place where it was made."""
    for index, block in enumerate(architecture.blocks):
        yield f"block {index} width {block.channels_in}"
        yield f"block {index} ops {len(block.ops)}"
        yield f"bank channels {block.bank_channels}"
        for op in block.ops:
            yield f"form {form_of(op)}"
            yield f"pattern {op.pattern}"
            yield f"reads {len(op.reads)}"
            yield f"writes {len(op.writes)}"
            yield f"units {op.units}"
            yield f"bottleneck {op.bottleneck}"
            if op.gate:
                yield "gate"
            for conv in op.convs:
                if conv is not None:
                    yield f"groups {conv.groups}"
                    yield f"activation {conv.activation}"
                    for size, step in zip(conv.kernel, conv.dilation, strict=True):
                        yield f"kernel {size}"
                        yield f"dilation {step}"


def new_supernet(*arguments: Any, seed: int, **options: Any) -> Supernet:
    """A :class:`Supernet` whose initial weights depend on the seed and on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 0x5EED))
        return Supernet(*arguments, **options)
