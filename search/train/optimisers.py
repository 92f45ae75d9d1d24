"""Optimisers that PyTorch does not have: Muon for filters of convolutions, and two optimisers as one.

An update of SGD is dominated by few directions of a filter. Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) replaces it by the nearest matrix whose singular values are about
one, so that all directions learn at one rate. PyTorch's own takes matrices alone, and one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration in the source: fast rather than exact, singular values end between 0.7 and 1.2."""
ITERATIONS = 3  # five in the source; on CIFAR-10 three trained as well (docs/recipes.md)
EPSILON = 1e-7
LOW_FROM = 64  # rows and columns from which bfloat16 is faster on a CPU that has it


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for filters whose scale does not matter because a norm follows.

    A step turns a filter by a share of its own norm, and the norm stays what it was: there is nothing that
    a decay of the weights would have to keep in bounds.

    Args:
        params: filters [N, M, *] that are not zero, each a matrix of N rows.
        lr: Length of a step, as a share of a filter's norm.
        momentum: Momentum of Nesterov's method.
        low: multiply in bfloat16, as the source does.
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float = 0.9, low: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._low = low

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all filters that have a gradient."""
        for group in self.param_groups:
            filters = [value for value in group["params"] if value.grad is not None]
            if not filters:
                continue
            gradients = [value.grad for value in filters]
            for value in filters:
                if not self.state[value]:
                    self.state[value] = {"momentum": torch.zeros_like(value), "norm": value.norm()}
            held, norms = ([self.state[value][name] for value in filters] for name in ("momentum", "norm"))
            torch._foreach_mul_(held, group["momentum"])
            torch._foreach_add_(held, gradients)
            updates = orthogonal(torch._foreach_add(gradients, held, alpha=group["momentum"]), self._low)
            for value, update, norm in zip(filters, updates, norms, strict=True):
                value.sub_(update * (group["lr"] * norm / update.norm().clamp_min(EPSILON)))
                value.mul_(norm / value.norm())


def orthogonal(updates: Sequence[Tensor], low: bool = False) -> list[Tensor]:
    """Each [N, M, *] as the nearest matrix with rows (or columns, if fewer) at right angles, in its shape.

    Those of one shape are computed together, in bfloat16 if ``low`` and where that is faster.
    """
    places: dict[torch.Size, list[int]] = {}
    matrices = [update.flatten(1) for update in updates]
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.shape, []).append(place)
    found: dict[int, Tensor] = {}
    for shape, alike in places.items():
        stacked = torch.stack([matrices[place] for place in alike])
        turned = _newton_schulz(stacked, low and min(shape) >= LOW_FROM)
        found.update(zip(alike, turned, strict=True))
    return [found[place].view(update.shape) for place, update in enumerate(updates)]


def _newton_schulz(matrices: Tensor, low: bool) -> Tensor:
    """[B, N, M] with singular values brought to about one."""
    first, second, third = COEFFICIENTS
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + EPSILON)
    x = x.bfloat16() if low else x
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = first * x + torch.baddbmm(second * gram, gram, gram, alpha=third) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Together(torch.optim.Optimizer):
    """Two optimisers of different parameters as one.

    Args:
        first, second: share no parameter.
    """

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._both = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.param_groups = [*first.param_groups, *second.param_groups]  # the very ones, for their rates

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Both steps."""
        for one in self._both:
            one.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"both": [one.state_dict() for one in self._both]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both states back."""
        for one, state in zip(self._both, state_dict["both"], strict=True):
            one.load_state_dict(state)
        self.param_groups = [group for one in self._both for group in one.param_groups]
