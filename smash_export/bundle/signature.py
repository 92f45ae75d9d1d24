"""Who vouches for a bundle: a detached signature of its manifest, which holds the hash of every file.

The format is that of OpenSSH (PROTOCOL.sshsig), so that a bundle is signed with the key that its maker has
already and checked with the program that every system has already:

    ssh-keygen -Y sign -f ~/.ssh/id_ed25519 -n smash-export BUNDLE/manifest.json

writes ``manifest.json.sig`` beside it. Commands that record something in a bundle (compile, bench, compare)
change the manifest: sign last.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from smash_base.errors import InvalidInputError, MissingRuntimeError, VerificationError
from smash_export.bundle import manifest as layout

NAMESPACE = "smash-export"
SIGNATURE = f"{layout.NAME}.sig"
_KEY = re.compile(r"^[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\r\n]*)?$")
_MAX_BYTES = 2**20
_SIGNER = "signer"


def check_signature(bundle: Path, key: Path) -> str:
    """Check ``manifest.json.sig`` of a bundle against public keys, one of which must have made it.

    Args:
        bundle: the folder.
        key: OpenSSH public keys (``id_ed25519.pub``), one per line.

    Returns:
        The fingerprint of the key that signed.

    Raises:
        InvalidInputError: no signature, or no public key.
        VerificationError: the signature is of another key or of another manifest.
        MissingRuntimeError: ``ssh-keygen`` is not installed.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MissingRuntimeError("signatures need ssh-keygen", hint="Install OpenSSH's client programs.")
    keys = _public_keys(key)
    signature = _read(bundle / SIGNATURE, "a signature of the manifest")
    content = _read(bundle / layout.NAME, "a manifest", limit=2**24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "allowed").write_text("".join(f"{_SIGNER} {line}\n" for line in keys))
        (folder / "signature").write_bytes(signature)
        words = [program, "-Y", "verify", "-f", str(folder / "allowed"), "-I", _SIGNER, "-n", NAMESPACE]
        result = subprocess.run(
            [*words, "-s", str(folder / "signature")],
            input=content,
            capture_output=True,
            timeout=60,
            check=False,
        )
    said = result.stdout.decode("utf-8", "replace")
    if result.returncode:
        raise VerificationError(
            f"the signature of {bundle} does not hold",
            expected=f"{SIGNATURE} made by a key of {key} over this manifest",
            received=(said + result.stderr.decode("utf-8", "replace")).strip()[:300],
            hint="The bundle was changed after it was signed, or somebody else signed it.",
        )
    fingerprint = re.search(r"SHA256:\S+", said)
    return fingerprint[0] if fingerprint else said.strip()


def _public_keys(path: Path) -> list[str]:
    lines = _read(path, "a public key").decode("utf-8", "replace").splitlines()
    keys = [line for line in lines if line.strip()]
    if not keys or not all(_KEY.match(line) for line in keys):
        raise InvalidInputError(
            f"{path} holds no public keys",
            expected="lines as in id_ed25519.pub",
            received=f"{len(keys)} lines that are none",
        )
    return keys


def _read(path: Path, what: str, limit: int = _MAX_BYTES) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read", expected=what, received=error.strerror or error
        ) from None
    if len(data) > limit:
        raise InvalidInputError(f"{path} is too large", expected=f"{what} of at most {limit} bytes")
    return data
