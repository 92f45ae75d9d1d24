"""What the processor's clock depends on: governor, frequency, temperature, throttling, where Linux tells.

Read before and after a measurement. A laptop or a board without a fan gives its full clock for a minute only;
a governor that saves power answers the first inference at a third of the clock. Both belong beside a latency.

    /sys/devices/system/cpu/cpu*/cpufreq           governor, frequency now and at most, in kHz
    /sys/devices/system/cpu/cpu*/thermal_throttle  how often a core was throttled (Intel, AMD)
    /sys/class/thermal, /sys/class/hwmon           temperatures in thousandths of a degree
    vcgencmd get_throttled                         throttling of a Raspberry Pi, now and since it started
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smash_base.json_values import JsonObject

CELSIUS = (-40.0, 150.0)  # outside: a sensor that is not there
SLOW_GOVERNORS = ("powersave", "conservative")
_PI_NOW, _PI_SINCE_BOOT = 0x0000F, 0xF0000  # bits of get_throttled


@dataclass(frozen=True)
class ClockState:
    """The state at one moment; None or empty where the system does not tell.

    Attributes:
        governor: Governors of the cores, joined where they differ.
        mhz, most_mhz: mean frequency of the cores now, and the highest that any may have.
        celsius: Temperature of the hottest sensor.
        throttled: events of all cores since the system started.
        pi: word of a Raspberry Pi's firmware.
    """

    governor: str = ""
    mhz: float | None = None
    most_mhz: float | None = None
    celsius: float | None = None
    throttled: int | None = None
    pi: int | None = None

    def to_json(self) -> JsonObject:
        """JSON values, those that are known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class ClockChange:
    """The states before and after a measurement.

    Attributes:
        before, after: the states.
        hottest: highest temperature seen between them, None where nobody tells.
    """

    before: ClockState
    after: ClockState
    hottest: float | None = None

    @property
    def throttled(self) -> bool | None:
        """Whether the clock was cut meanwhile; None where nobody tells."""
        known = [self._by_counters(), self._by_firmware()]
        told = [verdict for verdict in known if verdict is not None]
        return any(told) if told else None

    def _by_counters(self) -> bool | None:
        if self.before.throttled is None or self.after.throttled is None:
            return None
        return self.after.throttled > self.before.throttled

    def _by_firmware(self) -> bool | None:
        if self.before.pi is None or self.after.pi is None:
            return None
        since_boot = (self.after.pi & ~self.before.pi) & _PI_SINCE_BOOT
        return bool(self.after.pi & _PI_NOW or since_boot)

    def warnings(self) -> tuple[str, ...]:
        """Why the numbers measured meanwhile should not be trusted."""
        said = []
        if self.throttled:
            heat = f" at {self.after.celsius:.0f} °C" if self.after.celsius is not None else ""
            said.append(f"the processor was throttled meanwhile{heat}")
        if any(name in self.before.governor for name in SLOW_GOVERNORS):
            said.append(
                f"the frequency governor is {self.before.governor}: set it to performance for steady times"
            )
        return tuple(said)

    def to_json(self) -> JsonObject:
        """JSON values."""
        change: JsonObject = {"before": self.before.to_json(), "after": self.after.to_json()}
        if self.throttled is not None:
            change["throttled"] = self.throttled
        if self.hottest is not None:
            change["hottest_celsius"] = self.hottest
        return change


def read_clock(root: Path = Path("/")) -> ClockState:
    """The present state.

    Args:
        root: Root of the file system that is read.
    """
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    governors = {_text(core / "cpufreq/scaling_governor") for core in cores} - {""}
    now = _numbers(core / "cpufreq/scaling_cur_freq" for core in cores)
    most = _numbers(core / "cpufreq/cpuinfo_max_freq" for core in cores)
    counts = _numbers(core / "thermal_throttle/core_throttle_count" for core in cores)
    sensors = [
        *(root / "sys/class/thermal").glob("thermal_zone*/temp"),
        *(root / "sys/class/hwmon").glob("hwmon*/temp*_input"),
    ]
    degrees = [value / 1000 for value in _numbers(sensors)]
    degrees = [value for value in degrees if CELSIUS[0] < value < CELSIUS[1]]
    return ClockState(
        governor=", ".join(sorted(governors)),
        mhz=round(sum(now) / len(now) / 1000, 1) if now else None,
        most_mhz=round(max(most) / 1000, 1) if most else None,
        celsius=round(max(degrees), 1) if degrees else None,
        throttled=int(sum(counts)) if counts else None,
        pi=_pi_firmware(),
    )


def _pi_firmware() -> int | None:
    """``throttled=0x50005`` of a Raspberry Pi; None elsewhere."""
    if shutil.which("vcgencmd") is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5)
        if found := re.search(r"throttled=(0x[0-9a-fA-F]+)", answer.stdout):
            return int(found[1], 16)
    return None


def _numbers(paths: Any) -> list[float]:
    found = []
    for path in paths:
        with contextlib.suppress(ValueError):
            found.append(float(_text(path)))
    return found


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return ""
