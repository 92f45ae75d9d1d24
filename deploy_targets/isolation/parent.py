"""Targets in a process of their own: a crash, a hang or a clash of libraries costs one file, not the run.

    parent                                   child: python -P deploy_targets/isolation/child.py
    compile_isolated(...)   ── pipe ──>      get_target(name).compile(...)
    open_isolated(...)      ── pipe ──>      get_target(name).open(...)
      session.run(batch)    ── pipe ──>        session.run(batch)

The child may be another interpreter with another set of packages; it needs NumPy and its runtime, and
takes this package and ``smash_base`` from here. A message is one line of JSON and, behind it, the bytes of
at most one float32 array: no pickle, which two versions of NumPy would not read alike.

Every failure is one :class:`smash_base.errors.SmashError`: those that the target raised come back as they
were; a crash, a time limit and logits that are not numbers are a ``VerificationError``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from smash_base import errors
from smash_base.errors import SmashError, VerificationError
from smash_targets.base import (
    CompileRequest,
    CompileResult,
    ModelSignature,
    Progress,
    Session,
    SessionInfo,
    SessionOptions,
    get_target,
)
from smash_targets.common import check_batch

COMPILE_SECONDS = 900.0
OPEN_SECONDS = 180.0
RUN_SECONDS = 120.0
_CHILD = Path(__file__).with_name("child.py")
_LARGEST_ANSWER = 2**30


def compile_isolated(
    target: str,
    request: CompileRequest,
    destination: Path,
    *,
    python: Path | None = None,
    seconds: float = COMPILE_SECONDS,
    on_progress: Progress | None = None,
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
    with _Child(target, python) as child:
        message = {
            "do": "compile",
            "request": {
                **asdict(request),
                "onnx": str(request.onnx.absolute()),
                "torchscript": _text(request.torchscript),
                "exported": _text(request.exported),
                "options": dict(request.options),
                "calibration": None,
            },
            "destination": str(destination.absolute()),
        }
        answer, _ = child.ask(message, request.calibration, seconds, on_progress)
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
) -> IsolatedSession:
    """:meth:`Target.open` in a child process.

    Args:
        target, python: as for :func:`compile_isolated`.
        seconds: time limit for opening.
        run_seconds: time limit for each run.

    Raises:
        SmashError: what the target raised; VerificationError when the process crashed or hung.
    """
    child = _Child(target, python)
    try:
        message = {
            "do": "open",
            "path": str(path.absolute()),
            "signature": asdict(signature),
            "options": asdict(options),
        }
        answer, _ = child.ask(message, None, seconds)
        return IsolatedSession(child, signature, SessionInfo(**answer["info"]), run_seconds)
    except BaseException:
        child.close()
        raise


class IsolatedSession(Session):
    """A session whose runtime is in a child process.

    Attributes:
        last_seconds: what the last run took inside the child, without the way there and back (about
            0.1 ms for a small image).
    """

    def __init__(self, child: _Child, signature: ModelSignature, info: SessionInfo, seconds: float) -> None:
        self._child, self._signature, self._seconds = child, signature, seconds
        self.info = info
        self.last_seconds = 0.0

    def run(self, batch: np.ndarray) -> np.ndarray:
        """See :meth:`Session.run`.

        Raises:
            VerificationError: the child crashed or hung (the session is closed then), or the logits
                hold NaN or infinities.
        """
        batch = check_batch(batch, self._signature)
        answer, logits = self._child.ask({"do": "run"}, batch, self._seconds)
        self.last_seconds = answer["seconds"]
        if logits is None or logits.shape != (len(batch), self._signature.classes):
            raise VerificationError(
                f"{self.info.target} gave no logits for every image",
                expected=[len(batch), self._signature.classes],
                received=None if logits is None else list(logits.shape),
            )
        if not np.isfinite(logits).all():
            raise VerificationError(
                f"{self.info.target} gave logits that are not numbers",
                expected="finite values",
                received=f"NaN or infinity for {int((~np.isfinite(logits)).any(1).sum())} images",
            )
        return logits

    def close(self) -> None:
        self._child.close()


class _Child:
    """The process, and questions to it. Its stderr goes to a file, whose end explains a crash."""

    def __init__(self, target: str, python: Path | None) -> None:
        if ":" not in target:
            get_target(target)  # a wrong name is said here, not by a child that cannot start
        self._target = target
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        environment = dict(os.environ)
        if python is not None:  # its packages, not ours
            for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
                environment.pop(name, None)
        # -P: the folder of child.py holds files named like the runtimes.
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-P", str(_CHILD), target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # so that what it starts can be ended with it
            bufsize=0,
        )

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        message: Mapping[str, Any],
        array: np.ndarray | None,
        seconds: float,
        on_progress: Progress | None = None,
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Send one question and wait for its answer, at most that long."""
        if self._process.stdin is None or self._process.stdin.closed:
            raise VerificationError(f"the process of {self._target} has ended", hint="Open the file again.")
        deadline = time.monotonic() + seconds
        try:
            self._send(message, array, deadline)
            answer = json.loads(self._receive_line(deadline))
            while "progress" in answer:
                if on_progress is not None:
                    on_progress(*answer["progress"])
                answer = json.loads(self._receive_line(deadline))
            result = None
            if answer.get("shape") is not None:
                shape = tuple(map(int, answer["shape"]))
                data = self._receive(int(np.prod(shape)) * 4, deadline)
                result = np.frombuffer(data, np.float32).reshape(shape)
        except TimeoutError:
            self._kill()
            raise self._failed(f"did not answer within {seconds:g} seconds", message) from None
        except (BrokenPipeError, EOFError):
            self._process.wait()
            raise self._failed(_how_it_ended(self._process.returncode), message) from None
        except ValueError:
            self._kill()
            raise self._failed("answered something that is not JSON", message) from None
        if "error" in answer:
            raise _rebuild(answer["error"])
        return answer, result

    def close(self) -> None:
        """End the process: by closing its input, by force if that takes long."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                self._kill()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def _send(self, message: Mapping[str, Any], array: np.ndarray | None, deadline: float) -> None:
        shape = None if array is None else list(array.shape)
        line = json.dumps({**message, "shape": shape}).encode() + b"\n"
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        content = b"" if array is None else np.ascontiguousarray(array, np.float32).tobytes()
        for part in (line, content):
            sent = 0
            while sent < len(part):
                _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError
                sent += os.write(descriptor, part[sent : sent + 65536])

    def _receive(self, size: int, deadline: float) -> bytearray:
        if size > _LARGEST_ANSWER:
            raise ValueError
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(descriptor, size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _receive_line(self, deadline: float) -> bytes:
        # The length comes first, in eight digits, so that nothing behind the line is read with it.
        return bytes(self._receive(int(self._receive(8, deadline)), deadline))

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _failed(self, how: str, message: Mapping[str, Any]) -> VerificationError:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        return VerificationError(
            f"the process of {self._target} {how} at {message['do']}",
            received=lines[-1] if lines else None,
            hint="Other files of the bundle are not affected.",
        )


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"crashed ({signal.Signals(-code).name})"
    return f"crashed (signal {-code})"


def _rebuild(error: dict[str, Any]) -> SmashError | OSError:
    """An error of the child as one of this process; a kind that is not ours is a defect of the runtime."""
    name = str(error.pop("kind"))
    if name == "disk full":  # no fault of the runtime: said as for a write of this process
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    kind = getattr(errors, name, VerificationError)
    what = str(error.pop("what"))
    if not (isinstance(kind, type) and issubclass(kind, SmashError)):
        kind = VerificationError
    return kind(what, **error)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
