"""What a Jetson's speed depends on beside its chip: power mode and clocks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

RELEASE = Path("/etc/nv_tegra_release")


def is_jetson(release: Path = RELEASE) -> bool:
    """Whether this is a Jetson, which has that file of NVIDIA's."""
    return release.is_file()


def power_state(program: str = "nvpmodel", clocks: Path = Path("/sys/class/devfreq")) -> dict[str, str]:
    """Power mode, and whether the GPU's clock is held at its most (``jetson_clocks``); {} elsewhere."""
    if shutil.which(program) is None:
        return {}
    done = subprocess.run(
        [program, "-q"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
    )
    return {"power_mode": power_mode(done.stdout) or "unknown", "gpu_clock": gpu_clock(clocks)}


def power_mode(text: str) -> str:
    """The mode in what ``nvpmodel -q`` prints, for example "MAXN"; "" when it tells none."""
    found = re.search(r"Power Mode:\s*(\S.*)", text)
    return found[1].strip() if found else ""


def gpu_clock(folder: Path) -> str:
    """The clock of the GPU in ``/sys/class/devfreq``: "fixed at N MHz", "N to M MHz" or "unknown"."""
    for device in sorted(folder.glob("*gpu*")) + sorted(folder.glob("*g[av]11b*")):
        try:
            low, high = (int((device / f"{name}_freq").read_text()) // 10**6 for name in ("min", "max"))
        except (OSError, ValueError):
            continue
        return f"fixed at {high} MHz" if low == high else f"{low} to {high} MHz"
    return "unknown"
