"""What verification measured of a compiled file, as the manifest keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_export.bundle.bundle import CompiledFile
from smash_export.measure.gates import Gate
from smash_export.measure.verify import Parity
from smash_targets.base import SessionInfo


@dataclass(frozen=True)
class Evidence:
    """What a file was held to, and what it did.

    Attributes:
        gate: What it must reach.
        machine: Where it was measured, see :func:`smash_export.measure.machine.describe_machine`.
        runtime: What ran it; None when it could not be opened.
        parity: Comparison with the reference; None when it could not be run.
        seconds: Time from the start of compilation to the verdict; None for files that others compile.
    """

    gate: Gate
    machine: JsonObject
    runtime: SessionInfo | None = None
    parity: Parity | None = None
    seconds: float | None = None

    def to_json(self) -> JsonObject:
        """The block of the manifest; what was not measured is left out."""
        document: JsonObject = {"gate": asdict(self.gate), "machine": self.machine}
        if self.runtime is not None:
            document["runtime"] = asdict(self.runtime)
        if self.parity is not None:
            document["parity"] = self.parity.to_json()
        if self.seconds is not None:
            document["seconds"] = self.seconds
        return document


@dataclass(frozen=True)
class _Measured:
    """What is shown of the evidence of any version."""

    seconds: float | None = None


def parity_of(file: CompiledFile) -> Parity:
    """What a compiled file was found to do: every file that has its name was measured."""
    return Parity.from_json(file.evidence["parity"])


def seconds_of(file: CompiledFile) -> float | None:
    """Time that compiling and verifying took."""
    return read_record(_Measured, dict(file.evidence), "evidence").seconds
