"""int8 files that are written for ncnn itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import UsageError, VerificationError
from smash_targets.base import Precision, SessionOptions, get_target
from smash_targets.ncnn_int8 import is_int8, quantise, threshold
from tests.deploy_targets.inputs import IMAGES, SIGNATURE
from tests.deploy_targets.networks import Sources

NORM = """7767517
2 2
Input in 0 1 x
BatchNorm norm 1 1 x out0 0=4
"""

pytestmark = pytest.mark.skipif(
    not get_target("ncnn").availability().available, reason="ncnn is not installed"
)


@pytest.fixture
def files(compiled: Callable[..., Path]) -> dict[Precision, Path]:
    return {"fp32": compiled("ncnn", "fp32"), "int8": compiled("ncnn", "int8")}


def test_weights_of_convolutions_are_bytes(files: dict[Precision, Path]) -> None:
    assert is_int8(files["int8"].read_text())
    assert not is_int8(files["fp32"].read_text())
    sizes = [files[precision].with_suffix(".bin").stat().st_size for precision in ("fp32", "int8")]
    assert sizes[1] < 0.5 * sizes[0]  # grouped convolutions and the last layer stay in fp32


def test_logits_follow_those_of_the_network(files: dict[Precision, Path], sources: Sources) -> None:
    with get_target("ncnn").open(files["int8"], SIGNATURE, SessionOptions(threads=1)) as session:
        assert session.info.precision == "int8"
        received = session.run(IMAGES)
    noise = np.square(received - sources.logits).sum()
    assert 0 < noise < 0.01 * np.square(sources.logits).sum()


def test_int8_needs_calibration_images(sources: Sources, tmp_path: Path) -> None:
    request = replace(sources.request("int8"), calibration=None)
    with pytest.raises(UsageError, match="calibration"):
        get_target("ncnn").compile(request, tmp_path)


def test_weights_in_unknown_layers_are_refused() -> None:
    with pytest.raises(VerificationError, match="BatchNorm"):
        quantise(NORM, bytes(64), IMAGES, lambda blobs: lambda image: [])


def test_a_rare_large_value_does_not_take_the_range() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(100_000))
    assert threshold(values, values.max()) > 0.7 * values.max()
    values[0] = 100
    assert threshold(values, 100.0) < 90
    assert threshold(np.zeros(10), 0.0) == 1.0
