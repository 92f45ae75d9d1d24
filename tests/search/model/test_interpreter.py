"""The interpreter equals a plain, independent reading of the paper, and folding is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from smash_search.model.interpreter import (
    Affine,
    FrozenNetwork,
    Network,
    _convolve,
    _Depthwise,
    fold,
    groups_that_run,
    has_wrong_gradients,
    merged_groups,
)
from smash_search.space.architecture import Architecture, Block, Conv, InputSpec, Op, Stem
from smash_search.space.known import resnet
from tests.search.legal import EVERY_FORM, RICH, VOXELS, drawn, hand_written

SPEC = InputSpec(2, (9, 7))


def plain(architecture: Architecture, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network of frozen weights written as sums into one big tensor of banks, op by op."""
    conv_nd = F.conv2d if architecture.dims == 2 else F.conv3d
    pool_nd = F.avg_pool2d if architecture.dims == 2 else F.avg_pool3d
    ones = [1] * architecture.dims

    def conv(name: str, x: Tensor, dilation: tuple[int, ...] | list[int] = (), **more: object) -> Tensor:
        weight = w[f"{name}.weight"]
        dilation = list(dilation) or ones
        pads = []
        for size, step in zip(reversed(weight.shape[2:]), reversed(dilation), strict=True):
            pads += [(size - 1) * step // 2] * 2
        return conv_nd(F.pad(x, pads), weight, w[f"{name}.bias"], dilation=dilation, **more)

    functions = {
        "relu": lambda x: x.clamp(min=0),
        "leaky_relu": lambda x: torch.where(x > 0, x, 0.02 * x),
        "tanh": torch.tanh,
        "none": lambda x: x,
        "relu6": lambda x: x.clamp(0, 6),
        "hard_swish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    }
    x = conv("stem", x, stride=architecture.stem.stride).clamp(min=0)
    for i, block in enumerate(architecture.blocks):
        n = block.bank_channels
        memory = x.new_zeros(x.shape[0], block.banks * n, *x.shape[2:])
        memory[:, : x.shape[1]] = x
        for j, op in enumerate(block.ops):
            name = f"blocks.{i}.ops.{j}"
            channels = [bank * n + c for bank in op.reads for c in range(n)]
            reduced = memory[:, channels]
            if op.reduce:
                reduced = conv(f"{name}.reduce", reduced)
            ends = []
            for start in (0, 2):
                if op.convs[start] is None:
                    continue
                y = reduced
                for slot in (start, start + 1):
                    entry = op.convs[slot]
                    if entry is not None:
                        y = functions[entry.activation](y)
                        y = conv(f"{name}.convs.{slot}", y, entry.dilation, groups=entry.groups)
                ends.append(y)
            out = ends[0] if ends else reduced
            if len(ends) == 2:
                out = out / (1 + torch.exp(-ends[1])) if op.gate else out + ends[1]
            if op.project is not None:
                out = functions[op.project](out)
            if op.squeeze:
                means = out.mean(dim=tuple(range(2, out.dim())), keepdim=True)
                out = out * conv(f"{name}.excite", conv(f"{name}.squeeze", means).clamp(min=0)).sigmoid()
            if op.project is not None:
                out = conv(f"{name}.project", out)
            memory = memory.clone()
            for position, bank in enumerate(op.writes):
                chunk = position % (op.units // n)
                memory[:, bank * n : (bank + 1) * n] += out[:, chunk * n : (chunk + 1) * n]
        last = i + 1 == len(architecture.blocks)
        end = "head" if last else f"blocks.{i}.transition"
        shape = (1, -1, *ones)
        x = (memory * w[f"{end}.scale"].view(shape) + w[f"{end}.shift"].view(shape)).clamp(min=0)
        if last:
            return x.mean(dim=tuple(range(2, x.dim()))) @ w["head.weight"].T + w["head.bias"]
        x = conv(end, x)  # the paper's order: convolve, then halve
        x = pool_nd(x, [min(architecture.blocks[i + 1].pool, size) for size in x.shape[2:]])
    raise AssertionError("an architecture has a block")


def trained_like(network: Network, seed: int = 0) -> Network:
    """Norms and biases as training leaves them: nothing at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.norms.values():
        for tensor, low, high in (
            (norm.running_mean, -0.5, 0.5),
            (norm.running_var, 0.5, 2.0),
            (norm.weight, -1.5, 1.5),
            (norm.bias, -0.5, 0.5),
        ):
            tensor.data.uniform_(low, high, generator=generator)
    for bias in network.biases.values():
        bias.data.uniform_(-0.2, 0.2, generator=generator)
    return network.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@given(drawn(RICH) | drawn(EVERY_FORM) | hand_written())
@settings(max_examples=60, deadline=None)
def test_the_interpreter_does_what_the_paper_says(architecture: Architecture) -> None:
    network = trained_like(Network(architecture, SPEC, 5))
    frozen = {name: torch.from_numpy(value).double() for name, value in fold(network).items()}
    x = torch.randn(2, 2, 9, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = FrozenNetwork(architecture, fold(network))(x)
        theirs = plain(architecture, frozen, x.double())
    assert relative(ours.double(), theirs) <= 1e-5


@given(drawn(VOXELS) | hand_written(dims=3))
@settings(max_examples=15, deadline=None)
def test_voxels_go_through_the_same_code(architecture: Architecture) -> None:
    network = trained_like(Network(architecture, InputSpec(1, (5, 4, 6)), 3))
    frozen = {name: torch.from_numpy(value).double() for name, value in fold(network).items()}
    x = torch.randn(2, 1, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = FrozenNetwork(architecture, fold(network))(x)
        theirs = plain(architecture, frozen, x.double())
    assert relative(ours.double(), theirs) <= 1e-5


@pytest.mark.parametrize("norm", ["sandwich", "none"])
@given(architecture=drawn(RICH) | drawn(EVERY_FORM) | hand_written())
@settings(max_examples=40, deadline=None)
def test_folding_is_exact(norm: str, architecture: Architecture) -> None:
    network = trained_like(Network(architecture, SPEC, 5, norm=norm))  # type: ignore[arg-type]
    x = torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(FrozenNetwork(architecture, fold(network))(x), network(x)) <= 2e-5


def test_a_bank_that_nothing_wrote_reads_as_zeros() -> None:
    op = Op((2,), (1,), 4, 4, (Conv((3, 3), (1, 1)), None, None, None))
    architecture = Architecture(Stem((3, 3), (1, 1)), (Block(4, 4, 3, (op,)),))
    network = trained_like(Network(architecture, SPEC, 5, norm="none"))
    network.weights["blocks__0__ops__0__reduce"].data.fill_(100.0)
    x = torch.randn(2, 2, 9, 7)
    with torch.no_grad():
        before = network(x)
        network.weights["blocks__0__ops__0__reduce"].data.fill_(-100.0)
        assert torch.equal(network(x), before)


def test_sandwich_has_a_norm_around_every_reduction_and_none_has_them_at_block_ends_only() -> None:
    architecture = RICH.draw(0, 3)
    count = {
        norm: sum(isinstance(m, nn.BatchNorm2d) for m in Network(architecture, SPEC, 5, norm=norm).modules())  # type: ignore[arg-type]
        for norm in ("sandwich", "none")
    }
    second = sum(
        op.pattern.count("1") - 1 - (op.convs[2] is not None)
        for block in architecture.blocks
        for op in block.ops
    )
    assert count["none"] == len(architecture.blocks)
    assert count["sandwich"] == len(architecture.blocks) + 1 + 2 * architecture.op_count + second


def test_frozen_weights_are_plain_float32_arrays() -> None:
    weights = fold(Network(RICH.draw(0, 0), SPEC, 5))
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in weights.values())


def test_nothing_is_split_into_one_part() -> None:
    """LiteRT's converter fails on a split with one output."""
    architecture = resnet((8, 8), 2)  # one bank per block, which every op fills whole
    network = trained_like(Network(architecture, InputSpec(1, (8, 8)), 3))
    program = torch.export.export(
        FrozenNetwork(architecture, fold(network)).eval(), (torch.zeros(1, 1, 8, 8),)
    )
    assert not [node for node in program.graph.nodes if "split" in str(node.target)]


@pytest.mark.parametrize("slot", range(4))
def test_bfloat16_on_a_cpu_gives_what_float32_gives_but_for_its_rounding(slot: int) -> None:
    architecture = RICH.draw(3, slot)
    network = Network(architecture, InputSpec(1, (8, 8)), 5)
    images = torch.randn(6, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    logits, gradients = [], []
    for low in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = network(images).float()
        output.square().mean().backward()
        logits.append(output.detach())
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters()]))
    assert torch.allclose(*logits, atol=0.1 * float(logits[0].abs().max()))
    assert F.cosine_similarity(*gradients, dim=0) > 0.95  # a processor rounds in its own order


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(16, 16, 8), (16, 8, 4), (32, 32, 8), (6, 4, 2)])
def test_a_grouped_convolution_that_runs_as_a_dense_one_is_the_same(
    inputs: int, outputs: int, groups: int
) -> None:
    x, weight = torch.randn(3, inputs, 7, 7), torch.randn(outputs, inputs // groups, 3, 5)
    expected = F.conv2d(x, weight, padding=(1, 2), groups=groups)
    dense = F.conv2d(x, merged_groups(weight, groups, 1), padding=(1, 2))
    assert torch.allclose(_convolve(x, Affine(weight, None), (3, 5), groups=groups), expected, atol=1e-5)
    assert torch.allclose(dense, expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [(5, 5), (7, 3), (1, 5), (7, 7)])
def test_a_depthwise_convolution_has_the_gradients_of_pytorch(kernel: tuple[int, int]) -> None:
    x, weight, bias = torch.randn(2, 8, 6, 5), torch.randn(8, 1, *kernel), torch.randn(8)
    inputs = [value.requires_grad_() for value in (x, weight, bias)]
    padding = (kernel[0] // 2, kernel[1] // 2)
    expected = F.conv2d(x, weight, bias, padding=padding, groups=8)
    result = _Depthwise.apply(x, weight, bias)
    assert torch.allclose(result, expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # where it is the faster one
        assert "Depthwise" in str(_convolve(x, Affine(weight, bias), kernel, groups=8).grad_fn)
    toward = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(result, inputs, toward),
        torch.autograd.grad(expected, inputs, toward),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(16, 2), (32, 4), (16, 16)])
def test_gradients_of_dilated_groups_are_right_in_bfloat16(channels: int, groups: int) -> None:
    """oneDNN's own are NaN, infinite or off by more than their size in images wider than 28 pixels."""
    x = torch.randn(16, channels, 28, 29).to(memory_format=torch.channels_last)
    weight = (torch.randn(channels, channels // groups, 3, 3) / 9).requires_grad_()
    toward = torch.randn_like(x)

    def gradient() -> Tensor:
        y = _convolve(x, Affine(weight, None), (3, 3), (2, 2), groups)
        found: Tensor = torch.autograd.grad(y.float(), weight, toward)[0]
        return found

    expected = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        assert (gradient() - expected).norm() < 0.02 * expected.norm()
        y = _convolve(x, Affine(weight, None), (3, 3), (2, 2), groups)
        assert y.dtype == torch.bfloat16, "as every other convolution"


@pytest.mark.parametrize(
    ("sides", "kernel", "stride"),
    [((2, 2, 2), (3, 3, 3), (1, 1, 1)), ((4, 4, 4), (5, 5, 5), (2, 2, 2)), ((1, 1), (3, 3), (2, 2))],
)
def test_gradients_of_kernels_wider_than_the_map_are_right_in_bfloat16(
    sides: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """oneDNN's own read memory that is not theirs."""
    x = torch.randn(8, 16, *sides)
    weight = (torch.randn(16, 16, *kernel) / 9).requires_grad_()
    dilation = (1,) * len(sides)
    toward = torch.randn(_convolve(x, Affine(weight, None), kernel, dilation, 1, stride).shape)

    def gradient() -> Tensor:
        y = _convolve(x, Affine(weight, None), kernel, dilation, 1, stride)
        found: Tensor = torch.autograd.grad(y.float(), weight, toward)[0]
        return found

    expected = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(5):
            assert (gradient() - expected).norm() < 0.02 * expected.norm()


def test_only_filters_whose_gradients_are_wrong_are_said_to_have_such() -> None:
    one, two = (1, 1), (2, 2)
    assert has_wrong_gradients((1, 1), (3, 3), two, one, 1)
    assert not has_wrong_gradients((1, 1), (3, 3), one, one, 1)
    assert not has_wrong_gradients((1, 1), (1, 1), two, one, 1)
    assert has_wrong_gradients((32, 29), (3, 3), one, two, 2)
    assert not has_wrong_gradients((32, 28), (3, 3), one, two, 2)
    assert not has_wrong_gradients((32, 32), (3, 3), one, two, 1)
    one, two = (1, 1, 1), (2, 2, 2)
    assert has_wrong_gradients((8, 8, 2), (3, 3, 3), one, one, 1)
    assert not has_wrong_gradients((3, 3, 3), (3, 3, 3), two, one, 8)
    assert not has_wrong_gradients((32, 32, 32), (3, 3, 3), one, two, 2)


def test_narrow_groups_run_together_in_bfloat16() -> None:
    x = torch.randn(1, 32, 4, 4)
    assert groups_that_run(x.bfloat16(), 8, 32) == 4  # of eight channels each
    assert groups_that_run(x.bfloat16(), 8, 8) == 1
    assert groups_that_run(x.bfloat16(), 32, 32) == 32  # depthwise has kernels of its own
    assert groups_that_run(x, 8, 32) == 8
