"""Programs that talk to a device, run with a time limit and listened to while they run."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO

from smash_export.remote.device import MAX_ANSWER_BYTES, DeviceError, Ended, Told


def find_program(words: Sequence[str], package: str) -> list[str]:
    """The words with their first one found on the PATH; raises DeviceError with Debian's package."""
    path = shutil.which(words[0])
    if path is None:
        raise DeviceError(f"there is no program {words[0]}", hint=f"Install it: apt install {package}")
    return [path, *words[1:]]


def listen(
    words: Sequence[str],
    seconds: float,
    *,
    name: str,
    told: Told = lambda line: None,
    feed: Callable[[IO[bytes]], None] | None = None,
) -> Ended:
    """Run a program of this machine to its end.

    Args:
        seconds: it may take.
        name: Name of the device, for the error.
        told: gets the lines that it writes to stderr.
        feed: writes its stdin; closed without.

    Raises:
        DeviceError: it took longer, or answered with more than 256 MiB.
    """
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this program, which ends the other one itself
    )
    lines: list[str] = []
    parts: list[bytes] = []
    too_much = threading.Event()

    def read_errors() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.decode(errors="replace").rstrip("\r\n"))
            told(lines[-1])

    def read_answer() -> None:
        assert process.stdout is not None
        left = MAX_ANSWER_BYTES
        while left >= 0 and (data := process.stdout.read1(1 << 20)):  # type: ignore[attr-defined]
            parts.append(data)
            left -= len(data)
        if left < 0:
            too_much.set()
            process.kill()

    def write() -> None:
        assert process.stdin is not None
        assert feed is not None
        try:
            with process.stdin as stream:
                feed(stream)
        except BrokenPipeError:  # it ended early: its own words say why
            pass

    targets = [read_errors, read_answer, *([write] if feed else [])]
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{name} does not answer",
            expected=f"an answer within {seconds:g} s",
            hint="Is it switched on and in reach? --device-timeout gives it longer.",
        ) from None
    finally:
        process.kill()
        process.wait()
    for thread in threads:
        thread.join(5)
    if too_much.is_set():
        raise DeviceError(
            f"{name} answers with too much", expected=f"at most {MAX_ANSWER_BYTES // 2**20} MiB"
        )
    return Ended(code, b"".join(parts), "\n".join(lines))
