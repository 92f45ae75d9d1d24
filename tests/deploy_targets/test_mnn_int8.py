"""int8 files of MNN: its quantiser sees the calibration tensors, and its files follow the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_base.errors import UsageError, VerificationError
from smash_targets import mnn
from smash_targets.base import SessionOptions, get_target
from smash_targets.mnn_int8 import _write_pictures, quantise
from tests.deploy_targets.inputs import IMAGES, SIGNATURE
from tests.deploy_targets.networks import Sources

needs_mnn = pytest.mark.skipif(not get_target("mnn").availability().available, reason="MNN is not installed")


@needs_mnn
def test_logits_follow_those_of_the_network(compiled: Callable[..., Path], sources: Sources) -> None:
    with get_target("mnn").open(compiled("mnn", "int8"), SIGNATURE, SessionOptions(threads=1)) as session:
        assert session.info.precision == "int8"
        received = session.run(IMAGES)
    noise = np.square(received - sources.logits).sum()
    assert 0 < noise < 0.02 * np.square(sources.logits).sum()


@needs_mnn
def test_weights_are_bytes(compiled: Callable[..., Path]) -> None:
    fp32, int8 = (compiled("mnn", precision).read_bytes() for precision in ("fp32", "int8"))
    assert len(int8) < 0.7 * len(fp32)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_hold_the_calibration_tensors(channels: int, tmp_path: Path) -> None:
    tensors = IMAGES[:, :channels] * np.array([0.1, 3.0, 40.0], np.float32)[:channels, None, None] + 7
    low, step = _write_pictures(tensors, tmp_path)
    names = sorted(tmp_path.iterdir())
    assert len(names) == len(tensors)
    pictures = np.stack([np.asarray(Image.open(name)).reshape(12, 12, channels) for name in names])
    seen = pictures.transpose(0, 3, 1, 2) * step[:, None, None] + low[:, None, None]
    assert (np.abs(seen - tensors).max(axis=(0, 2, 3)) <= 0.51 * step).all()


def test_what_no_picture_can_hold_is_refused(tmp_path: Path) -> None:
    def never(arguments: object) -> None:
        raise AssertionError

    for calibration in (None, IMAGES[:, :2], IMAGES[:, :, None]):
        with pytest.raises(UsageError):
            quantise(tmp_path / "a", tmp_path / "b", calibration, never)


@needs_mnn
def test_a_quantiser_that_crashes_is_an_error_with_its_exit_code(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnn, "_QUANTISE", "import os; os.abort()")
    with pytest.raises(VerificationError, match="-6"):
        get_target("mnn").compile(sources.request("int8"), tmp_path)
    assert list(tmp_path.iterdir()) == []
