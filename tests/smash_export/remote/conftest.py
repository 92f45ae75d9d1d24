"""A device on this machine: a real sshd on loopback, and an environment without PyTorch behind it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.smash_export.remote.edge import make_edge_environment


@dataclass(frozen=True)
class Sshd:
    """A running server.

    Attributes:
        host: ``user@127.0.0.1``.
        ssh: client command that knows port, key and host.
        folder: of its files.
        port: it listens on.
    """

    host: str
    ssh: str
    folder: Path
    port: int

    def options(self, program: Path) -> list[str]:
        """Of a command that is to run there."""
        return [
            *("--device-host", self.host, "--device-ssh", self.ssh),
            *("--device-program", str(program)),
        ]


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_edge_environment(tmp_path_factory.mktemp("edge") / "environment")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    if not os.path.exists(server) or shutil.which("ssh") is None:
        pytest.skip("needs Debian's packages openssh-server and openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to run as root without it
    for name in ("host", "user", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")
    process = subprocess.Popen([server, "-D", "-f", str(folder / "config")], stdin=subprocess.DEVNULL)
    _wait(port, process)
    host = f"{getpass.getuser()}@127.0.0.1"
    ssh = (
        f"ssh -F none -p {port} -i {folder / 'user'} -o IdentitiesOnly=yes "
        f"-o UserKnownHostsFile={folder / 'known'}"
    )
    yield Sshd(host, ssh, folder, port)
    process.terminate()
    process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        assert process.poll() is None, "sshd ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("sshd does not listen")
