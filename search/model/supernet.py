"""Every network of a space at once: the HyperNet's filters and the shared ones.

The second source of weights beside :class:`smash_search.model.interpreter.Network`. 1x1 convolutions of
ops are
generated; all others are learned parameters that every architecture shares, cut to the size it asks
for: centre-cropped kernels, the first channels (SMASH paper, section 3.2). BatchNorm stands only at the
end of blocks, and its statistics belong to one architecture: they are the batch's own in training, and
recomputed from training images before scoring or freezing (:meth:`Supernet.statistics`).

    Glossary of shapes: as in smash_search.model.interpreter
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smash_base.errors import InvalidInputError
from smash_search.model.hypernet import HyperNet, HyperNetConfig, normalised
from smash_search.model.interpreter import Affine, Network, convolution_shapes, forward, norm_channels
from smash_search.space.architecture import SLOTS, Architecture, InputSpec
from smash_search.space.encoding import Layout
from smash_search.space.space import Space

NORM_EPSILON = 1e-5


class Moments(NamedTuple):
    """Mean and (biased) variance per channel at one norm of one architecture."""

    mean: Tensor
    variance: Tensor


Statistics = Mapping[str, Moments]


class Supernet(nn.Module):
    """A HyperNet and the shared parameters of a space, for one input and class count.

    Args:
        space: what architectures may ask for.
        input_spec: channels and size of the images; the axes must be the space's.
        classes: K.
        config: of the HyperNet.
    """

    def __init__(
        self,
        space: Space,
        input_spec: InputSpec,
        classes: int,
        config: HyperNetConfig | None = None,
    ) -> None:
        super().__init__()
        if space.dims != input_spec.dims:
            raise InvalidInputError(
                "space and input differ in axes", expected=space.dims, received=input_spec.dims
            )
        config = config or HyperNetConfig()
        self.space, self.input_spec, self.classes = space, input_spec, classes
        self.hypernet = HyperNet(Layout(space, config.compression), config)
        self.filters = nn.ParameterDict()
        self.gains = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.scales = nn.ParameterDict()
        self.shifts = nn.ParameterDict()
        unit, largest = space.unit, max(space.kernels)
        kernel, ones = (largest,) * space.dims, (1,) * space.dims
        widths = [max(choices) * unit for choices in space.widths]
        banks = space.max_banks * max(space.bank_units) * unit
        self._share("stem", (widths[0], input_spec.channels, *(space.stem_kernel,) * space.dims))
        units, bottleneck = space.max_units * unit, space.max_bottleneck * unit
        for i in range(space.blocks):
            for slot in range(SLOTS):
                channels = bottleneck if slot in (0, 2) else units
                self._share(f"blocks.{i}.convs.{slot}", (units, channels, *kernel))
            last = i + 1 == space.blocks
            end = "head" if last else f"blocks.{i}.transition"
            outputs = (classes, banks) if last else (widths[i + 1], banks, *ones)
            self._share(end, outputs)
            self.scales[_key(end)] = nn.Parameter(torch.ones(banks))
            self.shifts[_key(end)] = nn.Parameter(torch.zeros(banks))

    def _share(self, name: str, shape: tuple[int, ...]) -> None:
        weight = torch.empty(shape)
        # The norm sets the size of a filter that is used; the size of this one only decides how far a
        # step of Adam turns it. With a standard deviation of 1 training does not start at all.
        nn.init.normal_(weight, std=1 / math.sqrt(math.prod(shape[1:])))
        self.filters[_key(name)] = nn.Parameter(weight)
        self.gains[_key(name)] = nn.Parameter(torch.tensor(2.0**0.5))
        self.biases[_key(name)] = nn.Parameter(torch.zeros(shape[0]))

    def shared(self, name: str, shape: tuple[int, ...]) -> Affine:
        """A shared convolution cut to ``shape`` [outputs, inputs / groups, *kernel]."""
        key = _key(_shared_name(name))
        whole = self.filters[key]
        cut = [slice(0, shape[0]), slice(0, shape[1])]
        for have, want in zip(whole.shape[2:], shape[2:], strict=True):
            start = (have - want) // 2
            cut.append(slice(start, start + want))
        weight = normalised(whole[tuple(cut)]) * self.gains[key]
        return Affine(weight, self.biases[key][: shape[0]])

    def source(
        self,
        architecture: Architecture,
        statistics: Statistics | None = None,
        *,
        c: Tensor | None = None,
        noise_seed: int | None = None,
    ) -> Generated:
        """Weights of one architecture, ready for :func:`smash_search.model.interpreter.forward`.

        Args:
            architecture: inside the space.
            statistics: of its norms; None normalises by each batch's own, as in training.
            c: in place of its own encoding (see :meth:`HyperNet.generate`).
            noise_seed: of c's noise channel; None takes the architecture's own fixed one.
        """
        seed = int(architecture.key, 16) if noise_seed is None else noise_seed
        return Generated(self, architecture, self.hypernet.generate(architecture, c, seed), statistics)

    def forward(
        self, architecture: Architecture, images: Tensor, statistics: Statistics | None = None
    ) -> Tensor:
        """[B, C, *S] -> logits [B, K] with generated weights."""
        return forward(architecture, self.source(architecture, statistics), images)

    @torch.no_grad()
    def statistics(
        self, architecture: Architecture, batches: Iterable[Tensor], source: Generated | None = None
    ) -> dict[str, Moments]:
        """Moments of every norm of an architecture over batches of training images.

        Each batch is normalised by its own moments on the way, as in training; the variance is that
        within the batches and that between their means.
        """
        source = source or self.source(architecture)
        source.fixed = None
        seen: dict[str, list[Moments]] = {}
        for batch in batches:
            forward(architecture, source, batch)
            for name, moments in source.seen.items():
                seen.setdefault(name, []).append(moments)
        together = {}
        for name, parts in seen.items():
            means = torch.stack([part.mean for part in parts])
            within = torch.stack([part.variance for part in parts]).mean(0)
            together[name] = Moments(means.mean(0), within + means.var(0, correction=0))
        return together

    @torch.no_grad()
    def materialise(self, architecture: Architecture, statistics: Statistics) -> dict[str, np.ndarray]:
        """Frozen weights of an architecture: generated and shared ones, norms folded
        (smash_search.model.interpreter).
        """
        source = self.source(architecture, statistics)
        frozen: dict[str, np.ndarray] = {}
        for name, _ in convolution_shapes(architecture, self.input_spec, self.classes):
            weight, bias = source.affine(name)
            frozen[f"{name}.weight"] = _array(weight)
            frozen[f"{name}.bias"] = np.zeros(weight.shape[0], np.float32) if bias is None else _array(bias)
        for name, _ in norm_channels(architecture, "none"):
            owner = name.removesuffix(".norm")
            scale, shift = source.scale_and_shift(name)
            frozen[f"{owner}.scale"], frozen[f"{owner}.shift"] = _array(scale), _array(shift)
        return frozen

    @torch.no_grad()
    def copy_to(self, network: Network, statistics: Statistics) -> None:
        """Give a network of norm "none" the generated and shared weights, and its norms' statistics.

        Raises:
            InvalidInputError: the network normalises inside ops, where this one has no norm.
        """
        if network.norm != "none":
            raise InvalidInputError(
                "generated weights fit networks without norms inside ops",
                expected='norm "none"',
                received=network.norm,
            )
        source = self.source(network.architecture, statistics)
        for name, _ in convolution_shapes(network.architecture, self.input_spec, self.classes):
            weight, bias = source.affine(name)
            network.weights[_key(name)].copy_(weight)
            network.biases[_key(name)].zero_()
            if bias is not None:
                network.biases[_key(name)].copy_(bias)
        for name, channels in norm_channels(network.architecture, "none"):
            norm, key = network.norms[_key(name)], _key(name.removesuffix(".norm"))
            norm.running_mean.copy_(statistics[name].mean)  # type: ignore[operator]
            norm.running_var.copy_(statistics[name].variance)  # type: ignore[operator]
            norm.weight.copy_(self.scales[key][:channels])  # type: ignore[operator]
            norm.bias.copy_(self.shifts[key][:channels])  # type: ignore[operator]


class Generated:
    """Weights of one architecture out of a supernet: a
    :class:`smash_search.model.interpreter.WeightSource`.
    """

    def __init__(
        self,
        supernet: Supernet,
        architecture: Architecture,
        filters: Mapping[str, Tensor],
        statistics: Statistics | None,
    ) -> None:
        self.fixed = statistics
        self.seen: dict[str, Moments] = {}  # moments of the last batch, when none are fixed
        self._supernet, self._filters = supernet, filters
        self._shapes = dict(convolution_shapes(architecture, supernet.input_spec, supernet.classes))

    def affine(self, name: str) -> Affine:
        """Generated for the 1x1 convolutions of ops, shared for all others."""
        if name in self._filters:
            return Affine(self._filters[name], None)
        return self._supernet.shared(name, self._shapes[name])

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """BatchNorm at the end of blocks; nothing inside ops."""
        if name != "head.norm" and not name.endswith(".transition.norm"):
            return x
        key, channels = _key(name.removesuffix(".norm")), x.shape[1]
        scale, shift = self._supernet.scales[key][:channels], self._supernet.shifts[key][:channels]
        if self.fixed is not None:
            mean, variance = self.fixed[name]
            return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, NORM_EPSILON)
        count = x.numel() // channels
        if not torch.is_grad_enabled() and count == 1:  # which PyTorch refuses to take moments of
            self.seen[name] = Moments(x.float().flatten(), torch.zeros_like(scale))
            return F.batch_norm(x, *self.seen[name], scale, shift, False, 0.0, NORM_EPSILON)
        if not torch.is_grad_enabled():
            # With momentum 1 the running statistics become the batch's own, in the one pass that normalises
            # (torch.var_mean over channels_last takes ten times as long). Their variance is the unbiased one.
            mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
            x = F.batch_norm(x, mean, variance, scale, shift, True, 1.0, NORM_EPSILON)
            self.seen[name] = Moments(mean, variance * ((count - 1) / count))
            return x
        return F.batch_norm(x, None, None, scale, shift, True, 0.0, NORM_EPSILON)

    def scale_and_shift(self, name: str) -> tuple[Tensor, Tensor]:
        """The fixed norm ``name`` as x * scale + shift."""
        if self.fixed is None:
            raise InvalidInputError("norm statistics are not fixed", expected="recomputed ones")
        mean, variance = self.fixed[name]
        key = _key(name.removesuffix(".norm"))
        scale = self._supernet.scales[key][: len(mean)] / (variance + NORM_EPSILON).sqrt()
        return scale, self._supernet.shifts[key][: len(mean)] - mean * scale


def _shared_name(name: str) -> str:
    """Ops of a block share their convolutions: blocks.i.ops.j.convs.k -> blocks.i.convs.k."""
    parts = name.split(".")
    return ".".join([*parts[:2], *parts[4:]]) if ".ops." in name else name


def _key(name: str) -> str:
    return name.replace(".", "__")


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
