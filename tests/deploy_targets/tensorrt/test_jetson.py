"""A Jetson's power mode and clocks, from what its tools print and its kernel shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from smash_base.errors import UsageError
from smash_targets.tensorrt import builder, jetson


def test_power_mode_and_clocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN'\necho 0\n")
    program.chmod(0o755)
    gpu = tmp_path / "devfreq" / "17000000.gpu"
    gpu.mkdir(parents=True)
    for name, value in (("min_freq", 306_000_000), ("max_freq", 1_300_500_000)):
        (gpu / name).write_text(f"{value}\n")
    state = jetson.power_state(str(program), tmp_path / "devfreq")
    assert state == {"power_mode": "MAXN", "gpu_clock": "306 to 1300 MHz"}
    (gpu / "min_freq").write_text("1300500000\n")
    assert jetson.gpu_clock(tmp_path / "devfreq") == "fixed at 1300 MHz"
    assert jetson.gpu_clock(tmp_path) == "unknown"
    assert jetson.power_state(str(tmp_path / "none")) == {}


def test_hardware_levels_are_refused_on_a_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "is_jetson", lambda: True)
    with pytest.raises(UsageError, match="JetPack"):
        builder._hardware(None, "ampere+")
