"""``model.engine.json`` beside ``model.engine``: what the engine was built with, checked before it is loaded.

An engine runs on the GPU architecture and the TensorRT version it was built for; anything else ends in a
cryptic line of the runtime, or in a crash. The engine itself stays pure, so that trtexec can load it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError
from smash_base.files import read_json, sha256, write_json
from smash_targets.tensorrt.cuda import Gpu

SCHEMA = 1
# Settings of the builder that the command which builds an engine again repeats, and their defaults.
_REBUILD = {
    "workspace_mib": 1024,
    "level": 3,
    "version_compatible": False,
    "hardware": "none",
    "dla": None,
    "gpu_fallback": False,
}


@dataclass(frozen=True)
class EngineManifest:
    """Attributes:
    gpu, compute_capability, cuda, driver, tensorrt, platform: where it was built.
    engine_sha256, onnx_sha256: SHA-256 of the engine and of the ONNX file it was built from.
    source_sha256: SHA-256 of the bundle's ``model.onnx`` behind that one; "" outside a bundle.
    precision: Precision of the ONNX file.
    batch: smallest, usual and largest.
    flags: settings of the builder.
    layers: how many layers write each type, from the engine inspector.
    target: Target that built it.
    """

    gpu: str
    compute_capability: str
    cuda: str
    driver: str
    tensorrt: str
    platform: str
    engine_sha256: str
    onnx_sha256: str
    source_sha256: str
    precision: str
    batch: tuple[int, int, int]
    flags: Mapping[str, Any]
    layers: Mapping[str, int]

    target: str = "tensorrt"

    @property
    def rebuild(self) -> str:
        """The command that makes the engine again on this machine, with every setting that is no default."""
        flags = {name: value for name, value in self.flags.items() if name in _REBUILD}
        words = [
            f"{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in flags.items()
            if value is not None and value is not False and value != _REBUILD[name]
        ]
        least, usual, most = self.batch
        batch = str(most) if least == most else f"[{least},{usual},{most}]"
        options = [f"--option {shlex.quote(word)}" for word in (f"batch={batch}", *words)]
        return " ".join(
            [f"smash-export compile BUNDLE --target {self.target} --precision {self.precision}", *options]
        )


def sidecar(engine: Path) -> Path:
    """Where the manifest of an engine stands."""
    return engine.with_name(engine.name + ".json")


def write_manifest(engine: Path, manifest: EngineManifest) -> None:
    """Write it beside the engine."""
    write_json(sidecar(engine), {"schema": SCHEMA, **asdict(manifest)})


def read_manifest(engine: Path) -> EngineManifest:
    """Read the manifest of an engine.

    Raises:
        InvalidInputError: missing, of another schema, or with other fields.
    """
    document = read_json(sidecar(engine), what="engine manifest")
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise InvalidInputError(f"{sidecar(engine)} is no engine manifest", expected=f"schema {SCHEMA}")
    try:
        manifest = EngineManifest(**{**document, "batch": tuple(int(size) for size in document["batch"])})
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidInputError(f"{sidecar(engine)} is no engine manifest", received=error) from None
    if len(manifest.batch) != 3 or not isinstance(manifest.flags, dict):
        raise InvalidInputError(
            f"{sidecar(engine)} is no engine manifest", received=f"batch {manifest.batch}"
        )
    return manifest


def _check_gpu(engine: Path, manifest: EngineManifest, gpu: Gpu, again: str) -> None:
    level = manifest.flags.get("hardware", "none")
    if level == "ampere+":
        fits = int(gpu.compute_capability.split(".")[0]) >= 8
    else:
        fits = gpu.compute_capability == manifest.compute_capability
    if not fits:
        raise InvalidInputError(
            f"{engine} was built for another GPU",
            expected=f"{manifest.gpu}, compute capability {manifest.compute_capability}, level {level}",
            received=f"{gpu.name}, compute capability {gpu.compute_capability}",
            hint=again,
        )


def check_manifest(
    engine: Path, manifest: EngineManifest, gpu: Gpu, tensorrt: str, platform: str
) -> list[str]:
    """Refuse an engine that cannot run here, before TensorRT sees it.

    The rules are those of TensorRT's support matrix: an engine runs on one operating system and processor;
    version-compatible ones with the same or a newer minor of their major, and 10 on 11, others with their own
    version only; engines for Ampere and newer on compute capability 8.0 and up, others on their own.

    Args:
        gpu, tensorrt, platform: what is here.

    Returns:
        what may cost speed or change numbers: another driver, CUDA or card of the same capability.

    Raises:
        InvalidInputError: another file, network, GPU or version; the hint is the command that builds it
            again.
    """
    again = f"Build it again here: {manifest.rebuild}"
    if sha256(engine) != manifest.engine_sha256:
        raise InvalidInputError(f"{engine} is not the engine that its manifest describes", hint=again)
    _check_network(engine, manifest, again)
    if manifest.platform != platform:
        raise InvalidInputError(
            f"{engine} was built on another platform",
            expected=manifest.platform,
            received=platform,
            hint=again,
        )
    compatible = bool(manifest.flags.get("version_compatible"))
    if manifest.tensorrt != tensorrt and not (compatible and _runs_on(manifest.tensorrt, tensorrt)):
        raise InvalidInputError(
            f"{engine} was built with another TensorRT",
            expected=f"TensorRT {manifest.tensorrt}"
            + (" or a newer one that takes it" if compatible else ""),
            received=f"TensorRT {tensorrt}",
            hint=again,
        )
    level = manifest.flags.get("hardware", "none")
    _check_gpu(engine, manifest, gpu, again)
    names = {"driver": (manifest.driver, gpu.driver), "CUDA": (manifest.cuda, gpu.cuda)}
    if level == "none":
        names["GPU"] = (manifest.gpu, gpu.name)
    return [
        f"{engine} was built with {name} {built}, here is {here}; for its best speed: {manifest.rebuild}"
        for name, (built, here) in names.items()
        if built != here
    ]


def _check_network(engine: Path, manifest: EngineManifest, again: str) -> None:
    """The ONNX file beside the engine, and the bundle's own where the engine lies in a bundle."""
    beside = engine.with_name("model.onnx")
    if beside.is_file() and sha256(beside) != manifest.onnx_sha256:
        raise InvalidInputError(f"{engine} was built from another file than {beside}", hint=again)
    source = engine.absolute().parents[3] / "model.onnx" if len(engine.absolute().parents) > 3 else beside
    in_bundle = engine.absolute().parts[-4:-2] == ("targets", manifest.target) and source.is_file()
    if in_bundle and manifest.source_sha256 and sha256(source) != manifest.source_sha256:
        raise InvalidInputError(f"{engine} was built from another network than {source}", hint=again)


def _runs_on(built: str, here: str) -> bool:
    first = tuple(int(part) for part in built.split(".")[:2] if part.isdigit())
    second = tuple(int(part) for part in here.split(".")[:2] if part.isdigit())
    return (
        bool(first and second)
        and second >= first
        and (second[0] == first[0] or (first[0], second[0]) == (10, 11))
    )
