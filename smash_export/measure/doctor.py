"""``diagnose()``: what this machine is, what is installed, and what each extra still needs.

The required versions are read from this distribution's own metadata, so there is no second list. A
package counts as there when its distribution is installed; nothing is imported and nothing installed.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smash_export import __version__
from smash_export.measure import machine
from smash_targets.listing import targets

DISTRIBUTION = "smash-export"
_REQUIREMENT = re.compile(
    r"""^(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?P<range>[^;]*?)\s*
        (?:;.*?extra\s*==\s*["'](?P<extra>[^"']+)["'].*)?$""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Requirement:
    """One package that this project can use.

    Attributes:
        package: name of the distribution.
        extra: the extra that asks for it, "" for the base.
        required: version range, for example ">=2.10"; "" for any.
        found: installed version, "" when missing.
        ok: whether ``found`` is in the range.
    """

    package: str
    extra: str
    required: str
    found: str
    ok: bool


def diagnose() -> dict[str, Any]:
    """Everything ``smash-export doctor`` prints, as JSON values."""
    rows = requirements()
    disk = shutil.disk_usage(Path.cwd())
    extras: dict[str, dict[str, Any]] = {}
    for extra in dict.fromkeys(row.extra for row in rows if row.extra):
        missing = [row.package for row in rows if row.extra == extra and not row.ok]
        extras[extra] = {"ready": not missing, "missing": missing, "install": install_command(extra)}
    return {
        "smash-export": __version__,
        "python": {"version": machine.describe_machine()["python"], "executable": sys.executable},
        "machine": {**machine.describe_machine(), "cpu": machine.cpu_features()},
        "memory_available_gib": round(machine.memory_available() / 2**30, 1),
        "disk_free_gib": round(disk.free / 2**30, 1),
        "gpus": machine.gpus(),
        "packages": [vars(row) for row in rows],
        "extras": extras,
        "targets": targets(),
        "ok": all(row.ok for row in rows if not row.extra),
    }


def install_command(extra: str) -> str:
    """The exact command that installs one extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def requirements() -> list[Requirement]:
    """Every requirement in this distribution's metadata, base first, checked against what is installed."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return []
    # Any other distribution of the same module will do, for example onnxruntime-openvino.
    providers, modules = importlib.metadata.packages_distributions(), machine.runtime_distributions()
    rows = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match["name"] == DISTRIBUTION:  # an extra that is another extra
            continue
        found = _installed(match["name"], providers.get(modules.get(match["name"], ""), ()))
        required = match["range"].strip()
        rows.append(
            Requirement(
                package=match["name"],
                extra=match["extra"] or "",
                required=required,
                found=found,
                ok=bool(found) and in_range(found, required),
            )
        )
    return rows


def in_range(version: str, required: str) -> bool:
    """Whether a version satisfies ``>=``, ``<`` and ``==`` bounds such as ``">=2.10,<3"``."""
    have = _numbers(version)
    for bound in filter(None, (part.strip() for part in required.split(","))):
        match = re.match(r"(>=|<=|==|!=|>|<)\s*(.+)", bound)
        if match is None:
            return False
        want = _numbers(match[2])
        length = max(len(have), len(want))
        left = have + (0,) * (length - len(have))
        right = want + (0,) * (length - len(want))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            ">": left > right,
            "<": left < right,
        }
        if not holds[match[1]]:
            return False
    return True


def _installed(package: str, others: Sequence[str]) -> str:
    """Version of a package, or of another one that stands for it; "" when none is there."""
    versions = (machine.version_of(name) for name in (package, *others))
    return next((version for version in versions if version is not None), "")


def _numbers(version: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13, 0); a pre-release counts as its release."""
    match = re.match(r"\d+(?:\.\d+)*", version.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()
