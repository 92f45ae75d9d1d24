"""The one training loop: rate, gradients, bad steps, moving average, checkpoints, progress with time left.

What is trained (:mod:`smash_search.train.network`, :mod:`smash_search.train.hypernet`) says how a step's
gradients are made and what follows a step; everything else is here, once. A step depends on the weights and
on its number only, so that a resumed training ends with the bits of an uninterrupted one.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from smash_search.train.compute import (
    Average,
    DivergedError,
    keep_freed_memory,
    load_checkpoint,
    save_checkpoint,
)

BETWEEN = 20  # times the seconds that a checkpoint takes pass before the next one, where it is not asked for


@dataclass(frozen=True)
class TrainingLimits:
    """When a training ends and what it bears.

    Attributes:
        steps: most updates.
        seconds: wall time after which the schedule is at its end whatever the step, or 0 for no limit.
        clip: largest norm of the gradient, or 0 for no limit.
        average: decay of the moving average of the weights, or 0.
        most_bad_steps: steps in a row with NaN or infinity that are skipped before giving up.
    """

    steps: int
    seconds: float = 0.0
    clip: float = 0.0
    average: float = 0.0
    most_bad_steps: int = 10


@dataclass(frozen=True)
class TrainingProgress:
    """What is told after every step.

    Attributes:
        step: its number, from 1.
        steps: Number of steps of the whole training; fewer are done when time ends it.
        loss: Loss of the step; infinite when it was skipped.
        seconds_left: expected, at the pace of this process, with all that it does between its steps.
    """

    step: int
    steps: int
    loss: float
    seconds_left: float


Entry = TypeVar("Entry")
"""Type of an entry of the history: a dataclass."""


class Loop(abc.ABC, Generic[Entry]):
    """State of one training: everything that a checkpoint holds, and one step of it.

    Args:
        module: what is trained.
        optimiser: Optimiser of its parameters; each group's rate is the loop's times the group's ``share``.
        limits: Limits of the training.

    Attributes:
        is_over: whether all steps are done or the time was spent when the last one was. The clock is asked
            once a step, so that the weights that end a training are those that :meth:`after_step` takes for
            the last.
    """

    key = "module"
    """Name of the module's weights in a checkpoint."""
    entry: type[Entry]
    """Type of an entry of the history."""

    def __init__(self, module: nn.Module, optimiser: torch.optim.Optimizer, limits: TrainingLimits) -> None:
        keep_freed_memory()
        self.module, self.limits = module, limits
        self._optimiser = optimiser
        self._parameters = [value for group in optimiser.param_groups for value in group["params"]]
        self._buffers = [value for value in module.buffers() if value.is_floating_point()]
        self._held = [value.clone() for value in self._buffers]
        self.average = Average(module, limits.average) if limits.average else None
        self.step = self.skipped = self._bad_in_a_row = 0
        self.stretch: list[float] = []  # losses since the last entry of the history
        self.history: list[Entry] = []
        self._spent = 0.0  # seconds, before this process took over
        self._started = time.monotonic()
        self._pace = 0.0  # seconds per step
        self.is_over = self._ends_here()

    @abc.abstractmethod
    def rate(self) -> float:
        """The learning rate of the coming step."""

    @abc.abstractmethod
    def gradients(self) -> Tensor:
        """Fill in the gradients of the coming step, which are absent, and return its loss."""

    @abc.abstractmethod
    def after_step(self, loss: float) -> None:
        """What follows a step, such as history; ``loss`` is infinite when the step was skipped."""

    @property
    def may_save(self) -> bool:
        """Whether the present state is worth a checkpoint: after a bad step the next good one is."""
        return not self._bad_in_a_row

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before a resumption included."""
        return self._spent + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Share of the training that is over, 0 to 1, at the middle of the coming step."""
        done = (self.step + 0.5) / max(1, self.limits.steps)
        if self.limits.seconds:
            done = max(done, self.elapsed / self.limits.seconds)
        return min(1.0, done)

    def _ends_here(self) -> bool:
        late = self.limits.seconds and self.elapsed >= self.limits.seconds
        return self.step >= self.limits.steps or bool(late and self.step)

    def run_step(self) -> float:
        """One update; returns its loss, infinite when the step was skipped because of NaN or infinity."""
        rate = self.rate()
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["share"]
        if self._buffers:
            torch._foreach_copy_(self._held, self._buffers)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self.gradients()
        gradients = [value.grad for value in self._parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.limits.clip:
            nn.utils.clip_grads_with_norm_(self._parameters, self.limits.clip, norm)
        value = float(loss)
        self.step += 1
        if math.isfinite(value) and bool(torch.isfinite(norm)):
            self._optimiser.step()
            if self.average is not None:
                self.average.update(self.module)
            self._bad_in_a_row = 0
            self.stretch.append(value)
        else:
            value = math.inf
            if self._buffers:
                torch._foreach_copy_(self._buffers, self._held)  # BatchNorm has taken the batch in already
            self._count_bad(rate)
        self.is_over = self._ends_here()
        self.after_step(value)
        return value

    def _count_bad(self, rate: float) -> None:
        self.skipped += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row > self.limits.most_bad_steps:
            raise DivergedError(
                f"training gave NaN or infinity in {self._bad_in_a_row} steps in a row, "
                f"the last of them step {self.step}",
                hint=f"Lower the learning rate (now {rate:.3g}) or clip the gradient.",
            )

    def run(
        self,
        *,
        checkpoint: Path | None,
        identity: Mapping[str, Any],
        checkpoint_seconds: float,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        """Train to the end; the module is left with its moving average, if there is one.

        Args:
            checkpoint: file that is written on the way and at the end.
            identity: Identity of the job, kept in the checkpoint.
            checkpoint_seconds: shortest time between two checkpoints; longer where writing one takes long
                (1 to 2 seconds for a large HyperNet). 0 writes one whenever there may be one.
            on_step: called after every step.

        Raises:
            DivergedError: too many steps in a row gave NaN or infinity; the last checkpoint stays.
        """
        started, first = time.monotonic(), self.step
        saved, pause = started, checkpoint_seconds
        while not self.is_over:
            loss = self.run_step()
            due = self.may_save and time.monotonic() - saved >= pause
            if checkpoint and (self.is_over or due):
                begin = time.monotonic()
                save_checkpoint(checkpoint, identity, {"state": self.state_dict()})
                saved = time.monotonic()
                if checkpoint_seconds:
                    pause = max(checkpoint_seconds, BETWEEN * (saved - begin))
            self._pace = (time.monotonic() - started) / (self.step - first)
            if on_step:
                on_step(TrainingProgress(self.step, self.limits.steps, loss, self.seconds_left()))
        if self.average is not None:
            self.module.load_state_dict(self.average.values)

    def seconds_left(self) -> float:
        """Expected seconds to the end at the pace so far, at most what the time limit leaves."""
        left = (self.limits.steps - self.step) * self._pace
        if self.limits.seconds:
            left = min(left, self.limits.seconds - self.elapsed)
        return max(0.0, left)

    def resume(self, checkpoint: Path | None, identity: Mapping[str, Any]) -> None:
        """Go on from a checkpoint if there is one; raises UsageError when it is of another job."""
        loaded = load_checkpoint(checkpoint, identity) if checkpoint else None
        if loaded is not None:
            self.load_state_dict(loaded["state"])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; after the last step without moments, which are twice the weights."""
        return {
            self.key: self.module.state_dict(),
            "optimiser": None if self.step >= self.limits.steps else self._optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "counters": [self.step, self.skipped, self._bad_in_a_row],
            "stretch": self.stretch,
            "history": [vars(entry) for entry in self.history],
            "seconds": self.elapsed,
            "over": self.is_over,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read :meth:`state_dict` back."""
        self.module.load_state_dict(state[self.key])
        if state["optimiser"] is not None:
            self._optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.skipped, self._bad_in_a_row = state["counters"]
        self.stretch = list(state["stretch"])
        self.history = [self.entry(**entry) for entry in state["history"]]
        self._spent, self._started = state["seconds"], time.monotonic()
        self.is_over = state["over"] if "over" in state else self._ends_here()  # of an earlier version
