"""Presets give the same output as plain PyTorch networks that were written without banks."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smash_base.errors import UsageError
from smash_search.model.interpreter import FrozenNetwork, Network, fold
from smash_search.rank.patterns import pattern_of
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import (
    PRESETS,
    densenet,
    fractalnet,
    known_networks,
    mobilenet,
    preset,
    resnet,
)
from smash_search.space.known import plain_resnet as plain_resnet_of
from smash_search.space.space import SPACES, space_for
from tests.search.model.test_interpreter import relative, trained_like

RGB = InputSpec(3, (32, 32))
Weights = dict[str, Tensor]


def layer(w: Weights, name: str, x: Tensor, *slots: int) -> Tensor:
    x = F.conv2d(x, w[f"{name}.reduce.weight"], w[f"{name}.reduce.bias"])
    for slot in slots:
        x = F.conv2d(F.relu(x), w[f"{name}.convs.{slot}.weight"], w[f"{name}.convs.{slot}.bias"], padding=1)
    return x


def end(w: Weights, name: str, x: Tensor) -> Tensor:
    x = F.relu(x * w[f"{name}.scale"][:, None, None] + w[f"{name}.shift"][:, None, None])
    if name == "head":
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), w["head.weight"], w["head.bias"])
    return F.avg_pool2d(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]), 2)


def ends(blocks: int) -> list[str]:
    return [f"blocks.{i}.transition" for i in range(blocks - 1)] + ["head"]


def stem(w: Weights, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, w["stem.weight"], w["stem.bias"], padding=1))


def plain_resnet(w: Weights, x: Tensor, layers: int) -> Tensor:
    x = stem(w, x)
    for i, name in enumerate(ends(3)):
        for j in range(layers):
            x = x + layer(w, f"blocks.{i}.ops.{j}", x, 0, 1)
        x = end(w, name, x)
    return x


def plain_densenet(w: Weights, x: Tensor, layers: int) -> Tensor:
    x = stem(w, x)
    for i, name in enumerate(ends(3)):
        for j in range(layers):
            x = torch.cat([x, layer(w, f"blocks.{i}.ops.{j}", x, 0)], 1)
        x = end(w, name, x)
    return x


def plain_fractalnet(w: Weights, x: Tensor, architecture: Architecture, columns: int) -> Tensor:
    x = stem(w, x)
    for i, name in enumerate(ends(3)):
        numbers = {
            (op.reads[0], op.writes[0] - op.reads[0]): f"blocks.{i}.ops.{j}"
            for j, op in enumerate(architecture.blocks[i].ops)
        }
        seen = {0: x}

        def fractal(start: int, column: int, x: Tensor) -> Tensor:
            """f_1 = conv; f_(c+1) = f_c f_c joined with conv (the paper's expansion rule)."""
            reach = 2**column
            own = layer(w, numbers[start, reach], x, 0)  # noqa: B023
            if column == 0:
                out = own
            else:
                middle = fractal(start, column - 1, x)
                out = fractal(start + reach // 2, column - 1, middle) + own
            seen[start + reach] = out  # noqa: B023
            return out

        fractal(0, columns - 1, x)
        x = end(w, name, torch.cat([seen[t] for t in sorted(seen)], 1))
    return x


def outputs(architecture: Architecture) -> tuple[Tensor, Weights, Tensor]:
    network = trained_like(Network(architecture, RGB, 10, norm="none"))
    weights = fold(network)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (
            FrozenNetwork(architecture, weights)(x),
            {k: torch.from_numpy(v) for k, v in weights.items()},
            x,
        )


def test_resnet_equals_a_plain_residual_network() -> None:
    ours, weights, x = outputs(resnet((8, 16, 24), 2))
    assert relative(ours, plain_resnet(weights, x, 2)) <= 1e-5


def test_densenet_equals_a_plain_densenet() -> None:
    ours, weights, x = outputs(densenet(4, 5))
    assert relative(ours, plain_densenet(weights, x, 5)) <= 1e-5


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_fractalnet_equals_the_expansion_rule(columns: int) -> None:
    architecture = fractalnet((6, 8, 8), columns)
    ours, weights, x = outputs(architecture)
    assert relative(ours, plain_fractalnet(weights, x, architecture, columns)) <= 1e-5


def test_wide_resnet_40_4_equals_the_plain_network_and_has_its_size() -> None:
    architecture = preset("wide-resnet-40-4")
    ours, weights, x = outputs(architecture)
    assert relative(ours, plain_resnet(weights, x, 6)) <= 1e-5
    # 8.9 million parameters in the paper; here a 1x1 convolution per op and full-width first layers.
    assert 8.9e6 < cost_of(architecture, RGB, 10).parameters < 9.9e6


def test_densenet_bc_100_12_equals_the_plain_network_and_has_its_size() -> None:
    architecture = preset("densenet-bc-100-12")
    ours, weights, x = outputs(architecture)
    assert relative(ours, plain_densenet(weights, x, 16)) <= 1e-5
    assert 0.7e6 < cost_of(architecture, RGB, 10).parameters < 0.9e6  # 0.8 million in the paper


@pytest.mark.parametrize("name", PRESETS)
def test_presets_exist_for_voxels_too(name: str) -> None:
    assert preset(name, InputSpec(1, (32, 32, 32))).dims == 3


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="fractalnet"):
        preset("vgg")


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("dims", [2, 3])
def test_known_networks_are_inside_their_space_and_differ(name: str, dims: int) -> None:
    space = space_for(InputSpec(1, (32,) * dims), name)
    found = known_networks(space)
    for architecture in found:
        space.check(architecture)
    assert len({architecture.key for architecture in found}) == len(found) >= 40
    assert found == known_networks(space)


def test_the_first_known_networks_are_of_every_pattern_and_of_several_sizes() -> None:
    first = known_networks(SPACES["small"])[:12]
    costs = [cost_of(architecture, InputSpec(1, (28, 28)), 10).macs for architecture in first]
    assert max(costs) > 4 * min(costs)
    ops = [architecture.blocks[0].ops[0] for architecture in first]
    assert any(op.pattern == "1100" for op in ops)  # residual, two convolutions
    assert any(op.reads == op.writes and op.pattern == "1000" for op in ops)  # residual, one
    assert any(op.reads != op.writes for op in ops)  # dense, fractal


def test_inverted_networks_of_one_op_a_block_are_of_every_size() -> None:
    """Between two of them there was a factor of 2.5: none of them used much of ResNet-8's latency."""
    space, spec = space_for(InputSpec(3, (32, 32)), "edge"), InputSpec(3, (32, 32))
    inverted = [
        entry
        for entry in known_networks(space)
        if pattern_of(entry) == "inverted" and entry.stem.stride == (2, 2)
        if all(len(block.ops) == 1 for block in entry.blocks)
    ]
    macs = sorted(cost_of(entry, spec, 10).macs for entry in inverted)
    assert (macs[0] < 1e6, macs[-1] > 1.4e7) == (True, True)
    assert all(larger < 1.5 * smaller for smaller, larger in itertools.pairwise(macs))


def test_a_residual_network_of_split_banks_is_the_one_of_whole_banks() -> None:
    """24 channels as three banks of 8, read and written together, give what one bank of 24 gives."""
    split = next(
        architecture
        for architecture in known_networks(SPACES["small"])
        if all(
            b.channels_in == 24 and b.banks == 3 and b.ops[0].pattern == "1100" for b in architecture.blocks
        )
        and len(architecture.blocks[0].ops) == 2
    )
    whole = Architecture(split.stem, resnet((24, 24, 24), 2).blocks)
    torch.manual_seed(0)
    network = trained_like(Network(whole, RGB, 10))
    weights = fold(network)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = FrozenNetwork(whole, weights)(images)
        assert relative(FrozenNetwork(split, weights)(images), expected) <= 1e-5


def act(x: Tensor, squeezed: bool) -> Tensor:
    return F.hardswish(x) if squeezed else F.relu6(x)


def inverted(w: Weights, x: Tensor, blocks: int, layers: int, squeezed: bool) -> Tensor:
    x = stem(w, x)
    for i, name in enumerate(ends(blocks)):
        for j in range(layers):
            op = f"blocks.{i}.ops.{j}"
            y = act(F.conv2d(x, w[f"{op}.reduce.weight"], w[f"{op}.reduce.bias"]), squeezed)
            wide = y.shape[1]
            y = F.conv2d(y, w[f"{op}.convs.0.weight"], w[f"{op}.convs.0.bias"], padding=1, groups=wide)
            y = act(y, squeezed)
            if squeezed:
                hidden = F.conv2d(y.mean((2, 3), True), w[f"{op}.squeeze.weight"], w[f"{op}.squeeze.bias"])
                factor = F.conv2d(hidden.relu(), w[f"{op}.excite.weight"], w[f"{op}.excite.bias"])
                y = y * factor.sigmoid()
            x = x + F.conv2d(y, w[f"{op}.project.weight"], w[f"{op}.project.bias"])
        x = end(w, name, x)
    return x


def without_1x1(w: Weights, x: Tensor, blocks: int, layers: int) -> Tensor:
    x = stem(w, x)
    for i, name in enumerate(ends(blocks)):
        for j in range(layers):
            y = x
            for slot in (0, 1):
                conv = f"blocks.{i}.ops.{j}.convs.{slot}"
                y = F.conv2d(F.relu(y), w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1)
            x = x + y
        x = end(w, name, x)
    return x


@pytest.mark.parametrize("squeezed", [False, True])
def test_mobilenet_equals_plain_inverted_bottlenecks(squeezed: bool) -> None:
    ours, w, x = outputs(mobilenet((8, 16), 2, 3, squeeze=squeezed))
    assert relative(ours, inverted(w, x, 2, 2, squeezed)) <= 1e-5


def test_a_plain_resnet_has_no_1x1_convolution_in_its_blocks() -> None:
    ours, w, x = outputs(plain_resnet_of((8, 16), 2))
    assert relative(ours, without_1x1(w, x, 2, 2)) <= 1e-5


@pytest.mark.parametrize(("name", "expansion"), [("mobilenetv2", 6), ("efficientnet", 4)])
def test_presets_of_inverted_bottlenecks_equal_the_plain_networks(name: str, expansion: int) -> None:
    ours, w, x = outputs(preset(name))
    assert [len(w[f"blocks.{i}.ops.2.reduce.weight"]) for i in range(3)] == [
        expansion * width for width in (16, 32, 64)
    ]
    assert relative(ours, inverted(w, x, 3, 3, squeezed=name == "efficientnet")) <= 1e-5


@pytest.mark.parametrize(("name", "layers"), [("resnet-8", 1), ("resnet-20", 3)])
def test_presets_of_plain_residual_blocks_equal_the_plain_networks(name: str, layers: int) -> None:
    ours, w, x = outputs(preset(name))
    last = f"blocks.2.ops.{layers - 1}.convs.1.weight"
    assert (tuple(w[last].shape), f"blocks.2.ops.{layers}.convs.1.weight" in w) == ((64, 64, 3, 3), False)
    assert relative(ours, without_1x1(w, x, 3, layers)) <= 1e-5
