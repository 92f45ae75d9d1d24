"""A command in a terminal of its own: how long nothing was written there, and what stood there meanwhile."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

ROWS, COLUMNS = 40, 160
WAIT_SECONDS = 600  # for the next byte; a command that is silent for longer hangs
END_SECONDS = 30  # for a process to end when its terminal is closed
KEPT_BYTES = 4000  # of the last that was written
SHOWN = 100  # letters of what stood there
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True)
class Silence:
    """The longest time without a byte.

    Attributes:
        seconds: it lasted; the time to the first byte and that to the end of the process count.
        after: last words before it.
    """

    seconds: float
    after: str


@dataclass(frozen=True)
class Ended:
    """A command that is over.

    Attributes:
        code: its exit code.
        seconds: it took.
        silence: the longest.
        text: last bytes that were written, as a person reads them.
    """

    code: int
    seconds: float
    silence: Silence
    text: str

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the text."""
        return {"exit_code": self.code, "seconds": round(self.seconds, 1), "silence": asdict(self.silence)}


def in_terminal(words: Sequence[str]) -> Ended:
    """Run a command in a pseudo-terminal to its end; one that is silent for minutes is ended."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    begin = last = time.monotonic()
    longest, kept = Silence(0.0, ""), b""
    process = subprocess.Popen(list(words), stdin=child, stdout=child, stderr=child)
    os.close(child)
    while True:
        read = _read(parent)
        now = time.monotonic()
        if now - last > longest.seconds:
            longest = Silence(round(now - last, 3), _readable(kept)[-SHOWN:])
        last = now
        if not read:
            break
        kept = (kept + read)[-KEPT_BYTES:]
    try:
        code = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:  # silent for so long that it hangs
        process.kill()
        code = process.wait()
    os.close(parent)
    return Ended(code, time.monotonic() - begin, longest, _readable(kept))


def _read(parent: int) -> bytes:
    """What was written; nothing when the terminal is closed or the time is over."""
    ready, _, _ = select.select([parent], [], [], WAIT_SECONDS)
    try:
        return os.read(parent, 1 << 16) if ready else b""
    except OSError:  # Linux says so when the last writer has closed it
        return b""


def _readable(written: bytes) -> str:
    return _CONTROL.sub("", written.decode(errors="replace")).strip()
