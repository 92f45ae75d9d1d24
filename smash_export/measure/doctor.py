"""``diagnose()``: what this machine is, what is installed, and what each extra still needs.

The required versions are read from this distribution's own metadata, so there is no second list. A
package counts as there when its distribution is installed; nothing is imported and nothing installed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement as PackageRequirement
from packaging.specifiers import SpecifierSet

from smash_base.json_values import JsonObject
from smash_export import __version__
from smash_export.measure import machine
from smash_targets.listing import TargetState, targets

DISTRIBUTION = "smash-export"


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


@dataclass(frozen=True)
class Extra:
    """One extra of this distribution.

    Attributes:
        ready: whether all of its packages are there.
        missing: those that are not, or are too old.
        install: the exact command that installs it.
    """

    ready: bool
    missing: tuple[str, ...]
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """What this machine is and has.

    Attributes:
        version: Version of smash-export.
        python: its ``version`` and ``executable``.
        machine: see :func:`smash_export.measure.machine.describe_machine`.
        instructions: sets of vector instructions, and whether the processor has them.
        memory_available_gib, disk_free_gib: free now.
        gpus: as the driver names them.
        packages, extras, targets: what is installed and what is missing.
        ok: whether the base is whole.
    """

    version: str
    python: dict[str, str]
    machine: JsonObject
    instructions: dict[str, bool]
    memory_available_gib: float
    disk_free_gib: float
    gpus: list[dict[str, str]]
    packages: list[Requirement]
    extras: dict[str, Extra]
    targets: list[TargetState]
    ok: bool

    def to_json(self) -> JsonObject:
        """JSON values."""
        values = asdict(self)
        values["machine"]["cpu"] = values.pop("instructions")
        return {"smash-export": values.pop("version"), **values}


def diagnose() -> Diagnosis:
    """Everything that ``smash-export doctor`` shows."""
    rows = requirements()
    disk = shutil.disk_usage(Path.cwd())
    extras = {}
    for extra in dict.fromkeys(row.extra for row in rows if row.extra):
        missing = tuple(row.package for row in rows if row.extra == extra and not row.ok)
        extras[extra] = Extra(not missing, missing, install_command(extra))
    return Diagnosis(
        version=__version__,
        python={"version": platform.python_version(), "executable": sys.executable},
        machine=machine.describe_machine(),
        instructions=machine.cpu_features(),
        memory_available_gib=round(machine.memory_available() / 2**30, 1),
        disk_free_gib=round(disk.free / 2**30, 1),
        gpus=machine.gpus(),
        packages=rows,
        extras=extras,
        targets=targets(),
        ok=all(row.ok for row in rows if not row.extra),
    )


def install_command(extra: str) -> str:
    """The exact command that installs one extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def requirements() -> list[Requirement]:
    """Every requirement in this distribution's metadata, base first, checked against what is installed."""
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return []
    lines = [PackageRequirement(line) for line in metadata.get_all("Requires-Dist", [])]
    extras = ["", *metadata.get_all("Provides-Extra", [])]
    # For the plain distribution of a module any other of it will do, for example onnxruntime-openvino.
    providers, modules = importlib.metadata.packages_distributions(), machine.runtime_distributions()
    rows = []
    for line in lines:
        if line.name == DISTRIBUTION:  # an extra that is another extra
            continue
        extra = next((extra for extra in extras if _asks(line, extra)), None)
        if extra is None:  # for another system or Python
            continue
        module = modules.get(line.name, "")
        found = _installed(line.name, providers.get(module, ()) if line.name == module else ())
        required = ",".join(sorted(map(str, line.specifier), reverse=True))
        rows.append(Requirement(line.name, extra, required, found, bool(found) and in_range(found, required)))
    return rows


def in_range(version: str, required: str) -> bool:
    """Whether an installed version satisfies a range such as ``">=2.10,<3"``; "" is any.

    A pre-release comes before its release, as pip has it, and may satisfy a range.
    """
    return SpecifierSet(required).contains(version, prereleases=True)


def _asks(line: PackageRequirement, extra: str) -> bool:
    return line.marker is None or line.marker.evaluate({"extra": extra})


def _installed(package: str, others: Sequence[str]) -> str:
    """Version of a package, or of another one that stands for it; "" when none is there."""
    versions = (machine.version_of(name) for name in (package, *others))
    return next((version for version in versions if version is not None), "")
