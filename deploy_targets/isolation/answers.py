"""The child's end of :mod:`smash_targets.isolation.process`: answer until the input ends.

Runtimes print to stdout as they like, so answers go to a descriptor of their own and stdout goes where stderr
goes.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from smash_base.errors import SmashError
from smash_base.json_values import JsonObject

Send = Callable[[JsonObject], None]
Answer = tuple[JsonObject, np.ndarray | None]


def answer_all(name: str, answer: Callable[[dict[str, Any], np.ndarray | None, Send], Answer]) -> None:
    """Answer every question of the parent; returns when it closes the pipe.

    Args:
        name: what runs here, for messages.
        answer: called with a message, its array (float32, or None), and a function that sends progress;
            returns JSON values and at most one array.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _end_with_parent()

    def send(values: JsonObject, content: bytes = b"") -> None:
        data = json.dumps(values, default=str).encode()
        answers.write(b"%8d" % len(data) + data + content)
        answers.flush()

    questions = sys.stdin.buffer
    for line in iter(questions.readline, b""):
        message = json.loads(line)
        result = None
        try:
            values, result = answer(message, _array(message.pop("shape"), questions), send)
        except SmashError as error:
            values = {"error": {"kind": _kind(error), **vars(error)}}
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is an answer, not the end
            values = {"error": _defect(f"{name} failed at {message['do']}", error)}
        if result is not None:
            result = np.ascontiguousarray(result, np.float32)
        values["shape"] = None if result is None else result.shape
        send(values, b"" if result is None else result.tobytes())


def _array(shape: list[int] | None, questions: IO[bytes]) -> np.ndarray | None:
    if shape is None:
        return None
    return np.frombuffer(questions.read(int(np.prod(shape)) * 4), np.float32).reshape(shape)


def _kind(error: SmashError) -> str:
    """Name of the error type that the parent knows: that of smash_base which a target's own is of."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == SmashError.__module__)


def _defect(what: str, error: Exception) -> dict[str, str | None]:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return {
        "kind": "disk full" if full else "VerificationError",
        "what": what,
        "expected": None,
        "received": f"{type(error).__name__}: {error}",
        "hint": None,
    }


def _end_with_parent() -> None:
    """A runtime that hangs never reads the end of its input; a parent that was killed cannot say so."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
