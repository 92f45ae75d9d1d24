"""Networks of timm, where it is installed: its network and preprocessing, weights from a file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smash_base.errors import InvalidInputError, MissingRuntimeError
from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.export.timm_networks import timm_program

NAME = "test_resnet"  # of timm's own tests: half a million parameters


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
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not here")
    import timm

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
