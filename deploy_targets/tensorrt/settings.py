"""Options of the TensorRT targets, checked before TensorRT is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_targets.base import ModelSignature

HARDWARE = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}
PRICES = {
    "version_compatible": "version-compatible: larger by the lean runtime inside it, and may be slower",
    "ampere+": "for Ampere and newer: kernels of one generation are left out, so it may be slower",
    "same": "for every GPU of this compute capability: tuned on this one",
}


@dataclass(frozen=True)
class BuildSettings:
    """Options of the target.

    Attributes:
        batch: smallest, usual and largest.
        workspace_mib: limit of scratch memory.
        level: builder optimisation level; 0 ignores the timing cache.
        timing_cache: keep timings for the next build.
        version_compatible, hardware: see ``PRICES``.
        dla: DLA core that computes, None for the GPU.
        gpu_fallback: whether layers that the DLA does not take may run on the GPU; if not, they are an error.
    """

    batch: tuple[int, int, int]
    workspace_mib: int = 1024
    level: int = 3
    timing_cache: bool = True
    version_compatible: bool = False
    hardware: str = "none"
    dla: int | None = None
    gpu_fallback: bool = False

    def flags(self, precision: str) -> JsonObject:
        """What the manifest of an engine keeps, and what builds it again needs."""
        return {
            "tf32": precision == "tf32",
            "level": self.level,
            "workspace_mib": self.workspace_mib,
            "version_compatible": self.version_compatible,
            "hardware": self.hardware,
            "dla": self.dla,
            "gpu_fallback": self.gpu_fallback,
        }


OPTIONS = (
    "batch",
    "workspace_mib",
    "level",
    "timing_cache",
    "version_compatible",
    "hardware",
    "dla",
    "gpu_fallback",
)


def read_settings(
    options: Mapping[str, Any], signature: ModelSignature, precision: str = "fp32"
) -> BuildSettings:
    """Options by name, checked.

    Raises:
        UsageError: a value out of range.
    """
    batch = options.get("batch", signature.batch if options.get("dla") is None else signature.batch[1])
    sizes = [batch] * 3 if isinstance(batch, int) else list(batch) if isinstance(batch, list | tuple) else []
    if (
        len(sizes) != 3
        or not all(type(size) is int for size in sizes)
        or not 1 <= sizes[0] <= sizes[1] <= sizes[2]
    ):
        raise UsageError("option batch", expected="N or [smallest, usual, largest] in order", received=batch)
    least, _, most = signature.batch
    if not least <= sizes[0] <= sizes[2] <= most:
        raise UsageError("option batch", expected=f"within the bundle's {least} to {most}", received=batch)
    values = {name: options[name] for name in OPTIONS[1:] if name in options}
    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "workspace_mib": ("1 to 1048576", lambda value: type(value) is int and 1 <= value <= 2**20),
        "level": ("0 to 5", lambda value: type(value) is int and 0 <= value <= 5),
        "timing_cache": ("true or false", lambda value: isinstance(value, bool)),
        "version_compatible": ("true or false", lambda value: isinstance(value, bool)),
        "hardware": (" or ".join(HARDWARE), lambda value: isinstance(value, str) and value in HARDWARE),
        "dla": ("0 to 15", lambda value: type(value) is int and 0 <= value <= 15),
        "gpu_fallback": ("true or false", lambda value: isinstance(value, bool)),
    }
    for name, value in values.items():
        expected, check = checks[name]
        if not check(value):
            raise UsageError(f"option {name}", expected=expected, received=value)
    settings = BuildSettings((sizes[0], sizes[1], sizes[2]), **values)
    if settings.dla is not None:
        if sizes[0] != sizes[2]:
            raise UsageError("a DLA takes fixed shapes only", expected="option batch=N", received=batch)
        if precision not in ("fp16", "int8"):
            raise UsageError("a DLA computes in fp16 and int8", expected="fp16 or int8", received=precision)
    elif settings.gpu_fallback:
        raise UsageError("option gpu_fallback is for a DLA", expected="option dla=CORE beside it")
    return settings
