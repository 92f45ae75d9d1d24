"""What this machine is: processor and what it can do, memory, disk, GPUs, versions.

Stands beside every measured number (``bench``, ``benchmarks/``) and is what ``doctor`` shows. Reads
/proc and package metadata; imports no runtime.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from smash_base.json_values import JsonObject
from smash_targets.listing import described_targets
from smash_targets.tensorrt.jetson import power_state

# Feature -> flags of /proc/cpuinfo (x86 "flags", ARM "Features"), any of which means it is there.
FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX int8": ("amx_int8",),
    "AMX bf16": ("amx_bf16",),
    "bf16": ("avx512_bf16", "bf16"),
    "fp16": ("avx512_fp16", "asimdhp"),
    "dot product": ("asimddp",),
    "int8 matmul": ("i8mm",),
    "SVE": ("sve",),
}
_X86_ONLY = ("AVX2", "AVX-512", "VNNI", "AMX int8", "AMX bf16")
_ARM_ONLY = ("dot product", "int8 matmul", "SVE")

# What results depend on, beside the runtimes, which name their distributions themselves.
PACKAGES = (
    "smash-export", "numpy", "pillow", "torch", "onnx", "onnxscript", "scikit-learn", "scipy",
    "optuna", "ray", "starlette", "uvicorn", "mlcommons-loadgen",
)  # fmt: skip


def describe_machine() -> JsonObject:
    """Processor, cores, features, memory, system and Python, as JSON values."""
    info = _cpuinfo()
    return {
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "distribution": _distribution(),
        "python": platform.python_version(),
        "processor": info.get("model name")
        or info.get("Model")
        or platform.processor()
        or platform.machine(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "features": [name for name, there in cpu_features().items() if there],
        "memory_gib": round(_memory_total() / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        **power_state(),
    }


def cpu_features() -> dict[str, bool]:
    """Name -> whether the processor has it; only what its family could have."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    arm = platform.machine().lower() in ("aarch64", "arm64", "armv7l")
    other_family = _X86_ONLY if arm else _ARM_ONLY
    return {
        name: any(flag in flags for flag in wanted)
        for name, wanted in FEATURES.items()
        if name not in other_family
    }


def gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs as the driver names them; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def versions(names: Iterable[str] | None = None) -> dict[str, str]:
    """Installed version of each package that is there; of all that results depend on unless named."""
    if names is None:
        names = dict.fromkeys([*PACKAGES, *runtime_distributions()])
    return {name: found for name in names if (found := version_of(name)) is not None}


def runtime_distributions() -> dict[str, str]:
    """Distribution -> the module that it may bring, of every registered target."""
    return {
        distribution: module
        for target in described_targets()
        for module, distributions in target.modules.items()
        for distribution in distributions
    }


def version_of(package: str) -> str | None:
    """Installed version of one distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def memory_available() -> int:
    """Bytes that can be had without swapping."""
    return _meminfo("MemAvailable")


def _memory_total() -> int:
    return _meminfo("MemTotal")


def _meminfo(key: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    info: dict[str, str] = {}
    for key, _, value in pairs:
        info.setdefault(key.strip(), value.strip())
    return info


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""
