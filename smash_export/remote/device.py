"""Run a command of this program on another machine in one step: copy, run, read back.

The device needs this program and a runtime, no PyTorch. What a command reads is copied into a folder of its
own on the device, named after the task, so that a task that was cut off goes on where it was; the folder is
removed once the answer is here. Every step has a time limit and an error of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smash_base import files
from smash_base.errors import (
    GateError,
    InvalidInputError,
    MissingRuntimeError,
    SmashError,
    UsageError,
    VerificationError,
)
from smash_export import __version__
from smash_export.bundle.manifest import RECORDED

COPY_SECONDS = 300.0  # for copying a file or folder one way, unless the user gives it longer
CONNECT_SECONDS = 30.0  # for the first question
MAX_ANSWER_BYTES = 2**28
_ERRORS: dict[int, type[SmashError]] = {
    kind.exit_code: kind
    for kind in (UsageError, MissingRuntimeError, VerificationError, GateError, InvalidInputError)
}
_PROCESS = "process"  # file in a task's folder: the number of the process that works there
# POSIX shell; $d is the folder. The number may be another process's by now: its command names the folder.
_END_EARLIER = (
    f'if p=$(cat $d/{_PROCESS} 2>/dev/null) && grep -q "${{d##*/}}" /proc/$p/cmdline 2>/dev/null; then '
    "kill $p; for i in 1 2 3 4 5 6 7 8; do kill -0 $p 2>/dev/null || break; sleep 1; done; fi"
)
_WITH_RESULT = (0, VerificationError.exit_code, GateError.exit_code)  # what failed stands in their JSON
Told = Callable[[str], None]
"""Gets lines that the command on the device writes to stderr while it runs."""


class DeviceError(MissingRuntimeError):
    """The device cannot be reached, lacks this program, or does not answer in time (exit code 3)."""


@dataclass(frozen=True)
class Ended:
    """A command on the device that ended.

    Attributes:
        code: its exit code; 124 when its time was over.
        stdout, stderr: what it wrote.
    """

    code: int
    stdout: bytes
    stderr: str

    @property
    def last_line(self) -> str:
        """Last line of stderr, where errors stand."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


class Transport(ABC):
    """A way to a device. Paths on the device are absolute and hold no spaces."""

    name: str  # of the device, for people

    @abstractmethod
    def run(self, script: str, seconds: float, told: Told = lambda line: None) -> Ended:
        """Run a line of POSIX shell on the device.

        Raises:
            DeviceError: the device cannot be reached, or did not answer within ``seconds``.
        """

    @abstractmethod
    def put(self, local: Path, remote: str, seconds: float = COPY_SECONDS) -> None:
        """Copy a file, or a folder with all that it holds; raises DeviceError."""

    @abstractmethod
    def get(self, remote: str, local: Path, seconds: float = COPY_SECONDS) -> None:
        """Copy a file back; raises DeviceError."""

    home = '"$HOME"/.cache/smash-export'  # where folders of tasks are made, as the shell reads it


@dataclass(frozen=True)
class Device(ABC):
    """A device and how this program is called there.

    Attributes:
        program: command of this program on the device, words of a shell.
        seconds: Longest time of a command there, or None for a bound that its caller knows.
    """

    program: str = "smash-export"
    seconds: float | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """For people."""

    @abstractmethod
    def ask(
        self,
        words: Sequence[str],
        *,
        inputs: Mapping[str, Path],
        outputs: Mapping[str, Path] | None = None,
        seconds: float,
        told: Told = lambda line: None,
    ) -> dict[str, Any]:
        """Run a command of this program on the device and return its JSON.

        Args:
            words: Words of the command; a word ``{name}`` stands for a file of ``inputs`` or ``outputs``.
            inputs: files and folders that are copied there, by name.
            outputs: where files that the command writes are copied to here, by name.
            seconds: it may take, where the user gave no other bound.
            told: gets its progress, line by line.

        Raises:
            DeviceError: the device cannot be reached, or does not answer in time.
            SmashError: what the command itself said, with its exit code.
        """

    def result_of(self, answer: Ended, words: Sequence[str], bound: float) -> dict[str, Any]:
        """JSON of a command that ended; raises what it said, or DeviceError."""
        if answer.code in (124, 137):
            raise DeviceError(
                f"{self.name} did not finish `{words[0]}` in time",
                expected=f"an answer within {bound:g} s",
                hint="Give it longer: --device-timeout SECONDS; the same command goes on where it was.",
            )
        with contextlib.suppress(ValueError):
            result = json.loads(answer.stdout)
            if isinstance(result, dict) and answer.code in _WITH_RESULT:
                return result
        if answer.code == 0:
            raise DeviceError(
                f"{self.name} gave no JSON",
                received=answer.stdout[:200].decode(errors="replace") or "nothing",
                hint=f"Try there: {self.program} {words[0]} --json",
            )
        said = answer.last_line.removeprefix("smash-export: ")
        raise _ERRORS.get(answer.code, SmashError)(f"on {self.name}: {said or f'exit code {answer.code}'}")


@dataclass(frozen=True)
class ReachedDevice(Device):
    """A device that can be talked to.

    Attributes:
        transport: the way to it.
    """

    transport: Transport = field(kw_only=True)

    @property
    def name(self) -> str:
        """For people."""
        return self.transport.name

    def check(self) -> None:
        """Raise DeviceError unless the device can be reached and has this version of this program."""
        answer = self.transport.run(f"{self.program} --version", CONNECT_SECONDS)
        wanted = f"smash-export {__version__}"
        found = answer.stdout.decode(errors="replace").strip()
        if answer.code == 0 and found == wanted:
            return
        raise DeviceError(
            f"{self.name} has another version" if not answer.code else f"{self.name} lacks {self.program!r}",
            expected=wanted,
            received=(answer.last_line or f"exit code {answer.code}") if answer.code else found,
            hint="Install it there: pip install 'smash-export[cpu]'; "
            "name its place with --device-program when it is not on the PATH",
        )

    def ask(
        self,
        words: Sequence[str],
        *,
        inputs: Mapping[str, Path],
        outputs: Mapping[str, Path] | None = None,
        seconds: float,
        told: Told = lambda line: None,
    ) -> dict[str, Any]:
        """See :class:`Device`."""
        outputs, bound = outputs or {}, self.seconds or seconds
        copying = max(COPY_SECONDS, self.seconds or 0.0)
        self.check()
        folder = self._folder(task_id(words, inputs))
        places = {name: f"{folder}/{path.name}" for name, path in [*inputs.items(), *outputs.items()]}
        for name, path in inputs.items():
            self.transport.put(path, places[name], copying)
        line = f"{self.program} {shlex.join(filled(words, places))} --json"
        script = f"echo $$ >{shlex.quote(folder)}/{_PROCESS}; {_bounded(line, bound)}"
        try:
            answer = self.transport.run(script, bound + 15, told)
        except KeyboardInterrupt:
            with contextlib.suppress(DeviceError):
                self.transport.run(f"d={shlex.quote(folder)}; {_END_EARLIER}", CONNECT_SECONDS)
            raise
        result = self.result_of(answer, words, bound)
        for name, path in outputs.items():
            self._fetch(places[name], path, copying)
        with contextlib.suppress(DeviceError):  # minutes of measuring are here; a folder may stay there
            self.transport.run(f"rm -rf {shlex.quote(folder)}", CONNECT_SECONDS)
        return result

    def _folder(self, task: str) -> str:
        """A folder for a task on the device; it stays when the task fails, to go on in it. What still runs in
        it, because the connection broke, ends: two would measure each other."""
        script = f"umask 077; d={self.transport.home}/{task}; {_END_EARLIER}; mkdir -p $d && echo $d"
        made = self.transport.run(script, CONNECT_SECONDS)
        folder = made.stdout.decode(errors="replace").strip()
        if made.code or not re.fullmatch(r"/[\w@%+=:,./-]+", folder):
            raise DeviceError(
                f"{self.name}: no folder can be made there",
                expected="a writable home folder without spaces in its name",
                received=made.last_line or folder,
            )
        return folder

    def _fetch(self, remote: str, local: Path, seconds: float) -> None:
        """Copy a file back; it appears whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="smash-export-") as name:
            held = Path(name) / "answer"
            self.transport.get(remote, held, seconds)
            files.write_bytes(local, held.read_bytes())


def filled(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """Words with ``{name}`` replaced by the place of that file."""
    return [places.get(word[1:-1], word) if word[:1] == "{" else word for word in words]


def task_id(words: Sequence[str], inputs: Mapping[str, Path]) -> str:
    """Name of a task's folder: the same for the same command and the same content of its files."""
    digest = hashlib.sha256(json.dumps(list(words)).encode())
    for name, path in sorted(inputs.items()):
        content = _of_bundle(path) if path.is_dir() else path.read_bytes()
        digest.update(f"{name} {path.name} ".encode() + content)
    return digest.hexdigest()[:16]


def _of_bundle(path: Path) -> bytes:
    """A manifest, which has the sum of every file, without what commands record in it: the answer to one of
    several tasks that were prepared together would make the others tasks that nobody knows."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    return json.dumps({key: value for key, value in manifest.items() if key not in RECORDED}).encode()


def _bounded(line: str, seconds: float) -> str:
    """The line under coreutils' or busybox's timeout: what is cut off here must not run on over there."""
    return (
        f"if command -v timeout >/dev/null; then exec timeout -k 5 {seconds:.0f} {line}; else exec {line}; fi"
    )
