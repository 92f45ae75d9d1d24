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
    blocks.i.ops.j.squeeze.weight [S, U, 1, 1], .bias      squeeze-excitation, where an op has it
    blocks.i.ops.j.excite.weight [U, S, 1, 1], .bias
    blocks.i.ops.j.project.weight [U, M, 1, 1], .bias      generated, where an op has it
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
from torch.nn.grad import conv2d_weight

from smash_search.space.architecture import LEAKY_SLOPE, Architecture, Block, InputSpec, NormPlace, Op

Norm = Literal["sandwich", "none"]

WIDEST_RIGHT = 28  # pixels up to which gradients of dilated groups in bfloat16 are right


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
            x = average(x, architecture.blocks[index + 1].pool)
            x = _convolve(x, source.affine(f"{where}.transition"), (1,) * architecture.dims)
    x = _mean_of_pixels(x)  # [B, banks N]
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
    ones = (1,) * (x.dim() - 2)
    if op.reduce:
        x = source.normalise(f"{where}.norm_in", x)
        x = _convolve(x, source.affine(f"{where}.reduce"), ones)
        x = source.normalise(f"{where}.norm_reduced", x)  # [B, M, *S]
    branches = [_branch(where, op, slots, source, x) for slots in op.branches()]
    if len(branches) == 2:
        x = branches[0] * torch.sigmoid(branches[1]) if op.gate else branches[0] + branches[1]
    elif branches:
        x = branches[0]
    x = source.normalise(f"{where}.norm_convolved", x)
    if op.project is not None:
        x = activate(op.project, x)
    if op.squeeze:
        x = x * _excitation(where, source, x)
    if op.project is not None:
        x = _convolve(x, source.affine(f"{where}.project"), ones)
        x = source.normalise(f"{where}.norm_out", x)
    return x


def _excitation(where: str, source: WeightSource, x: Tensor) -> Tensor:
    """One factor per channel, from the channels' means (Hu et al. 2018): -> [B, C, 1, 1]."""
    ones = (1,) * (x.dim() - 2)
    pooled = _mean_of_pixels(x).view(*x.shape[:2], *ones)
    hidden = F.relu(_convolve(pooled, source.affine(f"{where}.squeeze"), ones))
    return torch.sigmoid(_convolve(hidden, source.affine(f"{where}.excite"), ones))


def _mean_of_pixels(x: Tensor) -> Tensor:
    """[B, C, *S] -> [B, C]; channels_last tensors would be copied to have one axis of pixels."""
    if _runs_on_cpu(x):
        return x.mean(tuple(range(2, x.dim())))
    return x.flatten(2).mean(2)


def _branch(where: str, op: Op, slots: tuple[int, ...], source: WeightSource, x: Tensor) -> Tensor:
    for slot in slots:
        conv = op.convs[slot]
        assert conv is not None  # active
        name = f"{where}.convs.{slot}"
        if slot != slots[0]:
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
        case "relu6":
            return F.relu6(x)
        case "hard_swish":
            return F.hardswish(x)
    return x


def average(x: Tensor, window_size: int) -> Tensor:
    """Average over windows of that size, or of the whole axis where it is shorter, along every spatial
    axis.
    """
    window = [min(window_size, size) for size in x.shape[2:]]
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
    dilation, stride = dilation or (1,) * dims, stride or (1,) * dims
    padding = tuple((size - 1) // 2 * step for size, step in zip(kernel, dilation, strict=True))
    convolution = F.conv2d if dims == 2 else F.conv3d
    weight = affine.weight
    if _runs_on_cpu(x):
        is_low = torch.is_grad_enabled() and _multiplies_low(x)
        if is_low and has_wrong_gradients(tuple(x.shape[2:]), kernel, stride, dilation, groups):
            with torch.autocast("cpu", enabled=False):
                exact = Affine(weight.float(), None if affine.bias is None else affine.bias.float())
                return _convolve(x.float(), exact, kernel, dilation, groups, stride).to(torch.bfloat16)
        if _has_slow_depthwise_gradients(x, weight, groups, stride, dilation):
            return _Depthwise.apply(x, weight, affine.bias)  # type: ignore[no-any-return,no-untyped-call]
        fewer = groups_that_run(x, groups, weight.shape[0])
        weight, groups = merged_groups(weight, groups, fewer), fewer
    return convolution(x, weight, affine.bias, stride, padding, dilation, groups)


def has_wrong_gradients(
    sides: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> bool:
    """Whether oneDNN computes wrong gradients of a filter in bfloat16, for maps of these sides.

    They are NaN, infinite, or finite with a relative error near 1 and above (PyTorch 2.13, AVX512-BF16; right
    in float32, which takes twice the time, and with AVX2):

    - for kernels wider than the map, of images where there is a stride (seen at 1x1 alone), of volumes
      always. They read and write memory that is not theirs: some trainings end in "double free".
    - for dilated groups, channels_last, of images wider than 28 pixels.
    """
    is_wide = any(size > side for size, side in zip(kernel, sides, strict=True))
    if is_wide and (len(sides) == 3 or max(stride) > 1):
        return True
    return len(sides) == 2 and groups > 1 and max(dilation) > 1 and sides[1] > WIDEST_RIGHT


def _multiplies_low(x: Tensor) -> bool:
    """Whether a convolution of x is one of bfloat16 on a CPU."""
    return torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16


def groups_that_run(x: Tensor, groups: int, outputs: int) -> int:
    """How many groups a grouped convolution of x runs with on a CPU: fewer, with zeros, are often faster.

    Measured, forward and backward, batch 64, channels_last, AVX-512, bfloat16, in ms: 28x28, 3x3, 16
    channels in 8, 4, 2 groups and dense 6.7, 2.8, 2.0 and 2.1; 32 channels 6.2, 4.5, 4.2 and 7.3; 14x14, 7x7,
    16 channels 4.8, 2.4, 2.3 and 2.5; 64 channels 8.1, 8.5, 15.8 and 32.7. Groups of eight channels are what
    pays. In float32 dense ones do in networks of few channels, groups of one or two channels. Volumes are not
    channels_last on a CPU and have slow gradients of grouped ones. Exporters must see what the architecture
    says.
    """
    inputs = x.shape[1]
    if groups == 1:
        return 1
    if x.dim() == 5:
        return 1 if inputs <= 48 and not (groups == inputs <= 8) else groups
    narrow = min(inputs, outputs)
    if not _multiplies_low(x):
        dense = narrow // groups <= 2 and inputs <= 16 and not (groups == inputs <= 8)
        return 1 if dense else groups
    if groups == inputs == outputs:
        return groups
    wide = [fewer for fewer in range(1, groups + 1) if not groups % fewer and narrow >= 8 * fewer]
    return max(wide, default=1)


def merged_groups(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """A filter for fewer groups with zeros between: [O, I/groups, *k] -> [O, I/fewer, *k]."""
    if fewer == groups:
        return weight
    outputs, inputs, *kernel = weight.shape
    together = groups // fewer
    eye = torch.eye(together, dtype=weight.dtype, device=weight.device)
    parts = weight.view(fewer, together, outputs // groups, 1, inputs, *kernel)
    spread = parts * eye.view(1, together, 1, together, 1, *[1] * len(kernel))
    return spread.reshape(outputs, together * inputs, *kernel)


def _has_slow_depthwise_gradients(
    x: Tensor, weight: Tensor, groups: int, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> bool:
    """Whether :class:`_Depthwise` is faster: kernels above 3x3, whose gradients oneDNN does slowly."""
    if x.dim() != 4 or not torch.is_grad_enabled() or not _multiplies_low(x):
        return False
    depthwise = groups == x.shape[1] == weight.shape[0]
    return depthwise and max(weight.shape[2:]) > 3 and max(*stride, *dilation) == 1


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1 whose gradients are made of fast ones.

    The gradient of the input is a convolution with the turned kernel, that of the kernel is put together from
    those of 3x3 kernels over shifted inputs. Measured, forward and backward, 64 images, 96 channels, 16x16,
    5x5, bfloat16: 6.2 ms, 19.9 ms in oneDNN. In float32 both take about 10 ms.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        padding = [size // 2 for size in weight.shape[2:]]
        return F.conv2d(x, weight, bias, 1, padding, 1, len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = _packed(gradients[0])
        padding = [size // 2 for size in weight.shape[2:]]
        of_x = F.conv2d(gradient, weight.flip(2, 3), None, 1, padding, 1, len(weight))
        of_bias = gradient.sum((0, 2, 3)) if ctx.has_bias else None
        return of_x, _gradient_of_kernel(x, gradient, weight), of_bias


def _gradient_of_kernel(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """[B, C, H, W] twice -> [C, 1, kh, kw], from kernels of at most 3x3."""
    high, wide = weight.shape[2:]
    padded = _packed(F.pad(x, (wide // 2, wide // 2, high // 2, high // 2)))
    result = torch.empty_like(weight)
    for top in _starts(high):
        for left in _starts(wide):
            taps = weight[:, :, top : top + 3, left : left + 3]
            rows, columns = (x.shape[2] + taps.shape[2] - 1, x.shape[3] + taps.shape[3] - 1)
            part = _packed(padded[:, :, top : top + rows, left : left + columns])
            result[:, :, top : top + 3, left : left + 3] = conv2d_weight(
                part, taps.shape, gradient, groups=len(weight)
            )
    return result


def _starts(size: int) -> range:
    """First taps of the parts of at most three taps that cover ``size`` taps, an odd number."""
    return range(0, max(1, size - 2), 2)


# -------------------------------------------------------------------------------- a network's own


def norm_places(architecture: Architecture, norm: Norm) -> Iterator[NormPlace]:
    """Every place where a network of that norm has a BatchNorm.

    "none" normalises where the paper does, at the end of each block; "sandwich" everywhere
    (:meth:`smash_search.space.architecture.Op.norms`).
    """
    for place in architecture.norms():
        if norm == "sandwich" or ends_block(place.name):
            yield place


def ends_block(name: str) -> bool:
    """Whether a norm stands at the end of a block, where it does not fold into a convolution."""
    return name == "head.norm" or name.endswith(".transition.norm")


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
        for part in architecture.convolutions(input_spec.channels, classes):
            self.weights[_key(part.name)] = nn.Parameter(torch.empty(part.weight_shape))
            self.biases[_key(part.name)] = nn.Parameter(torch.zeros(part.outputs))
        kind = nn.BatchNorm2d if architecture.dims == 2 else nn.BatchNorm3d
        for place in norm_places(architecture, norm):
            self.norms[_key(place.name)] = kind(place.channels)
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
    architecture = network.architecture
    folded: dict[str, np.ndarray] = {}
    for part in architecture.convolutions(network.input_spec.channels, network.classes):
        folded[f"{part.name}.weight"] = _array(network.weights[_key(part.name)])
        folded[f"{part.name}.bias"] = _array(network.biases[_key(part.name)])
    for place in norm_places(architecture, network.norm):
        scale, shift = _scale_and_shift(network.norms[_key(place.name)])
        if ends_block(place.name):
            owner = place.name.removesuffix(".norm")
            folded[f"{owner}.scale"], folded[f"{owner}.shift"] = scale, shift
        elif place.before:
            _fold_after(folded, place.before, scale, shift)
        else:
            _fold_before(folded, place.after, scale, shift)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in folded.items()}


def _fold_after(
    folded: dict[str, np.ndarray], names: tuple[str, ...], scale: np.ndarray, shift: np.ndarray
) -> None:
    """A norm of the sum of convolutions: all are scaled, the first one is shifted."""
    for number, name in enumerate(names):
        weight, bias = folded[f"{name}.weight"], folded[f"{name}.bias"]
        folded[f"{name}.weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        folded[f"{name}.bias"] = bias * scale + (0 if number else shift)


def _fold_before(folded: dict[str, np.ndarray], name: str, scale: np.ndarray, shift: np.ndarray) -> None:
    """A norm of what a 1x1 convolution reads."""
    weight = folded[f"{name}.weight"]
    flat = weight.reshape(*weight.shape[:2], -1).sum(2)  # 1x1: the one tap
    folded[f"{name}.bias"] = folded[f"{name}.bias"] + flat @ shift
    folded[f"{name}.weight"] = weight * scale.reshape(1, -1, *[1] * (weight.ndim - 2))


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
        if not ends_block(name):
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
