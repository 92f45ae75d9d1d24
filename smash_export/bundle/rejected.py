"""Files of a bundle that failed verification: kept, listed with the reason, never used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from smash_export.bundle.bundle import Bundle
from smash_export.bundle.integrity import REJECTED

REPORT = "report.json"
MAX_REPORT_BYTES = 64 * 2**20
MAX_REASON = 1000  # characters shown of one reason; the manifest does not vouch for the folder


@dataclass(frozen=True)
class RejectedFile:
    """One folder ``targets/TARGET/PRECISION.rejected``.

    Attributes:
        target, precision: what it was compiled for.
        folder: relative to the bundle.
        problems: Reasons why it was refused.
    """

    target: str
    precision: str
    folder: str
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """``target:precision``, as for files that passed."""
        return f"{self.target}:{self.precision}"


def rejected_files(
    bundle: Bundle, target: str | None = None, precision: str | None = None
) -> list[RejectedFile]:
    """What was refused and is still there, in the order of the names.

    Args:
        target, precision: only files of these; None for any.
    """
    folders = sorted((bundle.path / "targets").glob(f"*/*{REJECTED}"))
    found = [_read(folder) for folder in folders if folder.is_dir() and not folder.is_symlink()]
    return [file for file in found if target in (None, file.target) and precision in (None, file.precision)]


def _read(folder: Path) -> RejectedFile:
    target, precision = folder.parent.name, folder.name.removesuffix(REJECTED)
    where = f"targets/{target}/{folder.name}"
    return RejectedFile(target, precision, where, _problems(folder / REPORT))


def _problems(report: Path) -> tuple[str, ...]:
    """The reasons in a report; one that cannot be read is a reason of its own."""
    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise ValueError("too large")
        reasons = json.loads(report.read_bytes())["problems"]
        return tuple(str(reason)[:MAX_REASON] for reason in reasons)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return (f"its {REPORT} cannot be read",)
