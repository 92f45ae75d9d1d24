"""Training with int8 rounding in the loop (quantisation-aware fine-tuning): frozen weights to frozen weights.

For networks that lose too many labels when they are only calibrated. The forward pass rounds what an int8
runtime rounds: weights symmetrically per output channel, activations per tensor over a moving range; the
gradient passes rounding as if it were not there (straight-through; Jacob et al. 2018, section 3). What
comes out are float weights again, which calibration then quantises as any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from smash_search.model.interpreter import Affine, ends_block, forward
from smash_search.space.architecture import Architecture

RANGE_DECAY = 0.95
LEVELS = 255


class FakeQuantisedNetwork(nn.Module):
    """Frozen weights as parameters, rounded on their way through the interpreter.

    Args:
        architecture: the network.
        weights: frozen weights (:func:`smash_search.model.interpreter.fold`).
        bits: Bits of a weight; 7 for processors whose 8-bit products saturate.

    Input [B, C, *S], normalised; output logits [B, K].
    """

    def __init__(
        self, architecture: Architecture, weights: Mapping[str, np.ndarray], bits: Literal[7, 8] = 8
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self._largest = 2 ** (bits - 1) - 1
        self.values = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.from_numpy(value.copy())) for name, value in weights.items()}
        )
        for place in architecture.norms():  # wherever a norm may stand, an int8 runtime rounds
            self.register_buffer(_key(place.name), torch.zeros(2))  # lowest and highest value

    def affine(self, name: str) -> Affine:
        """Weight rounded per output channel, bias as it is."""
        weight = self.values[_key(f"{name}.weight")]
        scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-8) / self._largest
        zero = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(
            weight, scale, zero, 0, -self._largest, self._largest
        )
        return Affine(rounded, self.values[_key(f"{name}.bias")])

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """Scale and shift at the end of blocks, then the activation rounded to 8 bits."""
        if not hasattr(self, _key(name)):
            return x
        if ends_block(name):
            owner = name.removesuffix(".norm")
            view = (1, -1, *[1] * (x.dim() - 2))
            scale, shift = self.values[_key(f"{owner}.scale")], self.values[_key(f"{owner}.shift")]
            x = x * scale.view(view) + shift.view(view)
        return self._round(_key(name), x)

    def _round(self, key: str, x: Tensor) -> Tensor:
        held: Tensor = getattr(self, key)
        if self.training:
            seen = torch.stack([x.detach().amin().clamp_max(0), x.detach().amax().clamp_min(0)])
            # 0 is always inside the range, so a range of nothing means that nothing was seen yet
            held.copy_(torch.where((held == 0).all(), seen, held.lerp(seen, 1 - RANGE_DECAY)))
        scale = ((held[1] - held[0]) / LEVELS).clamp_min(1e-8)
        zero = (-held[0] / scale).round().clamp(0, LEVELS).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, *S] -> [B, K]."""
        return forward(self.architecture, self, images)

    def frozen(self) -> dict[str, np.ndarray]:
        """The float weights, as :func:`smash_search.model.interpreter.fold` names them."""
        return {
            _name(key): np.ascontiguousarray(value.detach().cpu().float().numpy())
            for key, value in self.values.items()
        }


def _key(name: str) -> str:
    return name.replace(".", "__")


def _name(key: str) -> str:
    return key.replace("__", ".")
