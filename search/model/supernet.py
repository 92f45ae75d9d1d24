"""Every network of a space at once: the HyperNet's filters and the shared ones.

The second source of weights beside :class:`smash_search.model.interpreter.Network`. 1x1 convolutions of
ops are generated; all others are learned parameters that architectures share, cut to the size they ask for:
centre-cropped kernels, the first channels (SMASH paper, section 3.2). BatchNorm stands at the end of blocks,
and inside ops if :class:`HyperNetConfig` says so. Its statistics belong to one architecture: they are the
batch's own in training, and recomputed from training images before scoring or freezing
(:meth:`Supernet.statistics`).

    Glossary of shapes: as in smash_search.model.interpreter
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smash_base.errors import InvalidInputError
from smash_search.model.hypernet import HyperNet, HyperNetConfig, cut, normalised
from smash_search.model.interpreter import Affine, Network, fold, forward, norm_places
from smash_search.space.architecture import SLOTS, Architecture, Convolution, InputSpec
from smash_search.space.encoding import Layout
from smash_search.space.space import Space

NORM_EPSILON = 1e-5
POSITION_KERNEL = (
    5  # of filters that each op of a block has for itself; larger kernels are surrounded by zeros
)


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
        config: Configuration of the HyperNet, and of what is shared and normalised.
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
        self.space, self.input_spec, self.classes, self.config = space, input_spec, classes, config
        self.hypernet = HyperNet(Layout(space, config.compression), config)
        self.filters = nn.ParameterDict()
        self.gains = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.scales = nn.ParameterDict()
        self.shifts = nn.ParameterDict()
        unit, ones = space.unit, (1,) * space.dims
        widths = [max(choices) * unit for choices in space.widths]
        for stride in space.stem_strides:
            kernel = space.stem(stride).kernel
            self._share(_stem_name(space, stride), (widths[0], input_spec.channels, *kernel))
        if config.norm == "sandwich":
            self._share_norm("stem.norm", widths[0])
        for i in range(space.blocks):
            for where in self._owners(i):
                self._share_op(where, widths[i])
            last = i + 1 == space.blocks
            end, banks = "head" if last else f"blocks.{i}.transition", self._most_banks(i)
            self._share(end, (classes, banks) if last else (widths[i + 1], banks, *ones))
            self._share_norm(f"{end}.norm", banks)

    def _most_banks(self, block: int) -> int:
        """Channels of all banks of a block, at most."""
        space = self.space
        written = max(space.widths[block]) + space.max_ops * space.max_units
        return min(space.max_banks * max(space.bank_units), written) * space.unit

    def _owners(self, block: int) -> list[str]:
        """Names under which the convolutions of a block's ops are shared."""
        if self.config.sharing == "block":
            return [f"blocks.{block}"]
        return [f"blocks.{block}.ops.{number}" for number in range(self.space.max_ops)]

    def _share_op(self, where: str, width: int) -> None:
        """What ops at one place share, as large as the space allows; more channels repeat what there is."""
        space = self.space
        kernel = (max(space.kernels),) * space.dims
        units, bottleneck = space.max_units * space.unit, space.max_bottleneck * space.unit
        if self.config.sharing == "position":  # one set for each op: no larger than regular networks need
            units, bottleneck = min(units, width), min(bottleneck, width)
            kernel = (min(max(space.kernels), POSITION_KERNEL),) * space.dims
        slots = range(SLOTS if any(pattern[2] == "1" for pattern, share in space.patterns if share) else 2)
        for slot in slots:
            self._share(f"{where}.convs.{slot}", (units, units if slot % 2 else bottleneck, *kernel))
        if space.depthwise:
            most = max(space.max_units, space.max_bottleneck) * space.unit
            for slot in slots:
                self._share(f"{where}.depthwise.{slot}", (most, 1, *(max(space.kernels),) * space.dims))
        most = space.widest_op.units
        for part in space.widest_op.convolutions(most, space.dims):
            if not part.generated:
                self._share(f"{where}.{part.name}", part.weight_shape)
        if self.config.norm == "sandwich":
            for name, channels in self._norms_of_op(width):
                self._share_norm(f"{where}.{name}", channels)

    def _norms_of_op(self, width: int) -> list[tuple[str, int]]:
        space = self.space
        most = max(space.max_units, space.max_bottleneck) * space.unit
        between = [(f"convs.{slot}.norm", most) for slot in (1, 3)]
        return [
            ("norm_in", most),
            ("norm_reduced", most),
            *between,
            ("norm_convolved", most),
            ("norm_out", most),
        ]

    def _share(self, name: str, shape: tuple[int, ...]) -> None:
        weight = torch.empty(shape)
        # The norm sets the size of a filter that is used; the size of this one only decides how far a
        # step of Adam turns it. With a standard deviation of 1 training does not start at all.
        nn.init.normal_(weight, std=1 / math.sqrt(math.prod(shape[1:])))
        self.filters[_key(name)] = nn.Parameter(weight)
        self.gains[_key(name)] = nn.Parameter(torch.tensor(2.0**0.5))
        self.biases[_key(name)] = nn.Parameter(torch.zeros(shape[0]))

    def _share_norm(self, name: str, channels: int) -> None:
        self.scales[_key(name)] = nn.Parameter(torch.ones(channels))
        self.shifts[_key(name)] = nn.Parameter(torch.zeros(channels))

    def shared_name(self, part: Convolution, architecture: Architecture) -> str:
        """Under which name a convolution that is not generated is kept here."""
        if part.name == "stem":
            return _stem_name(self.space, architecture.stem.stride[0])
        words = part.name.split(".")
        if ".ops." not in part.name:
            return part.name
        owner = words[:2] if self.config.sharing == "block" else words[:4]
        what = words[4:]
        if what[0] == "convs" and part.groups == part.inputs == part.outputs > 1 and self.space.depthwise:
            what = ["depthwise", what[1]]
        return ".".join([*owner, *what])

    def shared(self, parts: Iterable[Convolution], architecture: Architecture) -> dict[str, Affine]:
        """Shared convolutions, by name, cut to what the architecture asks for."""
        users: dict[str, list[Convolution]] = {}
        for part in parts:
            users.setdefault(_key(self.shared_name(part, architecture)), []).append(part)
        affine = {}
        for key, sharing in users.items():
            cuts = _Cuts.apply(self.filters[key], *[part.weight_shape for part in sharing])  # type: ignore[no-untyped-call]
            for part, whole in zip(sharing, cuts, strict=True):
                weight = normalised(whole) * self.gains[key]
                affine[part.name] = Affine(weight, cut(self.biases[key], (part.outputs,)))
        return affine

    def norm_parameters(self, name: str, channels: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of the norm ``name`` of an architecture, [channels] each."""
        if ".ops." in name and self.config.sharing == "block":
            words = name.split(".")
            name = ".".join([*words[:2], *words[4:]])
        key = _key(name)
        return cut(self.scales[key], (channels,)), cut(self.shifts[key], (channels,))

    def source(
        self,
        architecture: Architecture,
        statistics: Statistics | None = None,
        *,
        c: Tensor | None = None,
        noise_seed: int | None = None,
        zeroed: bool = False,
    ) -> Generated:
        """Weights of one architecture, ready for :func:`smash_search.model.interpreter.forward`.

        Args:
            architecture: inside the space.
            statistics: Statistics of its norms; None normalises by each batch's own, as in training.
            c: in place of its own encoding (see :meth:`HyperNet.generate`).
            noise_seed: Seed of c's noise channel; None takes the architecture's own fixed one.
            zeroed: zeros in place of all generated filters, to see what they contribute.
        """
        seed = int(architecture.key, 16) if noise_seed is None else noise_seed
        filters = self.hypernet.generate(architecture, c, seed)
        if zeroed:
            filters = {name: torch.zeros_like(value) for name, value in filters.items()}
        return Generated(self, architecture, filters, statistics)

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
        (:mod:`smash_search.model.interpreter`).
        """
        network = Network(architecture, self.input_spec, self.classes, self.config.norm)
        self.copy_to(network, statistics)
        return fold(network)

    @torch.no_grad()
    def copy_to(self, network: Network, statistics: Statistics) -> None:
        """Give a network of the same norm the generated and shared weights, and its norms' statistics.

        Raises:
            InvalidInputError: the network normalises at other places than this one.
        """
        if network.norm != self.config.norm:
            raise InvalidInputError(
                "generated weights fit networks that normalise where the HyperNet was trained to",
                expected=f'norm "{self.config.norm}"',
                received=network.norm,
            )
        source = self.source(network.architecture, statistics)
        for part in network.architecture.convolutions(self.input_spec.channels, self.classes):
            weight, bias = source.affine(part.name)
            network.weights[_key(part.name)].copy_(weight)
            network.biases[_key(part.name)].zero_()
            if bias is not None:
                network.biases[_key(part.name)].copy_(bias)
        for place in norm_places(network.architecture, network.norm):
            norm = network.norms[_key(place.name)]
            scale, shift = self.norm_parameters(place.name, place.channels)
            norm.running_mean.copy_(statistics[place.name].mean)  # type: ignore[operator]
            norm.running_var.copy_(statistics[place.name].variance)  # type: ignore[operator]
            norm.weight.copy_(scale)  # type: ignore[operator]
            norm.bias.copy_(shift)  # type: ignore[operator]


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
        self._supernet = supernet
        parts = architecture.convolutions(supernet.input_spec.channels, supernet.classes)
        shared = supernet.shared([part for part in parts if part.name not in filters], architecture)
        self._affine = {**shared, **{name: Affine(weight, None) for name, weight in filters.items()}}
        self._norms = {place.name for place in norm_places(architecture, supernet.config.norm)}

    def affine(self, name: str) -> Affine:
        """Generated for the 1x1 convolutions of ops, shared for all others."""
        return self._affine[name]

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """BatchNorm at the end of blocks, and inside ops where the HyperNet was trained so."""
        if name not in self._norms:
            return x
        channels = x.shape[1]
        scale, shift = self._supernet.norm_parameters(name, channels)
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


def _stem_name(space: Space, stride: int) -> str:
    """Stems of different strides have kernels of different sizes and see different neighbourhoods."""
    return "stem" if len(space.stem_strides) == 1 else f"stem.{stride}"


class _Cuts(torch.autograd.Function):
    """What all convolutions that share a filter cut from it, see :func:`smash_search.model.hypernet.cut`.

    Their gradients are summed where they belong in one that is as large as the filter. PyTorch makes one of
    zeros for each of them, and for each axis that is cut: a tenth of a step in the space "edge", whose
    filters have up to seven million weights.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(whole)
        return tuple(cut(whole, shape).clone() for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = torch.zeros_like(ctx.saved_tensors[0])
        for gradient in gradients:
            _add_cut(total, gradient)
        return (total, *[None] * len(gradients))


def _add_cut(whole: Tensor, part: Tensor) -> None:
    """Add a part to where :func:`smash_search.model.hypernet.cut` took it from; repeated channels add up."""
    for axis in range(2, whole.dim()):
        have, wanted = whole.shape[axis], part.shape[axis]
        if wanted < have:
            whole = whole.narrow(axis, (have - wanted) // 2, wanted)
        else:
            part = part.narrow(axis, (wanted - have) // 2, have)
    for rows in part.split(whole.shape[0], 0):
        for block in rows.split(whole.shape[1], 1):
            whole[: block.shape[0], : block.shape[1]].add_(block)


def _key(name: str) -> str:
    return name.replace(".", "__")
