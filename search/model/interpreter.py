"""The one interpreter of architectures, and the two sources of weights that it runs with.

    Glossary of shapes
    B  images of a batch      C  channels of the image      *S  spatial axes: H, W or D, H, W
    N  channels of a bank     R  banks an op reads           M  bottleneck     U  units     K  classes

:func:`forward` is the method of the paper (section 3.1) and knows nothing of where weights come from.
:class:`Network` owns its weights: what is trained and frozen. :mod:`smash_search.model.hypernet` generates
them.
Because both go through :func:`forward`, a frozen network equals its generated one by construction.

:func:`fold` turns either into plain arrays with every norm folded in: the *frozen weights* that the
exporter and the bundle take. Names and meaning:

    stem.weight [N0, C, *k], stem.bias                     convolution, then ReLU
    blocks.i.ops.j.reduce.weight [M, R N, 1, 1], .bias     generated in a search
    blocks.i.ops.j.convs.k.weight [U, in/groups, *k], .bias
    blocks.i.transition.scale, .shift [banks N]            all banks * scale + shift, ReLU, halve
    blocks.i.transition.weight [next N, banks N, 1, 1], .bias
    head.scale, head.shift [banks N]                       all banks * scale + shift, ReLU, average
    head.weight [K, banks N], head.bias
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from smash_search.space.architecture import LEAKY_SLOPE, Architecture, Block, Conv, InputSpec, Op

Norm = Literal["sandwich", "none"]


class Affine(NamedTuple):
    """Weight and bias of a convolution or of the linear layer; the bias may be absent."""

    weight: Tensor
    bias: Tensor | None


class WeightSource(Protocol):
    """Where the interpreter gets weights and normalisation from.

    Names are those of the frozen weights. ``normalise`` is called at every place where a norm may
    stand and returns its argument unchanged where the source has none.
    """

    def affine(self, name: str) -> Affine:
        """Weight and bias of one convolution, or of the linear layer "head"."""

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """[B, channels, *S] -> the same shape."""


def forward(architecture: Architecture, source: WeightSource, images: Tensor) -> Tensor:
    """Run a batch of normalised images through an architecture: [B, C, *S] -> logits [B, K]."""
    stem = architecture.stem
    x = _convolve(images, source.affine("stem"), stem.kernel, stride=stem.stride)
    x = F.relu(source.normalise("stem.norm", x))  # [B, N0, *S]
    last = len(architecture.blocks) - 1
    for index, block in enumerate(architecture.blocks):
        where = f"blocks.{index}"
        x = run_block(where, block, source, x)  # [B, banks N, *S]
        norm = "head.norm" if index == last else f"{where}.transition.norm"
        x = F.relu(source.normalise(norm, x))
        if index < last:
            # The 1x1 convolution and the average commute; this order does a quarter of the work.
            x = _convolve(halve(x), source.affine(f"{where}.transition"), (1,) * architecture.dims)
    x = x.flatten(2).mean(2)  # [B, banks N]
    weight, bias = source.affine("head")
    return F.linear(x, weight, bias)


def run_block(where: str, block: Block, source: WeightSource, x: Tensor) -> Tensor:
    """Fill the banks with the input, run the ops, return all banks: -> [B, banks N, *S]."""
    n = block.bank_channels
    banks: list[Tensor | None] = [*_chunks(x, n), *[None] * (block.banks - block.input_banks)]
    for index, op in enumerate(block.ops):
        output = run_op(f"{where}.ops.{index}", op, source, _gather(banks, op.reads, x, n))
        chunks = _chunks(output, n)  # m of [B, N, *S]
        for position, bank in enumerate(op.writes):
            chunk = chunks[position % len(chunks)]
            held = banks[bank]
            banks[bank] = chunk if held is None else held + chunk
    return _gather(banks, range(block.banks), x, n)


def _chunks(x: Tensor, n: int) -> Sequence[Tensor]:
    """[B, m N, *S] -> m of [B, N, *S]; nothing is split into one part, which not every exporter takes."""
    if x.shape[1] == n:
        return (x,)
    parts = x.split(n, 1)
    return [_packed(part) for part in parts] if _sums_views_slowly(x) else parts


def _sums_views_slowly(x: Tensor) -> bool:
    """Whether a sum of some of the channels is faster when they are copied first.

    In bfloat16 and channels_last on a CPU, 8 of 16 channels, batch 64, 28x28, take 0.83 ms to add as they
    are, 0.16 ms to copy and then 0.08 ms to add. Never while a graph is recorded.
    """
    return _runs_on_cpu(x) and x.dtype == torch.bfloat16 and x.dim() == 4


def _runs_on_cpu(x: Tensor) -> bool:
    """Whether what is done to x runs on a CPU now, and no exporter records it."""
    return x.device.type == "cpu" and not (is_tracing() or torch.compiler.is_compiling())


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _Concatenation(torch.autograd.Function):
    """torch.cat along channels whose gradients are copies, not views (:func:`_sums_views_slowly`)."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.sizes = [part.shape[1] for part in parts]
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(_packed(part) for part in gradients[0].split(ctx.sizes, 1))


def run_op(where: str, op: Op, source: WeightSource, x: Tensor) -> Tensor:
    """One layer: [B, R N, *S] -> [B, U, *S] (paper, figure 2)."""
    x = source.normalise(f"{where}.norm_in", x)
    x = _convolve(x, source.affine(f"{where}.reduce"), (1,) * (x.dim() - 2))
    x = source.normalise(f"{where}.norm_reduced", x)  # [B, M, *S]
    first = _branch(where, op, 0, source, x)
    if op.convs[2] is None:
        return first
    second = _branch(where, op, 2, source, x)
    return first * torch.sigmoid(second) if op.gate else first + second


def _branch(where: str, op: Op, slot: int, source: WeightSource, x: Tensor) -> Tensor:
    for number in (slot, slot + 1):
        conv = op.convs[number]
        if conv is None:
            break
        name = f"{where}.convs.{number}"
        if number % 2:
            x = source.normalise(f"{name}.norm", x)
        x = _convolve(
            activate(conv.activation, x), source.affine(name), conv.kernel, conv.dilation, conv.groups
        )
    return x


def activate(name: str, x: Tensor) -> Tensor:
    """The nonlinearity called ``name`` in an Architecture."""
    match name:
        case "relu":
            return F.relu(x)
        case "leaky_relu":
            return F.leaky_relu(x, LEAKY_SLOPE)
        case "tanh":
            return torch.tanh(x)
    return x


def halve(x: Tensor) -> Tensor:
    """Average over windows of 2 along every spatial axis longer than 1."""
    window = [2 if size > 1 else 1 for size in x.shape[2:]]
    if max(window) == 1:
        return x
    return F.avg_pool2d(x, window) if len(window) == 2 else F.avg_pool3d(x, window)


def _gather(banks: list[Tensor | None], reads: tuple[int, ...] | range, like: Tensor, n: int) -> Tensor:
    parts = []
    for bank in reads:
        held = banks[bank]
        if held is None:  # nothing wrote it: zeros, as in the paper
            held = like.new_zeros((like.shape[0], n, *like.shape[2:]))
        parts.append(held)
    if len(parts) == 1:
        return parts[0]
    if torch.is_grad_enabled() and _sums_views_slowly(parts[0]):
        whole: Tensor = _Concatenation.apply(*parts)  # type: ignore[no-untyped-call]
        return whole
    return torch.cat(parts, 1)


def _convolve(
    x: Tensor,
    affine: Affine,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    stride: tuple[int, ...] | None = None,
) -> Tensor:
    dims = len(kernel)
    dilation = dilation or (1,) * dims
    padding = tuple((size - 1) // 2 * step for size, step in zip(kernel, dilation, strict=True))
    convolution = F.conv2d if dims == 2 else F.conv3d
    weight = affine.weight
    if groups > 1 and _dense_is_faster(x, groups, weight.shape[0]):
        weight, groups = block_diagonal(weight, groups), 1
    return convolution(x, weight, affine.bias, stride or (1,) * dims, padding, dilation, groups)


def _dense_is_faster(x: Tensor, groups: int, outputs: int) -> bool:
    """Whether PyTorch runs a grouped convolution faster as a dense one with zeros.

    On CPUs it does for groups of one or two channels in networks of few channels. Measured, forward and
    backward, batch 64, 14x14, 5x5, channels_last, AVX-512: 16 channels in 8 groups in bfloat16 5.0 ms and
    dense 2.3, in float32 4.1 and 4.0 (AVX2: 5.0 and 4.6); but 32 in 8 groups 6.0 and 15.3, 48 in 4 groups
    17.6 and 33.7 ms. Volumes are not channels_last on a CPU and have slow gradients of grouped ones.
    Exporters must see what the architecture says.
    """
    if not _runs_on_cpu(x):
        return False
    inputs = x.shape[1]
    if x.dim() == 5:
        return inputs <= 48 and not (groups == inputs <= 8)
    low = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
    if not low and groups == inputs <= 8:
        return False
    return min(inputs, outputs) // groups <= 2 and inputs <= (32 if low else 16)


def block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """The dense filter of a grouped convolution: [O, I/groups, *k] -> [O, I, *k]."""
    outputs, inputs, *kernel = weight.shape
    eye = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    parts = weight.view(groups, outputs // groups, 1, inputs, *kernel)
    spread = parts * eye.view(groups, 1, groups, 1, *[1] * len(kernel))
    return spread.reshape(outputs, groups * inputs, *kernel)


# -------------------------------------------------------------------------------- a network's own


class Shape(NamedTuple):
    """One convolution of an architecture: its name and the shape of its weight."""

    name: str
    weight: tuple[int, ...]


def convolution_shapes(architecture: Architecture, input_spec: InputSpec, classes: int) -> Iterator[Shape]:
    """Every convolution, and the linear layer "head", in the order in which they run."""
    ones = (1,) * architecture.dims
    blocks = architecture.blocks
    yield Shape("stem", (blocks[0].channels_in, input_spec.channels, *architecture.stem.kernel))
    for i, block in enumerate(blocks):
        for j, op in enumerate(block.ops):
            where = f"blocks.{i}.ops.{j}"
            yield Shape(f"{where}.reduce", (op.bottleneck, len(op.reads) * block.bank_channels, *ones))
            for slot, conv in enumerate(op.convs):
                if conv is not None:
                    yield Shape(f"{where}.convs.{slot}", conv_weight_shape(op, slot, conv))
        if i + 1 < len(blocks):
            wanted = blocks[i + 1].channels_in
            yield Shape(f"blocks.{i}.transition", (wanted, block.channels_out, *ones))
    yield Shape("head", (classes, blocks[-1].channels_out))


def conv_weight_shape(op: Op, slot: int, conv: Conv) -> tuple[int, ...]:
    """[U, in / groups, *kernel]: branch starts take the bottleneck, second convolutions the units."""
    channels = op.bottleneck if slot in (0, 2) else op.units
    return (op.units, channels // conv.groups, *conv.kernel)


def norm_channels(architecture: Architecture, norm: Norm) -> Iterator[tuple[str, int]]:
    """Every place where a network of that norm has a BatchNorm, with its channels.

    "none" normalises where the paper does, at the end of each block. "sandwich" adds one before and
    after each 1x1 convolution, between stacked convolutions and after the stem, as the original
    program does when it trains the winner.
    """
    blocks = architecture.blocks
    if norm == "sandwich":
        yield "stem.norm", blocks[0].channels_in
    for i, block in enumerate(blocks):
        if norm == "sandwich":
            for j, op in enumerate(block.ops):
                where = f"blocks.{i}.ops.{j}"
                yield f"{where}.norm_in", len(op.reads) * block.bank_channels
                yield f"{where}.norm_reduced", op.bottleneck
                for slot in (1, 3):
                    if op.convs[slot] is not None:
                        yield f"{where}.convs.{slot}.norm", op.units
        name = "head.norm" if i + 1 == len(blocks) else f"blocks.{i}.transition.norm"
        yield name, block.channels_out


class Network(nn.Module):
    """An architecture with its own weights: what is trained, frozen and traced.

    Args:
        architecture, input_spec, classes: what to build.
        norm: "sandwich" to train from scratch; "none" to hold generated weights exactly.

    Input [B, C, *S], normalised; output logits [B, K].
    """

    def __init__(
        self,
        architecture: Architecture,
        input_spec: InputSpec,
        classes: int,
        norm: Norm = "sandwich",
    ) -> None:
        super().__init__()
        self.architecture, self.input_spec, self.classes, self.norm = (
            architecture,
            input_spec,
            classes,
            norm,
        )
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.norms = nn.ModuleDict()
        for name, shape in convolution_shapes(architecture, input_spec, classes):
            self.weights[_key(name)] = nn.Parameter(torch.empty(shape))
            self.biases[_key(name)] = nn.Parameter(torch.zeros(shape[0]))
        kind = nn.BatchNorm2d if architecture.dims == 2 else nn.BatchNorm3d
        for name, channels in norm_channels(architecture, norm):
            self.norms[_key(name)] = kind(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation for convolutions (their inputs are rectified), small for the classifier."""
        for name, weight in self.weights.items():
            if name == "head":
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
            else:
                nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def affine(self, name: str) -> Affine:
        """See :class:`WeightSource`."""
        return Affine(self.weights[_key(name)], self.biases[_key(name)])

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """See :class:`WeightSource`."""
        key = _key(name)
        return self.norms[key](x) if key in self.norms else x

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, *S] -> [B, K]."""
        return forward(self.architecture, self, images)


def _key(name: str) -> str:
    return name.replace(".", "__")  # module names may not hold dots


# --------------------------------------------------------------------------------------- folding


def fold(network: Network) -> dict[str, np.ndarray]:
    """Frozen weights of a network: float32 arrays under the names in the head of this file.

    Exact: a norm before a 1x1 convolution, or after a convolution and before its activation, becomes
    part of it. A norm between stacked convolutions follows one, too. Folded in float64.
    """
    network_norms = {
        name: _scale_and_shift(network.norms[_key(name)])
        for name, _ in norm_channels(network.architecture, network.norm)
    }
    folded: dict[str, np.ndarray] = {}
    for name, _ in convolution_shapes(network.architecture, network.input_spec, network.classes):
        weight = _array(network.weights[_key(name)])
        bias = _array(network.biases[_key(name)])
        before, after = _norms_around(name)
        if before in network_norms:
            scale, shift = network_norms[before]
            flat = weight.reshape(*weight.shape[:2], -1).sum(2)  # 1x1: the one tap
            bias = bias + flat @ shift
            weight = weight * scale.reshape(1, -1, *[1] * (weight.ndim - 2))
        if after in network_norms:
            scale, shift = network_norms[after]
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = bias * scale + shift
        folded[f"{name}.weight"], folded[f"{name}.bias"] = weight, bias
    for name, (scale, shift) in network_norms.items():
        if name == "head.norm" or name.endswith(".transition.norm"):
            owner = name.removesuffix(".norm")
            folded[f"{owner}.scale"], folded[f"{owner}.shift"] = scale, shift
    return {name: np.ascontiguousarray(value, np.float32) for name, value in folded.items()}


def _norms_around(name: str) -> tuple[str, str]:
    """Names of the norms that run directly before and directly after a convolution."""
    if name == "stem":
        return "", "stem.norm"
    if name.endswith(".reduce"):
        where = name.removesuffix(".reduce")
        return f"{where}.norm_in", f"{where}.norm_reduced"
    if name[-1] in "02" and ".convs." in name:
        return "", f"{name[:-1]}{int(name[-1]) + 1}.norm"
    return "", ""


def _scale_and_shift(norm: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    deviation = np.sqrt(_array(norm.running_var) + norm.eps)  # type: ignore[arg-type]
    scale = _array(norm.weight) / deviation  # type: ignore[arg-type]
    return scale, _array(norm.bias) - _array(norm.running_mean) * scale  # type: ignore[arg-type]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


class FrozenNetwork(nn.Module):
    """An architecture over frozen weights, in plain PyTorch: the reference that every export must equal.

    Args:
        architecture: the network.
        weights: what :func:`fold` returned.
    """

    def __init__(self, architecture: Architecture, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.architecture = architecture
        for name, value in weights.items():
            self.register_buffer(_key(name), torch.from_numpy(value.copy()))

    def affine(self, name: str) -> Affine:
        """See :class:`WeightSource`."""
        return Affine(self._get(f"{name}.weight"), self._get(f"{name}.bias"))

    def normalise(self, name: str, x: Tensor) -> Tensor:
        """Scale and shift at the end of blocks; everything else is folded."""
        if name != "head.norm" and not name.endswith(".transition.norm"):
            return x
        owner = name.removesuffix(".norm")
        view = (1, -1, *[1] * (x.dim() - 2))
        return x * self._get(f"{owner}.scale").view(view) + self._get(f"{owner}.shift").view(view)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, *S] -> [B, K]."""
        return forward(self.architecture, self, images)

    def _get(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, _key(name))
        return tensor
