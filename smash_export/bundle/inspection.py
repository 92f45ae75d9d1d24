"""``inspect(path)``: what a file or folder is, without trusting it.

Sizes are checked before anything is read, ONNX is parsed without its external data, archives are
listed and never unpickled, and no path that a file names is followed.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base import files
from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject
from smash_export.bundle.measured import measured
from smash_export.bundle.stored_cost import MAX_ONNX_BYTES, cost_words, stored_cost

if TYPE_CHECKING:
    import onnx

MAX_ONNX_NODES = 200_000
MAX_ARCHIVE_MEMBERS = 100_000
MAX_SAFETENSORS_HEADER = 16 * 2**20
MAX_EXTRA_BYTES = 16 * 2**20
KNOWN = "best.json, a bundle or its manifest.json, a run folder, .onnx, TorchScript, .pt2, .safetensors, .npz"


def inspect(path: Path | str) -> JsonObject:
    """Say what ``path`` is.

    Returns:
        JSON values: ``kind``, ``path``, and what is known about that kind.

    Raises:
        InvalidInputError: missing, too large, damaged, or of no kind that this program knows.
    """
    path = Path(path)
    if path.is_dir():
        facts = _folder(path)
    elif path.suffix == ".json":
        facts = _json(path)
    elif path.is_file():
        facts = _binary(path)
    elif path.exists():
        raise InvalidInputError(f"{path} is neither a file nor a folder", expected=KNOWN)
    else:
        raise InvalidInputError(f"{path} does not exist", expected=KNOWN)
    return {"kind": facts.pop("kind"), "path": str(path), **facts}


def _folder(path: Path) -> JsonObject:
    if (path / "manifest.json").is_file():
        return _bundle(path)
    if len(path.absolute().parts) > 3 and path.absolute().parent.parent.name == "targets":
        return _compiled(path.absolute())
    if (path / "best.json").is_file() or (path / "scores.jsonl").is_file():
        return _run(path)
    if (path / "run.json").is_file():
        return _job(path)
    raise InvalidInputError(f"{path} is a folder of no kind that this program writes", expected=KNOWN)


def _bundle(path: Path) -> JsonObject:
    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.rejected import rejected_files

    bundle = Bundle.open(path)
    facts = _manifest(bundle.manifest)
    facts["rejected"] = {file.name: "; ".join(file.problems) for file in rejected_files(bundle)}
    facts["bytes"] = sum(entry.size for entry in bundle.manifest.files.values())
    facts["model.onnx"] = cost_words(bundle.onnx)
    facts["measured"] = measured(bundle)
    facts["provenance"] = dict(bundle.manifest.provenance)
    if bundle.architecture is not None:
        facts.update(
            _architecture_cost(bundle.architecture, bundle.signature.input_shape, len(bundle.labels))
        )
    return {"kind": "bundle", **facts}


def _manifest(manifest: Any) -> JsonObject:
    signature = manifest.signature
    recommended = manifest.recommendation
    return {
        "created": manifest.created,
        "classes": list(manifest.labels),
        "input": f"{signature.input_name} float32 [batch, {', '.join(map(str, signature.input_shape))}]",
        "output": f"{signature.output_name} float32 [batch, {signature.classes}]",
        "batch": list(signature.batch),
        "architecture": manifest.architecture or "adopted, not searched",
        "compiled": [f"{entry.target}/{entry.precision}" for entry in manifest.compiled],
        "recommended": f"{recommended.target}/{recommended.precision}" if recommended else None,
        "files": {name: entry.size for name, entry in sorted(manifest.files.items())},
    }


def _compiled(path: Path) -> JsonObject:
    from smash_export.bundle.bundle import Bundle

    target, precision = path.parent.name, path.name
    bundle = Bundle.open(path.parents[2])
    found = bundle.find_compiled(target, precision)
    if found is None:
        raise InvalidInputError(
            f"{path} is not in the manifest of its bundle", received=f"{target}/{precision}"
        )
    return {
        "kind": "compiled target",
        "target": target,
        "precision": precision,
        "main": found.main.name,
        "bytes": found.size,
        **({"stored": cost_words(found.main)} if found.main.suffix == ".onnx" else {}),
        "notes": dict(found.notes),
        "evidence": dict(found.evidence),
    }


def _run(path: Path) -> JsonObject:
    facts: JsonObject = {
        "kind": "search run",
        "files": {item.name: item.stat().st_size for item in sorted(path.iterdir()) if item.is_file()},
    }
    for name in ("scores", "finalists"):
        facts[name] = len(files.read_jsonl(path / f"{name}.jsonl"))
    if (path / "best.json").is_file():
        facts["best"] = {key: value for key, value in _json(path / "best.json").items() if key != "kind"}
    return facts


def _job(path: Path) -> JsonObject:
    """What ``smash-export run`` was asked and has done; its search and bundle are told by their folders."""
    held = files.read_json(path / "run.json", what="run")
    try:
        names = [stage["name"] for stage in held["plan"]["stages"]]
        seconds = [f"{entry['seconds']:.1f} s" for entry in held["done"]]
        asked = {name: value for name, value in held["request"].items() if value not in (None, [])}
        images = dict(held["plan"]["images"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{path / 'run.json'} is damaged", received=error) from None
    missing = ["not done"] * (len(names) - len(seconds))
    return {
        "kind": "run",
        "asked": asked,
        "images": images,
        "stages": dict(zip(names, seconds + missing, strict=False)),
        "files": {item.name: item.stat().st_size for item in sorted(path.iterdir()) if item.is_file()},
        "folders": [name for name in ("search", "bundle") if (path / name).is_dir()],
    }


def _json(path: Path) -> JsonObject:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path} holds no object", expected=KNOWN, received=type(value).__name__)
    if path.name == "run.json" and "plan" in value:
        return _job(path.parent)
    if "signature" in value and "preprocessing" in value:
        from smash_export.bundle.manifest import parse_manifest

        return {"kind": "bundle manifest", **_manifest(parse_manifest(value, str(path)))}
    if "architecture" in value or "schema" in value:
        return _best(value)
    if "stem" in value and "blocks" in value:
        return _bare_architecture(value)
    raise InvalidInputError(
        f"{path} is JSON of no kind that this program writes",
        expected=KNOWN,
        received=f"an object with {', '.join(sorted(value)[:8]) or 'no keys'}",
    )


def _best(value: JsonObject) -> JsonObject:
    from smash_search.space.best import BestFile

    best = BestFile.from_json(value)
    shape = (best.input.channels, *best.input.size)
    return {
        "kind": "architecture (best.json)",
        "schema": value["schema"],
        "classes": list(best.classes),
        "input": best.input.to_json(),
        **_architecture(best.architecture),
        **_architecture_cost(best.architecture, shape, len(best.classes)),
        "search": best.search.to_json(),
    }


def _bare_architecture(value: JsonObject) -> JsonObject:
    from smash_search.space.architecture import Architecture

    return {
        "kind": "bare architecture",
        **_architecture(Architecture.from_json(value)),
        "note": "best.json also needs schema, input and classes around it",
    }


def _architecture(architecture: Any) -> JsonObject:
    return {
        "key": architecture.key,
        "blocks": [
            f"{block.banks} banks x {block.bank_channels} channels, {len(block.ops)} ops"
            for block in architecture.blocks
        ],
    }


def _architecture_cost(architecture: Any, shape: tuple[int, ...], classes: int) -> JsonObject:
    from smash_search.space.architecture import InputSpec
    from smash_search.space.cost import cost_of

    cost = cost_of(architecture, InputSpec(shape[0], tuple(shape[1:])), classes)
    return {"parameters": cost.parameters, "macs": cost.macs, "activation_bytes": cost.activation_bytes}


def _binary(path: Path) -> JsonObject:
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head:
        raise InvalidInputError(f"{path} is empty", expected=KNOWN)
    if path.suffix == ".onnx":
        return _onnx(path)
    if head.startswith(b"PK"):
        return _archive(path)
    if path.suffix == ".safetensors":
        return _safetensors(path, head)
    raise InvalidInputError(f"{path} is of no kind that this program knows", expected=KNOWN)


def onnx_metadata(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself, every value whole (:func:`inspect` shows beginnings).

    Raises:
        InvalidInputError: missing, too large, or damaged.
    """
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist", expected="an ONNX file")
    return {_text(item.key): _text(item.value) for item in _read_onnx(path).metadata_props}


def stored_facts(path: Path) -> dict[str, str]:
    """What a model file says of itself beside its network, by name.

    The metadata of an ONNX file. Of a TorchScript file or a program of PyTorch ``labels`` and
    ``preprocessing``, where extra files of these names (``labels.json``) are inside, as freeze writes them.

    Raises:
        InvalidInputError: an ONNX file that is missing, too large or damaged, or a damaged archive.
    """
    if path.suffix == ".onnx":
        return onnx_metadata(path)
    if not zipfile.is_zipfile(path):
        return {}
    facts = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _, _, name = member.filename.partition("/extra/")
                if name in ("labels.json", "preprocessing.json") and member.file_size <= MAX_EXTRA_BYTES:
                    facts[name.removesuffix(".json")] = _text(archive.read(member))
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, zlib.error) as error:  # of a password
        raise InvalidInputError(f"{path} is a damaged archive", received=error) from None
    return facts


def _read_onnx(path: Path) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > MAX_ONNX_BYTES:
        raise InvalidInputError(
            f"{path} is too large", expected=f"at most {MAX_ONNX_BYTES} bytes", received=size
        )
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(path.read_bytes())  # external data stays where it is
    except (DecodeError, ValueError) as error:
        raise InvalidInputError(f"{path} is not an ONNX file, or is damaged", received=error) from None
    if not model.graph.node or not model.graph.output:
        raise InvalidInputError(
            f"{path} is not an ONNX file, or is damaged", received="a graph without nodes"
        )
    if len(model.graph.node) > MAX_ONNX_NODES:
        raise InvalidInputError(
            f"{path} has too many nodes", expected=f"at most {MAX_ONNX_NODES}", received=len(model.graph.node)
        )
    return model


def _onnx(path: Path) -> JsonObject:
    import onnx

    model = _read_onnx(path)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    stored = stored_cost(model)
    external = sorted(
        _word(tensor.name)
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    )
    facts: JsonObject = {
        "kind": "ONNX",
        "bytes": path.stat().st_size,
        "ir_version": model.ir_version,
        "opset": {_word(item.domain) or "ai.onnx": item.version for item in model.opset_import},
        "producer": f"{_word(model.producer_name)} {_word(model.producer_version)}".strip(),
        "inputs": [_tensor(value) for value in graph.input if value.name not in weights],
        "outputs": [_tensor(value) for value in graph.output],
        "nodes": len(graph.node),
        "operators": dict(Counter(_word(node.op_type) for node in graph.node).most_common()),
        "parameters": stored.parameters,
        "zeros": stored.zeros,
        "macs": stored.macs,
        "metadata": {_word(item.key): _word(item.value, 1000) for item in list(model.metadata_props)[:50]},
    }
    if external:
        facts["external_data"] = (
            f"{len(external)} tensors lie in other files and were not read: {', '.join(external[:5])}"
        )
    return facts


def _tensor(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    kinds = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    kind = kinds.get(tensor.elem_type, f"type {tensor.elem_type}")
    axes = [_word(axis.dim_param) or str(axis.dim_value) for axis in tensor.shape.dim]
    return f"{_word(value.name)} {kind} [{', '.join(axes)}]"


def _text(text: str | bytes) -> str:
    """A string of a protobuf file, which is bytes when it is not UTF-8."""
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _word(text: str | bytes, limit: int = 100) -> str:
    return _text(text)[:limit]


def _archive(path: Path) -> JsonObject:
    """A zip: TorchScript, an exported program, or npz. Members are listed, nothing is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidInputError(f"{path} is a damaged archive", received=error) from None
    if len(members) > MAX_ARCHIVE_MEMBERS:
        raise InvalidInputError(
            f"{path} has too many members", expected=f"at most {MAX_ARCHIVE_MEMBERS}", received=len(members)
        )
    names = [member.filename for member in members]
    facts: JsonObject = {
        "bytes": path.stat().st_size,
        "members": len(names),
        "bytes_unpacked": sum(member.file_size for member in members),
    }
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inside) and "constants.pkl" in inside:
        extra = sorted(name.removeprefix("extra/") for name in inside if name.startswith("extra/"))
        return {"kind": "TorchScript", **facts, "extra_files": extra}
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        return {"kind": "exported program (.pt2)", **facts}
    if names and all(name.endswith(".npy") for name in names):
        return {
            "kind": "numpy arrays (.npz)",
            **facts,
            "arrays": [name.removesuffix(".npy") for name in names],
        }
    if "data.pkl" in inside:
        return {
            "kind": "pickled PyTorch file",
            **facts,
            "note": "never loaded here, a pickle can run any code: export it to ONNX or TorchScript",
        }
    raise InvalidInputError(f"{path} is an archive of no kind that this program knows", expected=KNOWN)


def _safetensors(path: Path, head: bytes) -> JsonObject:
    size = path.stat().st_size
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if length > min(MAX_SAFETENSORS_HEADER, size - 8):
        raise InvalidInputError(
            f"{path} is a damaged safetensors file", received=f"a header of {length} bytes"
        )
    with path.open("rb") as stream:
        stream.seek(8)
        text = stream.read(length).decode(errors="replace")
    header = files.parse_json(text, what=f"header of {path}")
    if not isinstance(header, dict):
        raise InvalidInputError(f"{path} is a damaged safetensors file", received=json.dumps(header)[:100])
    tensors = {
        name: f"{entry.get('dtype')} {entry.get('shape')}"
        for name, entry in header.items()
        if name != "__metadata__" and isinstance(entry, dict)
    }
    return {"kind": "safetensors", "bytes": size, "tensors": tensors}
