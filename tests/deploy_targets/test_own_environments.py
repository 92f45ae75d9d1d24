"""Targets that compile in an environment of their own: ``make target-executorch``, ``make target-litert``.

Each takes half a minute and more; without the environment it is skipped with the command that makes it.
Google's converter for LiteRT is for what the writer of this project (test_litert_writer.py) does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smash_base.errors import InvalidInputError, MissingRuntimeError, SmashError, UsageError
from smash_export.export.torch_program import export_program
from smash_targets.base import SessionOptions, get_target
from smash_targets.isolation.environments import EnvironmentTarget
from tests.deploy_targets.inputs import IMAGES, SIGNATURE
from tests.deploy_targets.networks import Sources

NAMES = ["executorch", "litert"]


def needs_compiler(name: str) -> EnvironmentTarget:
    target = get_target(name)
    assert isinstance(target, EnvironmentTarget)
    try:
        target._python(target.compiler)
    except MissingRuntimeError as error:
        pytest.skip(str(error))
    return target


@pytest.mark.slow
def test_fp32_equals_eager_pytorch(compiled: Callable[..., Path], sources: Sources) -> None:
    target = needs_compiler("executorch")
    path = compiled("executorch")
    with target.open(path, SIGNATURE, SessionOptions(threads=1)) as session:
        assert session.info.threads == 1
        assert session.info.precision == "fp32"
        assert session.info.version == target.availability().version
        for size in (1, 2, 7, 32):
            np.testing.assert_allclose(session.run(IMAGES[:size]), sources.logits[:size], rtol=0, atol=1e-4)
        first = session.run(IMAGES[:2])
        kept = first.copy()
        session.run(IMAGES[2:4])
        np.testing.assert_array_equal(first, kept)
    whole = path.read_bytes()
    damaged = path.with_name(f"damaged{path.suffix}")
    for content in (b"", b"not this format" * 20, whole[: len(whole) // 2]):
        damaged.write_bytes(content)
        with pytest.raises(InvalidInputError):
            target.open(damaged, SIGNATURE, SessionOptions())


class Bytes(torch.nn.Module):
    """uint8 [B, 12, 12, 3] -> probabilities of the network behind it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        planes = image.to(torch.float32).permute(0, 3, 1, 2) * (1 / 64) - 2.0
        return torch.softmax(self.network(planes.contiguous()), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_takes_bytes(name: str, sources: Sources, tmp_path: Path) -> None:
    target = needs_compiler(name)
    signature = replace(SIGNATURE, input_shape=(12, 12, 3), batch=(1, 4, 32))
    network = Bytes(sources.network).eval()
    program = export_program(network, signature, tmp_path / "model.pt2", torch.uint8)
    (tmp_path / "compiled").mkdir()
    request = replace(sources.request(torch_program=True), signature=signature, torch_program=program)
    # The graph of this request is that of another network, which LiteRT's own writer would take.
    result = EnvironmentTarget.compile(target, request, tmp_path / "compiled")
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    path = tmp_path / "compiled" / result.main
    with target.open(path, signature, SessionOptions(threads=1)) as session:
        np.testing.assert_allclose(session.run(images.astype(np.float32)), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_int8_follows_the_network(name: str, sources: Sources, tmp_path: Path) -> None:
    target = needs_compiler(name)
    request = sources.request("int8", torch_program=True)
    result = EnvironmentTarget.compile(target, request, tmp_path)  # not what LiteRT's own does first
    with target.open(tmp_path / result.main, SIGNATURE, SessionOptions(threads=1)) as session:
        assert session.info.precision == "int8"
        difference = np.abs(session.run(IMAGES) - sources.logits).max()
        assert 0 < difference < 0.1 * np.ptp(sources.logits)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_environment(
    name: str, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target(name)
    assert isinstance(target, EnvironmentTarget)
    with pytest.raises(UsageError, match="wrong_option"):
        target.compile(sources.request(wrong_option=1), tmp_path)
    monkeypatch.setenv(f"SMASH_EXPORT_{name.upper()}_PYTHON", str(tmp_path / "none"))
    with pytest.raises(SmashError, match=f"doctor --environment {name}") as caught:
        EnvironmentTarget.compile(target, sources.request(), tmp_path)
    assert caught.value.exit_code == 3


def test_a_batch_size_that_is_none() -> None:
    from smash_targets.common import fixed_batch

    assert fixed_batch({"batch": "8"}, SIGNATURE) == 8
    for wrong in (0, -1, "many", 10**9):
        with pytest.raises(UsageError, match="batch"):
            fixed_batch({"batch": wrong}, SIGNATURE)
