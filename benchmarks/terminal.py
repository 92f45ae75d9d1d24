"""A command in a terminal of its own: how long nothing was written there, and what stood there meanwhile.

The tests press Ctrl-C in such a terminal (tests/terminal.py).
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
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
# The terminal becomes that of the command's own session. This process must not do it between fork and exec:
# with the threads of other libraries in it, a child that runs Python may crash. Ctrl-C counts there even
# where this process was started in the background of a shell, which has it ignored.
_FOREGROUND = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError:
    os._exit(127)  # what a shell says of a program that cannot be started
"""
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


class Terminal:
    """A command as the foreground job of a pseudo-terminal of its own: Ctrl-C reaches the whole job.

    Args:
        words: the command; its program is looked for as a shell does.
        columns: of the terminal.
    """

    def __init__(self, words: Sequence[str], columns: int = COLUMNS) -> None:
        self._terminal, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        size = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(ROWS)}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FOREGROUND, *words],
            stdin=child,
            stdout=child,
            stderr=child,
            env=os.environ | size,
        )
        os.close(child)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._terminal)

    def read(self, seconds: float) -> bytes | None:
        """What is written next: nothing (``b""``) at the end, None if nothing comes for so many seconds."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return None
        try:
            return os.read(self._terminal, 1 << 16)
        except OSError:  # Linux says so when the last writer has closed it
            return b""

    def press(self, keys: bytes) -> None:
        """As somebody at the keyboard."""
        os.write(self._terminal, keys)

    def code(self, seconds: float) -> int:
        """The exit code; negative for a command that a signal ended, as one that does not end in time is."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def in_terminal(words: Sequence[str]) -> Ended:
    """Run a command in a pseudo-terminal to its end; one that is silent for minutes is ended."""
    begin = last = time.monotonic()
    longest, kept = Silence(0.0, ""), b""
    with Terminal(words) as terminal:
        while True:
            read = terminal.read(WAIT_SECONDS)
            now = time.monotonic()
            if now - last > longest.seconds:
                longest = Silence(round(now - last, 3), _readable(kept)[-SHOWN:])
            last = now
            if not read:
                break
            kept = (kept + read)[-KEPT_BYTES:]
        code = terminal.code(END_SECONDS)
    return Ended(code, time.monotonic() - begin, longest, _readable(kept))


def _readable(written: bytes) -> str:
    return _CONTROL.sub("", written.decode(errors="replace")).strip()
