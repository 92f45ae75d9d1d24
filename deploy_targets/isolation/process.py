"""A child process that answers questions, one at a time: the parent's end of the one protocol.

A message is one line of JSON and, behind it, the bytes of at most one float32 array: no pickle, which two
versions of NumPy would not read alike. The child's end is :mod:`smash_targets.isolation.answers`.

Every failure is one :class:`smash_base.errors.SmashError`: those that the child raised come back as they
were; a crash, a time limit and an answer that is none are a ``VerificationError``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smash_base import errors
from smash_base.errors import SmashError, VerificationError
from smash_targets.base import OnProgress

_LARGEST_ANSWER = 2**30


class ChildProcess:
    """The process, and questions to it. Its stderr goes to a file, whose end explains a crash.

    Args:
        name: what runs in it, for messages.
        words: the command.
        environment: its variables.
    """

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # so that what it starts can be ended with it
            bufsize=0,
        )

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        message: Mapping[str, Any],
        array: np.ndarray | None = None,
        *,
        seconds: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Send one question and wait for its answer, at most that long.

        Args:
            message: JSON values; ``do`` says what is asked.
            array: float32, sent behind it.
            seconds: after which the process is killed.
            on_progress: called when the child reports how far it is.

        Raises:
            SmashError: what the child raised; VerificationError when it crashed or hung, after which the
                process has ended.
        """
        if self.ended:
            raise VerificationError(f"the process of {self._name} has ended", hint="Open the file again.")
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

    @property
    def ended(self) -> bool:
        """Whether it can be asked no more: closed, or found dead by an earlier question."""
        return self._process.stdin is None or self._process.stdin.closed

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
                _wait(descriptor, select.POLLOUT, deadline)
                sent += os.write(descriptor, part[sent : sent + 65536])

    def _receive(self, size: int, deadline: float) -> bytearray:
        if size > _LARGEST_ANSWER:
            raise ValueError
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            _wait(descriptor, select.POLLIN, deadline)
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
            f"the process of {self._name} {how} at {message['do']}",
            received=lines[-1] if lines else None,
            hint="Other files of the bundle are not affected.",
        )


def _wait(descriptor: int, event: int, deadline: float) -> None:
    """Until a pipe can be read or written. Not select(), which knows 1,024 files: a server has more.

    Raises:
        TimeoutError: at the deadline.
    """
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
        raise TimeoutError


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
