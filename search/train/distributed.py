"""Several processes that train one HyperNet: ``torchrun`` starts them, gloo or NCCL connects them.

Every rank draws the same architectures and works on its share of them, by slot. The sum of all gradients is
the only thing that is sent in a step: one flat tensor, one ``all_reduce``. DistributedDataParallel is not
used, because each architecture leaves other parameters without a gradient.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smash_base.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: from 0; rank 0 alone reads and writes files.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, or the only process."""
        return self.rank == 0

    def check(self, architectures: int) -> None:
        """Raise UsageError when a rank would have nothing to do in a step."""
        if architectures < self.world:
            raise UsageError(
                f"{self.world} processes share {architectures} architectures per step",
                expected="at least one for each process",
                received=architectures,
                hint=f"Pass --archs-per-step {self.world}, or a multiple of it.",
            )

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients of all ranks in place; returns the sum of the losses.

        Missing gradients are sent as zeros. A parameter that no rank has a gradient for stays without one,
        as in a single process, where Adam leaves it alone.
        """
        if self.world == 1:
            return loss
        there = [float(parameter.grad is not None) for parameter in parameters]
        parts = [
            torch.zeros(parameter.numel(), device=loss.device)
            if parameter.grad is None
            else parameter.grad.reshape(-1)
            for parameter in parameters
        ]
        head = torch.tensor([0.0, *there], device=loss.device)
        head[0] = loss
        flat = torch.cat([head, *parts])
        dist.all_reduce(flat)
        used = flat[1 : len(head)].tolist()
        sums = flat[len(head) :].split([parameter.numel() for parameter in parameters])
        for parameter, summed, count in zip(parameters, sums, used, strict=True):
            parameter.grad = summed.view_as(parameter) if count else None
        return flat[0]

    def leave(self) -> None:
        """Part from the others, all at the same time: what follows is for rank 0 alone."""
        if self.world > 1:
            dist.destroy_process_group()

    def from_first(self, value: Any) -> Any:
        """The value that rank 0 gave; what the others gave does not matter."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; alone without it.

    Args:
        device: where this process computes; decides between gloo and NCCL.
    """
    if world_size() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(name: str) -> str:
    """``cuda`` and ``auto`` as this process's own GPU under torchrun; anything else as it is."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(rank) % torch.cuda.device_count()}"
