"""A device by OpenSSH: its own client, so that keys, jump hosts and names of ~/.ssh/config work.

Never asks for anything: a host that is not known yet or wants a password is an error that says what to do.
Files go through tar and cat; the device needs no sftp server.
"""

from __future__ import annotations

import re
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from smash_base import files
from smash_base.errors import UsageError
from smash_export.remote.device import COPY_SECONDS, DeviceError, Ended, Told, Transport
from smash_export.remote.processes import find_program, listen

_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
_FAILED = 255  # ssh itself, not the command on the device

# What ssh says -> what is wrong and what to do; {host} is the device.
_REASONS = (
    (r"could not resolve", "there is no host {host}", "Check its name; try: ssh {host}"),
    (
        r"permission denied|too many authentication",
        "{host} does not let this user in without a password",
        "Copy your key there once: ssh-copy-id {host}",
    ),
    (
        r"host key verification failed|remote host identification has changed",
        "the key of {host} is not known, or another one than before",
        "Connect once by hand and compare it: ssh {host}",
    ),
    (
        r"connection refused|timed out|no route|unreachable|connection (reset|closed)",
        "{host} cannot be reached",
        "Is it switched on, in this network, and is its ssh server running? Try: ssh {host}",
    ),
)


@dataclass(frozen=True)
class SshTransport(Transport):
    """A device by ssh.

    Attributes:
        host: as ssh takes it: ``user@host`` or a name of ~/.ssh/config.
        command: the ssh client, words of a shell; for example ``ssh -p 2222 -i KEY``.
    """

    host: str
    command: str = "ssh"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.@:%\[\]-]+", self.host) or self.host.startswith("-"):
            raise UsageError("--device-host", expected="user@host", received=self.host)

    @property
    def name(self) -> str:  # type: ignore[override]
        """For people."""
        return self.host

    def run(self, script: str, seconds: float, told: Told = lambda line: None) -> Ended:
        """See :class:`Transport`."""
        return self._checked(listen([*self._words(), script], seconds, name=self.host, told=told))

    def put(self, local: Path, remote: str, seconds: float = COPY_SECONDS) -> None:
        """See :class:`Transport`; a tar file through the connection."""
        place = PurePosixPath(remote)

        def feed(stream: IO[bytes]) -> None:
            with tarfile.open(fileobj=stream, mode="w|") as archive:
                archive.add(local, arcname=place.name)

        folder = shlex.quote(str(place.parent))
        script = f"mkdir -p {folder} && rm -rf {shlex.quote(remote)} && tar -C {folder} -xf -"
        words = [*self._words(), script]
        answer = self._checked(listen(words, seconds, name=self.host, feed=feed))
        if answer.code:
            raise DeviceError(
                f"{local.name} cannot be copied to {self.host}",
                received=answer.last_line or f"exit code {answer.code}",
                hint=f"Is there room? Try: ssh {self.host} df -h {place.parent}",
            )

    def get(self, remote: str, local: Path, seconds: float = COPY_SECONDS) -> None:
        """See :class:`Transport`."""
        answer = self.run(f"cat {shlex.quote(remote)}", seconds)
        if answer.code:
            raise DeviceError(
                f"{remote} cannot be read back from {self.host}",
                received=answer.last_line or f"exit code {answer.code}",
            )
        files.write_bytes(local, answer.stdout)

    def _words(self) -> list[str]:
        return [*find_program(shlex.split(self.command), "openssh-client"), *_OPTIONS, "--", self.host]

    def _checked(self, answer: Ended) -> Ended:
        if answer.code != _FAILED:
            return answer
        text = answer.stderr.lower()
        for pattern, what, hint in _REASONS:
            if re.search(pattern, text):
                raise DeviceError(
                    what.format(host=self.host), received=answer.last_line, hint=hint.format(host=self.host)
                )
        raise DeviceError(f"ssh to {self.host} failed", received=answer.last_line or "nothing said")
