"""Governor, temperature and throttling from files as Linux has them; minutes of load in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smash_base.errors import UsageError
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.measure.clock import ClockChange, ClockState, read_clock
from smash_export.measure.sustained import sustain_bundle


def system(root: Path, *, governor: str, millidegrees: int, throttles: int) -> Path:
    """The files of a machine with two cores; each ends with a newline, as the kernel's do."""
    for core in range(2):
        folder = root / f"sys/devices/system/cpu/cpu{core}"
        for name, value in {
            "cpufreq/scaling_governor": governor,
            "cpufreq/scaling_cur_freq": 900000 + 600000 * core,
            "cpufreq/cpuinfo_max_freq": 1800000,
            "thermal_throttle/core_throttle_count": throttles,
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "temp").write_text(f"{millidegrees}\n")
    dead = root / "sys/class/thermal/thermal_zone1"
    dead.mkdir(exist_ok=True)
    (dead / "temp").write_text("-274000\n")  # a sensor that is not there
    return root


def test_the_state_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    state = read_clock(system(tmp_path, governor="powersave", millidegrees=61500, throttles=3))
    assert state.governor == "powersave"
    assert state.mhz == 1200.0
    assert state.most_mhz == 1800.0
    assert state.celsius == 61.5
    assert state.throttled == 6
    nothing = read_clock(tmp_path / "nothing")
    assert nothing.to_json() == {}
    assert ClockChange(nothing, nothing).throttled is None


def test_throttling_and_saving_power_are_warned_of(tmp_path: Path) -> None:
    before = read_clock(system(tmp_path / "a", governor="powersave", millidegrees=60000, throttles=3))
    after = read_clock(system(tmp_path / "b", governor="powersave", millidegrees=84000, throttles=4))
    change = ClockChange(before, after)
    assert change.throttled is True
    assert any("throttled meanwhile at 84 °C" in warning for warning in change.warnings())
    assert any("governor is powersave" in warning for warning in change.warnings())
    assert ClockChange(before, before).throttled is False
    assert change.to_json()["throttled"] is True


def test_a_raspberry_pi_tells_through_its_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vcgencmd"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def word(value: int) -> ClockState:
        program.write_text(f"#!/bin/sh\necho throttled={value:#x}\n")
        program.chmod(0o755)
        return read_clock(tmp_path)

    calm, was, now = word(0), word(0x50000), word(0x50005)
    assert now.pi == 0x50005
    assert ClockChange(calm, calm).throttled is False
    assert ClockChange(was, was).throttled is False, "that was before"
    assert ClockChange(calm, was).throttled is True
    assert ClockChange(was, now).throttled is True


def test_sustained_load_compares_its_end_with_its_beginning(digits_bundle_copy: Path) -> None:
    (row,) = sustain_bundle(Bundle.open(digits_bundle_copy), select=["onnxruntime"], seconds=1.0, window=0.1)
    assert len(row.windows) >= 4
    assert row.windows[-1].at >= 1.0
    assert sum(window.n for window in row.windows) > 100
    assert row.first_ms > 0
    assert 0.2 < row.slowdown < 5
    assert row.clock is not None


def test_sustained_load_is_of_a_batch_that_the_bundle_takes(digits_bundle: Path) -> None:
    """Else a file that takes any says what nobody may use, and one that does not is found failed."""
    with pytest.raises(UsageError, match="does not take that batch; expected 1 to 32"):
        sustain_bundle(Bundle.open(digits_bundle), select=["onnxruntime"], seconds=0.1, batch=64)


def test_bench_records_the_clock_and_sustained_has_a_record_of_its_own(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(digits_bundle_copy), "--target", "onnxruntime", "--json", "--quiet"]
    assert run([*words, "--seconds", "0.1"]) == 0
    assert set(json.loads(capsys.readouterr().out)["clock"]) >= {"before", "after"}
    assert run([*words, "--sustained", "0.01"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["seconds"] == pytest.approx(0.6)
    records = Bundle.open(digits_bundle_copy).manifest.model_dump(mode="json")["records"]
    assert records["sustained"]["files"][0]["verdict"]
    assert records["bench"]["files"], "the other record stays"
