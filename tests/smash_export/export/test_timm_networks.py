"""Networks of timm, where it is installed: its network and preprocessing, weights from a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from safetensors.torch import save_file

from smash_base.errors import InvalidInputError, MissingRuntimeError
from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.export.teacher import teacher_logits
from smash_export.export.timm_networks import timm_program
from smash_search.data import load_dataset

NAME = "test_resnet"  # of timm's own tests: half a million parameters


def timm_or_skip() -> Any:
    """The package, where it is installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not here")
    return importlib.import_module("timm")


def test_without_timm_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingRuntimeError, match=r"smash-export\[timm\]"):
        timm_program(NAME, tmp_path / "w.pt", 10, tmp_path / "m.pt2")


@pytest.mark.parametrize("query", ["", "?weights=none.safetensors", "?weights=w.pt", "?size=3"])
def test_weights_are_a_file_of_safetensors(
    query: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    words = ["adopt", f"timm:resnet18{query}", "--labels", str(tmp_path / "labels.txt"), "--data", "digits"]
    assert cli.run([*words, "-o", str(tmp_path / "b")]) == 2
    assert "weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_timm_becomes_a_bundle(tmp_path: Path) -> None:
    timm = timm_or_skip()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(NAME, num_classes=3).eval()
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    config = timm.data.resolve_model_data_config(network)
    channels, height, width = config["input_size"]
    images = np.random.default_rng(0).integers(0, 256, (6, height, width, channels), np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(6) % 3)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    words = ["adopt", f"timm:{NAME}?weights={weights}", "--labels", str(tmp_path / "labels.txt")]
    words += ["--samples", str(tmp_path / "test.npz"), "-o", str(tmp_path / "b")]
    assert cli.run(words) == 0
    bundle = Bundle.open(tmp_path / "b")
    mean, std = (torch.tensor(config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = network((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    np.testing.assert_allclose(bundle.samples().logits, expected, atol=1e-4)
    origin = bundle.manifest.provenance["timm"]
    assert isinstance(origin, dict)
    assert origin["network"] == NAME
    with pytest.raises(InvalidInputError, match="does not hold the weights"):
        timm_program(NAME, weights, 4, tmp_path / "m.pt2")
    with pytest.raises(InvalidInputError, match="timm has no network"):
        timm_program("resnet18x", weights, 3, tmp_path / "m.pt2")


@pytest.mark.slow
def test_a_network_of_timm_teaches_a_small_one(tmp_path: Path) -> None:
    """Run with timm 1.0.31, torchvision 0.28 and torch 2.13: a network of timm with random weights, which are
    read from a file, shows its answers to a student of an epoch."""
    timm = timm_or_skip()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(NAME, num_classes=10, in_chans=1).eval()
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    teacher, digits = f"timm:{NAME}?weights={weights}&size=32", load_dataset("digits")
    config = timm.data.resolve_model_data_config(network)
    mean, std = (sum(config[key]) / 3 for key in ("mean", "std"))
    pixels = [
        Image.fromarray(image[..., 0]).resize((32, 32), Resampling.BILINEAR)
        for image in digits.train.images[:40]
    ]
    with torch.no_grad():
        shown = torch.from_numpy(np.stack([np.asarray(picture) for picture in pixels]))[:, None]
        expected = network((shown / 255 - mean) / std).numpy()
    np.testing.assert_allclose(teacher_logits(teacher, digits)[:40], expected, atol=1e-3)
    out = tmp_path / "student"
    words = ["train", "resnet-8", "--data", "digits", "--teacher", teacher, "--epochs", "1"]
    assert cli.run([*words, "--out", str(out), "--device", "cpu", "--threads", "1"]) == 0
    recipe = Bundle.open(out).manifest.provenance["recipe"]
    assert isinstance(recipe, dict)
    assert recipe["epochs"] == 1
