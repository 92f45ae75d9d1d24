"""A device without a network: a folder is carried there and back.

The first time a command is given, the folder gets what it reads and a script; the script is run on the
device; the second time the same command finds the answer in the folder and goes on.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smash_base import files
from smash_base.errors import UsageError
from smash_export.remote.device import Device, DeviceError, Ended, Told, filled, task_id

_NOT_RUN = (126, 127)  # exit codes of a shell that cannot run a program, or finds none


@dataclass(frozen=True)
class FolderDevice(Device):
    """A device that a person carries a folder to.

    Attributes:
        folder: Folder that is carried; each task has one of its own in it.
    """

    folder: Path = field(kw_only=True)

    @property
    def name(self) -> str:
        """For people."""
        return f"the device of {self.folder}"

    def ask(
        self,
        words: Sequence[str],
        *,
        inputs: Mapping[str, Path],
        outputs: Mapping[str, Path] | None = None,
        seconds: float,
        told: Told = lambda line: None,
    ) -> dict[str, Any]:
        """See :class:`Device`; in two parts: DeviceError until the answer is in the folder."""
        place = self.place(words, inputs)
        script = self._script(words, inputs, outputs or {})
        ended = self._ended(place)
        if ended is None or self._lacked(ended, place, script):
            self._prepare(place, script, inputs)
            raise DeviceError(
                f"{place} waits for the device",
                hint=f"Copy it to the device, run there: sh {shlex.quote(f'{place.name}/run.sh')}; "
                "copy it back and repeat this command.",
            )
        result = self.result_of(ended, words, self.seconds or seconds)
        for name, path in (outputs or {}).items():
            answer = place / _there(name, path)
            if not answer.is_file():
                raise DeviceError(f"{answer} is missing", hint="Copy the whole folder back.")
            files.write_bytes(path, answer.read_bytes())
        return result

    def _lacked(self, ended: Ended, place: Path, script: str) -> bool:
        """Whether the device did not find the program where an earlier command said that it is.

        Raises:
            DeviceError: it did not find the one that this command names.
        """
        if ended.code not in _NOT_RUN:
            return False
        with contextlib.suppress(FileNotFoundError):
            if (place / "run.sh").read_text() == script:
                raise DeviceError(
                    f"{self.name} lacks {self.program!r}",
                    received=ended.last_line or f"exit code {ended.code}",
                    hint="Name its place there with --device-program; the folder is prepared anew then.",
                )
        (place / "exit-code").unlink()
        return True

    def place(self, words: Sequence[str], inputs: Mapping[str, Path]) -> Path:
        """Folder of a task; the answer stays in it."""
        return self.folder / task_id(words, inputs)

    def _prepare(self, place: Path, script: str, inputs: Mapping[str, Path]) -> None:
        for path in inputs.values():
            if place.resolve().is_relative_to(path.resolve()):
                raise UsageError(
                    f"{self.folder} lies in {path}, which is copied into it",
                    hint="Give --device-folder a folder outside of it.",
                )
        place.mkdir(parents=True, exist_ok=True)
        for path in inputs.values():
            shutil.rmtree(place / path.name, ignore_errors=True)
            files.copy(path, place / path.name)
        files.write_text(place / "run.sh", script)

    def _script(self, words: Sequence[str], inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> str:
        """What is run on the device. A relative program is below the home folder there, as over ssh."""
        first = self.program.partition(" ")[0]
        is_relative = "/" in first and first[0] not in "/~$'\""
        program = f'"$HOME"/{self.program}' if is_relative else self.program
        names = {name: path.name for name, path in inputs.items()}
        names |= {name: _there(name, path) for name, path in outputs.items()}
        line = shlex.join(filled(words, names))
        return (
            "#!/bin/sh\n"
            "# Run this on the device; then copy the folder back.\n"
            'cd "$(dirname "$0")" || exit 1\n'
            f"{program} {line} --json >answer.json 2>messages.txt\n"
            "code=$?\ntail -n 3 messages.txt\necho $code >exit-code\n"
        )

    def _ended(self, place: Path) -> Ended | None:
        if not (place / "exit-code").exists():
            return None
        code = 1
        with contextlib.suppress(ValueError):
            code = int((place / "exit-code").read_text())
        answer, messages = place / "answer.json", place / "messages.txt"
        return Ended(
            code,
            answer.read_bytes() if answer.exists() else json.dumps(None).encode(),
            messages.read_text(errors="replace") if messages.exists() else "",
        )


def _there(name: str, path: Path) -> str:
    """What an output is called in a task's folder, whatever it is called here."""
    return f"{name}{path.suffix}"
