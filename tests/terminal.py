"""A command as the foreground job of a terminal, to its end or until somebody presses Ctrl-C."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.terminal import Terminal

CTRL_C = b"\x03"
LONGEST = 120.0  # seconds for words to appear, and for the command to end
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
_PARTS = re.compile(
    r"\x1b\[(?P<count>\d*)(?P<move>[AK])|\x1b\[[0-9;?]*[A-Za-z]|(?P<line>[\r\n])|(?P<text>[^\x1b\r\n]+)"
)


@dataclass(frozen=True)
class Ended:
    """A command that is over.

    Attributes:
        code: its exit code; negative for one that a signal ended.
        written: what the terminal got, control sequences included.
        seconds: from Ctrl-C, or from the beginning, to the end.
    """

    code: int
    written: str
    seconds: float

    @property
    def screen(self) -> list[str]:
        """Lines that stand there at the end, without empty ones."""
        return [line.rstrip() for line in _on_screen(self.written) if line.strip()]

    @property
    def cursor_is_shown(self) -> bool:
        """Whether the last word on the cursor was to show it, after it had been hidden."""
        return HIDE in self.written and self.written.rfind(SHOW) > self.written.rfind(HIDE)


def in_terminal(words: Sequence[str], *, interrupt_at: str | None = None, later: float = 0.0) -> Ended:
    """Run a command; press Ctrl-C so many seconds after some words stand there, which they must."""
    begin = time.monotonic()
    with Terminal(words, columns=120) as terminal:
        written = b""
        if interrupt_at is not None:
            written = _read(terminal, interrupt_at)
            assert interrupt_at in _words(written), _words(written)[-500:]
            time.sleep(later)
            terminal.press(CTRL_C)
            begin = time.monotonic()
        written += _read(terminal, None)
        code = terminal.code(LONGEST)
        assert code != -signal.SIGKILL, "the command did not end"
        return Ended(code, written.decode(errors="replace"), time.monotonic() - begin)


def _read(terminal: Terminal, words: str | None) -> bytes:
    """Everything up to some words, or to the end."""
    written, end = b"", time.monotonic() + LONGEST
    while time.monotonic() < end and (words is None or words not in _words(written)):
        read = terminal.read(1.0)
        if read == b"":
            break
        written += read or b""
    return written


def _words(written: bytes) -> str:
    return "".join(part["text"] or "" for part in _PARTS.finditer(written.decode(errors="replace")))


def _on_screen(written: str) -> list[str]:
    """Lines of a terminal of any height after all that was written; of the cursor's moves those of rich."""
    lines, row, column = [""], 0, 0
    for part in _PARTS.finditer(written):
        if part["move"] == "A":
            row = max(0, row - int(part["count"] or 1))
        elif part["move"] == "K":
            lines[row] = ""
        elif part["line"] == "\r":
            column = 0
        elif part["line"] == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif text := part["text"]:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return lines
