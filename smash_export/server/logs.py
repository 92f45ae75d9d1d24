"""Structured logs: one JSON object per line on stderr, with the request's id where there is one.

Lines go through a bounded queue to a thread that writes them: whoever reads stderr and stops reading must
not stop the server. What does not fit is dropped and counted, and the next line that can be written says
how many. What clients can cause at will is held back by :class:`Throttle`.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

LOGGER = "smash_export.server"
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
_QUEUE_LINES = 4096
_FLUSH_S = 1.0
_STDERR = 2
_KIND = 20  # characters of asyncio's messages that name their kind; what follows differs


class JsonFormatter(logging.Formatter):
    """Time, level, message and the fields of ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        identity = REQUEST_ID.get()
        if identity:
            entry["request_id"] = identity
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class QueuedLines(logging.Handler):
    """Hands formatted lines to a thread that writes them; drops and counts what it cannot take.

    Args:
        descriptor: open file that is written to. Written without Python's buffer, whose lock a blocked
            write would hold until the interpreter ends.
        size: lines that may wait.
    """

    def __init__(self, descriptor: int = _STDERR, size: int = _QUEUE_LINES) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(size)
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:  # noqa: BLE001 - a line that cannot be formatted must not fail a request
            self.handleError(record)

    def flush(self) -> None:
        """Wait until what was logged is written, but not for a reader that does not read."""
        deadline = time.monotonic() + _FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            self._write(line)
            if self.dropped and self._lines.empty():
                count, self.dropped = self.dropped, 0
                record = logging.LogRecord(LOGGER, logging.WARNING, "", 0, "log lines dropped", None, None)
                record.fields = {"lines": count}
                self._write(self.format(record))
            self._lines.task_done()

    def _write(self, line: str) -> None:
        data = line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # closed: nobody will ever read it
            return


class Throttle:
    """Lets a few events of each kind through in a period and counts the rest.

    Args:
        count: events that pass in a period.
        seconds: length of a period.
        clock: seconds, monotonic.
    """

    def __init__(
        self, count: int = 50, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count, self._seconds, self._clock = count, seconds, clock
        self._kinds: dict[str, tuple[float, int, int]] = {}  # begin of the period, passed, held back

    def admit(self, kind: str) -> int | None:
        """None: hold this one back. A number: let it through, and so many were held back before it."""
        now = self._clock()
        began, passed, held = self._kinds.get(kind, (now, 0, 0))
        if now - began >= self._seconds:
            began, passed = now, 0
        if passed >= self._count:
            self._kinds[kind] = (began, passed, held + 1)
            return None
        self._kinds[kind] = (began, passed + 1, 0)
        return held

    def log(self, level: int, message: str, /, **fields: object) -> None:
        """:func:`log` unless too many of this kind were logged; ``suppressed`` tells how many were not."""
        held = self.admit(message)
        if held is not None:
            log(level, message, **fields, **({"suppressed": held} if held else {}))


class _Throttled(logging.Filter):
    """Holds back what asyncio says again and again: a thousand times in a second when files run out."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle(1, 10.0)

    def filter(self, record: logging.LogRecord) -> bool:
        held = self._throttle.admit(record.getMessage()[:_KIND])
        if held:
            record.fields = {"suppressed": held}
        return held is not None


def configure(level: str) -> QueuedLines:
    """Send this package's and its libraries' logs to stderr as JSON lines."""
    handler = QueuedLines()
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER, "uvicorn", "grpc", "asyncio", "python_multipart"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper() if name == LOGGER else max(logging.WARNING, logger.level))
    logging.getLogger("asyncio").filters = [_Throttled()]
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of what the answer says
    return handler


def log(level: int, message: str, **fields: object) -> None:
    """One line with fields."""
    logging.getLogger(LOGGER).log(level, message, extra={"fields": fields})
