"""Targets in a process of their own: a crash, a hang or a clash of libraries costs one file, not the run.

    parent                                   child: python -P deploy_targets/isolation/child.py
    compile_isolated(...)   ── pipe ──>      get_target(name).compile(...)
    open_isolated(...)      ── pipe ──>      get_target(name).open(...)
      session.run(batch)    ── pipe ──>        session.run(batch)

The child may be another interpreter with another set of packages; it needs NumPy and its runtime, and
takes this package and ``smash_base`` from here. How they speak: :mod:`smash_targets.isolation.process`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from smash_base.errors import VerificationError
from smash_targets.base import (
    CompileRequest,
    CompileResult,
    ModelSignature,
    OnProgress,
    Session,
    SessionInfo,
    SessionOptions,
    get_target,
)
from smash_targets.common import check_batch
from smash_targets.isolation.process import ChildProcess

COMPILE_SECONDS = 900.0
OPEN_SECONDS = 180.0
RUN_SECONDS = 120.0
_CHILD = Path(__file__).with_name("child.py")


def compile_isolated(
    target: str,
    request: CompileRequest,
    destination: Path,
    *,
    python: Path | None = None,
    seconds: float = COMPILE_SECONDS,
    on_progress: OnProgress | None = None,
) -> CompileResult:
    """:meth:`Target.compile` in a child process.

    Args:
        target: a name of the registry, or "module:class".
        python: the interpreter, this one if left out.
        seconds: after which the child is killed.
        on_progress: see :class:`Target`.

    Raises:
        SmashError: what the target raised; VerificationError when the process crashed or hung.
    """
    with _start(target, python) as child:
        message = {
            "do": "compile",
            "request": {
                **asdict(request),
                "onnx": str(request.onnx.absolute()),
                "torchscript": _text(request.torchscript),
                "torch_program": _text(request.torch_program),
                "options": dict(request.options),
                "calibration": None,
            },
            "destination": str(destination.absolute()),
        }
        answer, _ = child.ask(message, request.calibration, seconds=seconds, on_progress=on_progress)
        return CompileResult(answer["main"], answer["notes"])


def open_isolated(
    target: str,
    path: Path,
    signature: ModelSignature,
    options: SessionOptions,
    *,
    python: Path | None = None,
    seconds: float = OPEN_SECONDS,
    run_seconds: float = RUN_SECONDS,
    lasting: bool = False,
) -> IsolatedSession:
    """:meth:`Target.open` in a child process.

    Args:
        target, python: as for :func:`compile_isolated`.
        seconds: time limit for opening.
        run_seconds: time limit for each run.
        lasting: whether it is there to answer, as a session of this process is, and not to be judged: after a
            crash the next run opens the file anew, and logits that are not finite are handed on.

    Raises:
        SmashError: what the target raised; VerificationError when the process crashed or hung.
    """
    message = {
        "do": "open",
        "path": str(path.absolute()),
        "signature": asdict(signature),
        "options": asdict(options),
    }

    def opened() -> tuple[ChildProcess, SessionInfo]:
        child = _start(target, python)
        try:
            answer, _ = child.ask(message, seconds=seconds)
            return child, SessionInfo(**answer["info"])
        except BaseException:
            child.close()
            raise

    return IsolatedSession(*opened(), signature, run_seconds, opened if lasting else None)


class IsolatedSession(Session):
    """A session whose runtime is in a child process.

    Args:
        child: has the file open.
        info: Facts about its runtime.
        signature: Names and shapes of the file.
        seconds: time limit for each run.
        reopen: starts another child when this one has ended, see ``lasting`` of :func:`open_isolated`.

    Attributes:
        last_seconds: what the last run took inside the child, without the way there and back (about
            0.1 ms for a small image).
    """

    def __init__(
        self,
        child: ChildProcess,
        info: SessionInfo,
        signature: ModelSignature,
        seconds: float,
        reopen: Callable[[], tuple[ChildProcess, SessionInfo]] | None = None,
    ) -> None:
        self._child, self._signature, self._seconds, self._reopen = child, signature, seconds, reopen
        self.info = info
        self.last_seconds = 0.0

    def run(self, batch: np.ndarray) -> np.ndarray:
        """See :meth:`Session.run`.

        Raises:
            VerificationError: the child crashed or hung (the session is closed then, unless it is a lasting
                one), or the logits hold NaN or infinities (unless it is a lasting one).
        """
        batch = check_batch(batch, self._signature)
        if self._reopen is not None and self._child.ended:
            self._child, self.info = self._reopen()
        answer, logits = self._child.ask({"do": "run"}, batch, seconds=self._seconds)
        self.last_seconds = answer["seconds"]
        if logits is None or logits.shape != (len(batch), self._signature.classes):
            raise VerificationError(
                f"{self.info.target} gave no logits for every image",
                expected=[len(batch), self._signature.classes],
                received=None if logits is None else list(logits.shape),
            )
        if self._reopen is None and not np.isfinite(logits).all():
            raise VerificationError(
                f"{self.info.target} gave logits that are not numbers",
                expected="finite values",
                received=f"NaN or infinity for {int((~np.isfinite(logits)).any(1).sum())} images",
            )
        return logits

    def close(self) -> None:
        self._reopen = None
        self._child.close()


def _start(target: str, python: Path | None) -> ChildProcess:
    """A child for a target: a name of the registry, or "module:class"."""
    if ":" not in target:
        get_target(target)  # a wrong name is said here, not by a child that cannot start
    # As on the command line: threads that spin take the processor from all others, this process included.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    if python is not None:  # its packages, not ours
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            environment.pop(name, None)
    # -P: the folder of child.py holds files named like the runtimes.
    return ChildProcess(target, [str(python or sys.executable), "-P", str(_CHILD), target], environment)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
