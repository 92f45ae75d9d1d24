"""HyperNet and supernet: exactly the filters asked for, and a frozen network equals its score's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings

from smash_base.errors import InvalidInputError
from smash_search.model.hypernet import HyperNetConfig, cut
from smash_search.model.interpreter import FrozenNetwork, Network, Norm
from smash_search.model.supernet import Supernet, _Cuts
from smash_search.space.architecture import Architecture, Block, Conv, InputSpec, Op, Stem
from tests.search.legal import DIGITS, EVERY_FORM, RICH, TINY, VOXELS, drawn

SMALL = HyperNetConfig(depths=(2, 2), growth=6)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(RICH, DIGITS, 10, SMALL)


@pytest.mark.parametrize(("compression", "gain"), [(1, "whole"), (2, "rows"), (3, "whole")])
@given(architecture=drawn(RICH))
@settings(max_examples=20, deadline=None)
def test_generated_filters_have_exactly_the_shape_and_the_norm_asked_for(
    compression: int, gain: Literal["rows", "whole"], architecture: Architecture
) -> None:
    config = HyperNetConfig(depths=(1,), growth=4, compression=compression, gain=gain)
    hypernet = Supernet(RICH, DIGITS, 10, config).hypernet
    filters = hypernet.generate(architecture, noise_seed=1)
    for i, block in enumerate(architecture.blocks):
        for j, op in enumerate(block.ops):
            weight = filters.pop(f"blocks.{i}.ops.{j}.reduce")
            assert weight.shape == (op.bottleneck, len(op.reads) * block.bank_channels, 1, 1)
            squares = op.bottleneck if gain == "rows" else 1
            assert float(weight.detach().norm() ** 2) == pytest.approx(squares, rel=1e-4)
    assert not filters


@pytest.mark.parametrize("sharing", ["block", "position"])
@given(architecture=drawn(EVERY_FORM))
@settings(max_examples=20, deadline=None)
def test_mixed_filters_have_full_rank_and_the_shape_asked_for(
    sharing: Literal["block", "position"], architecture: Architecture
) -> None:
    torch.manual_seed(0)
    config = HyperNetConfig(depths=(1,), growth=4, bases=2, sharing=sharing)
    filters = Supernet(EVERY_FORM, DIGITS, 10, config).hypernet.generate(architecture)
    wanted = {part.name: part.weight_shape for part in architecture.convolutions(1, 10) if part.generated}
    assert {name: tuple(weight.shape) for name, weight in filters.items()} == wanted
    widest = EVERY_FORM.max_bottleneck * EVERY_FORM.unit  # more channels repeat what there is
    for weight in filters.values():
        assert torch.linalg.matrix_rank(weight.detach().flatten(1)) == min(*weight.shape[:2], widest)


def test_the_weights_of_a_mixture_come_from_c() -> None:
    torch.manual_seed(0)
    hypernet = Supernet(RICH, DIGITS, 10, HyperNetConfig(depths=(2,), bases=4)).hypernet
    architecture = RICH.draw(0, 7)
    one = hypernet.generate(architecture)
    other = hypernet.generate(architecture, c=-torch.from_numpy(hypernet.layout.encode(architecture)))
    name = next(iter(one))
    assert not torch.allclose(one[name], other[name], atol=1e-3)


@given(architecture=drawn(RICH))
@settings(max_examples=25, deadline=None)
def test_a_frozen_network_equals_the_forward_pass_that_was_scored(
    supernet: Supernet, architecture: Architecture
) -> None:
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    statistics = supernet.statistics(architecture, [images])
    frozen = FrozenNetwork(architecture, supernet.materialise(architecture, statistics))
    with torch.no_grad():
        scored = supernet(architecture, images, statistics)
        assert float((frozen(images) - scored).abs().max()) <= 1e-5


def test_a_network_that_starts_from_generated_weights_equals_them(supernet: Supernet) -> None:
    architecture, images = RICH.draw(0, 7), torch.randn(16, 1, 8, 8)
    statistics = supernet.statistics(architecture, [images])
    network = Network(architecture, DIGITS, 10, norm="none").eval()
    supernet.copy_to(network, statistics)
    with torch.no_grad():
        assert float((network(images) - supernet(architecture, images, statistics)).abs().max()) <= 1e-5
    with pytest.raises(InvalidInputError, match="norm"):
        supernet.copy_to(Network(architecture, DIGITS, 10), statistics)


def test_voxels_are_generated_and_frozen_the_same_way() -> None:
    net = Supernet(VOXELS, InputSpec(1, (6, 6, 6)), 4, SMALL)
    architecture, x = VOXELS.draw(0, 0), torch.randn(4, 1, 6, 6, 6)
    statistics = net.statistics(architecture, [x])
    frozen = FrozenNetwork(architecture, net.materialise(architecture, statistics))
    with torch.no_grad():
        assert float((frozen(x) - net(architecture, x, statistics)).abs().max()) <= 1e-5


def test_statistics_over_one_batch_are_that_batch_s_own(supernet: Supernet) -> None:
    architecture, images = RICH.draw(0, 0), torch.randn(32, 1, 8, 8)
    statistics = supernet.statistics(architecture, [images])
    with torch.no_grad():
        fixed, own = supernet(architecture, images, statistics), supernet(architecture, images)
    assert torch.allclose(fixed, own, atol=1e-6)


def test_one_image_whose_last_features_are_one_pixel_has_statistics() -> None:
    small = Supernet(TINY, InputSpec(1, (2, 2)), 10, SMALL)
    moments = small.statistics(TINY.draw(1, 1), [torch.randn(1, 1, 2, 2)])["head.norm"]
    assert torch.isfinite(moments.mean).all()
    assert not moments.variance.any()


def test_statistics_belong_to_one_architecture(supernet: Supernet) -> None:
    images = torch.randn(32, 1, 8, 8)
    a, b = (supernet.statistics(RICH.draw(0, slot), [images]) for slot in (0, 1))
    name = "blocks.0.transition.norm"
    shared = min(len(a[name].mean), len(b[name].mean))
    assert not torch.allclose(a[name].mean[:shared], b[name].mean[:shared])


def test_every_parameter_can_learn(supernet: Supernet) -> None:
    images = torch.randn(8, 1, 8, 8)
    for slot in range(40):
        supernet(RICH.draw(0, slot), images).logsumexp(1).sum().backward()
    dead = [name for name, p in supernet.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    supernet.zero_grad(set_to_none=True)


def test_the_filters_depend_on_c(supernet: Supernet) -> None:
    architecture, other = RICH.draw(0, 0), RICH.draw(0, 1)
    name = "blocks.0.ops.0.reduce"
    own = supernet.hypernet.generate(architecture, noise_seed=1)[name]
    c = torch.from_numpy(supernet.hypernet.layout.encode(architecture, 1))
    assert torch.equal(supernet.hypernet.generate(architecture, c)[name], own)
    c[supernet.hypernet.layout.sections["read"]] *= -1
    assert not torch.allclose(supernet.hypernet.generate(architecture, c)[name], own)
    assert other.key != architecture.key


def test_a_space_and_an_input_of_other_axes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="axes"):
        Supernet(TINY, InputSpec(1, (8, 8, 8)), 10)


def test_a_nonsensical_hypernet_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="HyperNet"):
        HyperNetConfig(depths=())


@pytest.mark.parametrize("sharing", ["block", "position"])
@pytest.mark.parametrize("norm", ["none", "sandwich"])
@given(architecture=drawn(EVERY_FORM))
@settings(max_examples=10, deadline=None)
def test_every_form_of_op_is_generated_scored_and_frozen_alike(
    norm: Norm, sharing: Literal["block", "position"], architecture: Architecture
) -> None:
    config = replace(SMALL, norm=norm, sharing=sharing, centred=True)
    torch.manual_seed(0)
    net, x = Supernet(EVERY_FORM, DIGITS, 10, config), torch.randn(8, 1, 8, 8)
    statistics = net.statistics(architecture, [x])
    frozen = FrozenNetwork(architecture, net.materialise(architecture, statistics))
    with torch.no_grad():
        scored = net(architecture, x, statistics)
        assert float((frozen(x) - scored).abs().max()) <= 1e-4 * max(1.0, float(scored.abs().max()))


def test_ops_that_share_by_position_differ_and_those_that_share_by_block_do_not() -> None:
    op = Op((0,), (0,), 4, 4, (Conv((3, 3), (1, 1)), None, None, None), reduce=False)
    architecture = Architecture(
        Stem((3, 3), (1, 1)),
        (
            Block(4, 4, 1, (op, op)),
            Block(8, 8, 1, (Op((0,), (0,), 8, 8, (Conv((3, 3), (1, 1)), None, None, None)),)),
        ),
    )
    for sharing, same in (("block", True), ("position", False)):
        net = Supernet(EVERY_FORM, DIGITS, 10, replace(SMALL, sharing=sharing))  # type: ignore[arg-type]
        source = net.source(architecture)
        first, second = (source.affine(f"blocks.0.ops.{j}.convs.0").weight for j in (0, 1))
        assert torch.equal(first, second) is same


def test_convolutions_that_share_a_filter_add_up_their_gradients_in_it() -> None:
    whole = torch.randn(3, 2, 5, 5, requires_grad=True)
    shapes = [(2, 2, 3, 3), (7, 5, 5, 1), (3, 1, 7, 7)]  # smaller, repeated, surrounded by zeros
    together, apart = _Cuts.apply(whole, *shapes), [cut(whole, shape) for shape in shapes]
    toward = [torch.randn(shape) for shape in shapes]
    for mine, theirs in zip(together, apart, strict=True):
        assert torch.equal(mine, theirs)
    (mine,), (theirs,) = (torch.autograd.grad(outputs, whole, toward) for outputs in (together, apart))
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_large_c_goes_through_the_hypernet_in_bfloat16_where_the_network_runs_in_it(
    supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_search.model.hypernet.LARGE", 1)
    architecture = RICH.draw(0, 1)
    with torch.no_grad():
        exact = supernet.hypernet.generate(architecture)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = supernet.hypernet.generate(architecture)
    for name, weight in rounded.items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, exact[name])
        assert torch.allclose(weight, exact[name], atol=0.05 * float(exact[name].abs().max()))
