"""Files of a bundle that other programs run: targets so that commands which go through a bundle list them."""

from __future__ import annotations

from pathlib import Path

from smash_base.errors import MissingRuntimeError
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionOptions,
    Target,
)


class ElsewhereTarget(Target):
    """A target that is never available here; a command of its own writes its files.

    Class attributes:
        why: Reason why nothing here opens them, for a table.
        way: What to do instead, for a table.
        refusal: The same reason as a sentence, for an error.
        command: Command that writes the files.
    """

    why: str
    way: str
    refusal: str
    command: str

    def availability(self) -> Availability:
        return Availability(False, reason=self.why, install=self.way)

    def require(self) -> None:
        raise self._not_here()

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        raise self._not_here()

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        raise self._not_here()

    def _not_here(self) -> MissingRuntimeError:
        return MissingRuntimeError(self.refusal, hint=f"Its own command writes it: {self.command}")
