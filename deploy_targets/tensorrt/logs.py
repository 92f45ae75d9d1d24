"""What TensorRT logs, kept for the build or session that was at work.

TensorRT takes the first logger of a process for everything and ignores every later one while an object of the
first is alive. So there is one logger, which hands each line to all logs that are in use. Lines of builds
that run side by side in one process are therefore in both logs.
"""

from __future__ import annotations

import re
import weakref
from typing import Any

from smash_base.errors import MissingRuntimeError

MAX_LINES = 20
_PLACE = re.compile(r"^(?:\[[^\]]*\]|\w+(?:::\w+)*:|[\w./]+\.cpp:\d+:)\s*")
_NOISE = re.compile(r"^(While parsing node number|--- Begin node|--- End node|input: |ERROR: )")


class Log:
    """The first errors and warnings since it was made; the first is the cause, later ones follow from it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def reason(self) -> str:
        """The errors in order, without places in TensorRT's source, which would push the reason away."""
        lines = []
        for text in self.errors:
            text = " ".join(text.split())
            while match := _PLACE.match(text):
                text = text[match.end() :]
            if text and text not in lines and not _NOISE.match(text):
                lines.append(text)
        return "; ".join(lines[:3]) or "no reason given"


_LOGS: weakref.WeakSet[Log] = weakref.WeakSet()
_LOGGERS: dict[str, Any] = {}


def listen(trt: Any) -> tuple[Any, Log]:
    """The one logger of a TensorRT module, and a log that it writes to as long as somebody holds it."""
    if trt.__name__ not in _LOGGERS:
        _LOGGERS[trt.__name__] = _make_logger(trt)
    log = Log()
    _LOGS.add(log)
    return _LOGGERS[trt.__name__], log


def create(trt: Any, kind: Any) -> tuple[Any, Log]:
    """An object of ``trt.Builder`` or ``trt.Runtime``, and its log.

    Raises:
        MissingRuntimeError: no working driver; the library returns no object, and the bindings raise
            TypeError.
    """
    logger, log = listen(trt)
    try:
        return kind(logger), log
    except TypeError as error:
        raise MissingRuntimeError(
            "TensorRT finds no working driver",
            received=log.reason() if log.errors else error,
            hint="Check it: nvidia-smi",
        ) from None


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # not super(): pybind11 must see it called on the base

        def log(self, severity: Any, message: str) -> None:
            for log in list(_LOGS):
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    lines = log.errors
                elif severity == trt.ILogger.Severity.WARNING:
                    lines = log.warnings
                else:
                    continue
                if len(lines) < MAX_LINES:
                    lines.append(message)

    return Logger()
