"""An Android device by adb, whose shell has this program (Termux, for example).

Tested against a stand-in of adb's command line only, which the tests label as such; no phone has been seen.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from smash_base.errors import UsageError
from smash_export.remote.device import COPY_SECONDS, DeviceError, Ended, Told, Transport
from smash_export.remote.processes import find_program, listen


@dataclass(frozen=True)
class AdbTransport(Transport):
    """A device by adb.

    Attributes:
        serial: as ``adb devices`` shows it.
    """

    serial: str
    home = "/data/local/tmp/smash-export"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.:-]+", self.serial):
            raise UsageError("--adb", expected="a serial number of `adb devices`", received=self.serial)

    @property
    def name(self) -> str:  # type: ignore[override]
        """For people."""
        return f"adb {self.serial}"

    def run(self, script: str, seconds: float, told: Told = lambda line: None) -> Ended:
        """See :class:`Transport`; adb hands on output and exit code of Android 7 and later."""
        return self._checked(listen([*self._words(), "shell", script], seconds, name=self.name, told=told))

    def put(self, local: Path, remote: str, seconds: float = COPY_SECONDS) -> None:
        """See :class:`Transport`."""
        # adb would copy a folder into one that is there.
        self.run(f"rm -rf {shlex.quote(remote)}", seconds)
        self._copy("push", str(local), remote, seconds)

    def get(self, remote: str, local: Path, seconds: float = COPY_SECONDS) -> None:
        """See :class:`Transport`."""
        self._copy("pull", remote, str(local), seconds)

    def _copy(self, way: str, source: str, destination: str, seconds: float) -> None:
        words = [*self._words(), way, source, destination]
        answer = self._checked(listen(words, seconds, name=self.name))
        if answer.code:
            raise DeviceError(
                f"adb {way} of {source} failed",
                received=answer.last_line or answer.stdout[-200:].decode(errors="replace"),
            )

    def _words(self) -> list[str]:
        return [*find_program(["adb"], "adb"), "-s", self.serial]

    def _checked(self, answer: Ended) -> Ended:
        text = answer.last_line
        if answer.code and re.search(r"device '.*' not found|no devices|device offline", text):
            raise DeviceError(
                f"there is no {self.name}", received=text, hint="See which devices are there: adb devices"
            )
        if answer.code and "unauthorized" in text:
            raise DeviceError(
                f"{self.name} does not trust this machine",
                received=text,
                hint="Accept its key on the screen.",
            )
        return answer
