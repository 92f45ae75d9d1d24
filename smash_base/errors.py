"""One error type per documented exit code.

Every message says what was expected, what was received and what to do next. The command line prints
it on one line and leaves with ``exit_code``; a traceback therefore always means a defect of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SmashError(Exception):
    """Base of every error that a user can cause or meet.

    Args:
        what: what is wrong, as a sentence without a full stop.
        expected: what would have been right.
        received: what came instead (shortened to 200 characters).
        hint: the next thing to try, a command where there is one.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        expected: object | None = None,
        received: object | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.expected = None if expected is None else str(expected)
        self.received = None if received is None else _shorten(str(received))
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.received is not None:
            parts.append(f"received {self.received}")
        line = "; ".join(parts)
        return f"{line}. {self.hint}" if self.hint else line

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (executors, isolated targets); keyword arguments need help.
        return (_rebuild, (type(self), self.what, self.expected, self.received, self.hint))


def _rebuild(
    kind: type[SmashError],
    what: str,
    expected: str | None,
    received: str | None,
    hint: str | None,
) -> SmashError:
    return kind(what, expected=expected, received=received, hint=hint)


def _shorten(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class UsageError(SmashError):
    """Flags or arguments that contradict each other or name nothing that exists (exit code 2)."""

    exit_code = 2


class MissingRuntimeError(SmashError):
    """A runtime, driver or device is not there; the hint is the exact command (exit code 3)."""

    exit_code = 3


class VerificationError(SmashError):
    """A compiled file does not do what the network does (exit code 4)."""

    exit_code = 4


class GateError(SmashError):
    """An accuracy or latency limit that the user set is not met (exit code 5)."""

    exit_code = 5


class InvalidInputError(SmashError):
    """A file or value from outside that is malformed, unsafe or too large (exit code 6)."""

    exit_code = 6


@contextmanager
def said_by_the_caller() -> Iterator[None]:
    """Turn the refusal of a value into a UsageError: it is on the command line, not in a file."""
    try:
        yield
    except InvalidInputError as error:
        raise UsageError(
            error.what, expected=error.expected, received=error.received, hint=error.hint
        ) from None
