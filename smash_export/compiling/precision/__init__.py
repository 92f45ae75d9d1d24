"""fp16 and int8, written into the ONNX graph before a runtime sees it.

``model.onnx`` of the bundle stays as it is; what is made here is the source of one compiled file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base.errors import UsageError
from smash_base.files import write_bytes
from smash_base.json_values import JsonObject
from smash_export.compiling.precision.names import PLACEMENT_NAMES
from smash_export.export.onnx_graphs import INT8_OPSET
from smash_targets.onnx_file import read_onnx_facts

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from smash_export.bundle.bundle import Bundle
    from smash_export.compiling.precision.int8 import Scheme
    from smash_export.compiling.precision.placements import Placement
    from smash_targets.base import ModelSignature, Target


def _number(low: float, high: float, whole: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        kinds = int if whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return check


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


# precision -> option -> (what is right, how to check it, default)
OPTIONS: dict[str, dict[str, tuple[str, Callable[[Any], bool], Any]]] = {
    "int8": {
        "calibration_method": (
            "auto, minmax, entropy, percentile or mse",
            _one_of("auto", "minmax", "entropy", "percentile", "mse"),
            "auto",
        ),
        "calibration_minimum": ("1 to 100000 images", _number(1, 100_000, whole=True), 512),
        "max_drop": ("0 to 100 points of accuracy", _number(0, 100), 0.5),
        "boundary": ("auto, int8 or fp32", _one_of("auto", "int8", "fp32"), "auto"),
        "activations": ("auto, u8 or s8", _one_of("auto", "u8", "s8"), "auto"),
        "placement": (
            f"auto or {', '.join(PLACEMENT_NAMES)}",
            _one_of("auto", *PLACEMENT_NAMES),
            "auto",
        ),
        "reduce_range": ("auto, true or false", lambda value: value in ("auto", True, False), "auto"),
    },
    "fp16": {},
    "bf16": {},
}


def prepare_onnx(
    bundle: Bundle,
    precision: str,
    *,
    target: Target,
    destination: Path,
    options: Mapping[str, Any] | None = None,
    source: Path | None = None,
) -> tuple[Path, JsonObject]:
    """Write the bundle's network at a precision.

    Args:
        precision: "fp16", "int8" or "bf16"; the graph of bf16 is the fp32 one, as the operators of its
            opset have no bf16 form: it is a mode of the runtime.
        target: the runtime that it is for; with this machine's processor it decides how int8 is rounded.
        destination: an existing folder; ``model.onnx`` is written into it.
        options: see :data:`OPTIONS`; unknown ones are refused.
        source: another fp32 graph of the same network; None for the bundle's.

    Returns:
        the file, and notes for the manifest.

    Raises:
        UsageError: an option that the precision does not have, or a bundle without calibration images.
        InvalidInputError: calibration images that are too few, of one class or of another size.
        VerificationError: the network does not bear the precision.
    """
    settings = read_settings(precision, options or {})
    source = source or bundle.onnx
    if precision == "bf16":
        return source, {"graph": "fp32; the runtime computes in bf16"}
    import onnx

    from smash_export.compiling.precision.calibration import calibration_tensors

    model = onnx.load_model_from_string(source.read_bytes())  # external data is never followed
    if precision == "fp16":
        from smash_export.compiling.precision.fp16 import cast_to_fp16

        seen = bundle.calibration() if "calibration.npz" in bundle.manifest.files else bundle.samples().images
        result, notes = cast_to_fp16(model, calibration_tensors(seen, bundle.preprocessing, minimum=1))
    else:
        result, notes = _quantised(model, bundle, target, settings)
    path = destination / "model.onnx"
    write_bytes(path, result.SerializeToString(deterministic=True))
    return path, notes


def _quantised(
    model: onnx.ModelProto, bundle: Bundle, target: Target, settings: Mapping[str, Any]
) -> tuple[onnx.ModelProto, JsonObject]:
    check_quantisable(bundle)
    _check_opset(model, bundle)
    from smash_export.compiling.precision.calibration import calibration_tensors

    tensors = calibration_tensors(bundle.calibration(), bundle.preprocessing, settings["calibration_minimum"])
    return _rounded(model, tensors, target, bundle.signature, settings)


def _rounded(
    model: onnx.ModelProto,
    tensors: np.ndarray,
    target: Target,
    signature: ModelSignature,
    settings: Mapping[str, Any],
) -> tuple[onnx.ModelProto, JsonObject]:
    """The fastest form of the graph at int8. Integer ReLUs halve the levels of what they read: where they
    cost accuracy, the fastest form without them is taken."""
    from smash_export.compiling.precision.int8 import quantise, scheme_for
    from smash_export.compiling.precision.placements import measured, named
    from smash_export.export.onnx_graphs import prepared
    from smash_export.measure.machine import cpu_features

    model = prepared(model)
    scheme = _chosen(scheme_for(target.name, cpu_features()), settings)
    times: dict[str, float] = {}
    if scheme.placement == "tensorrt":
        forms = [named("plain")]
    elif settings["placement"] == "auto":
        forms, times = measured(model, scheme, target, signature)
    else:
        forms = [named(settings["placement"])]

    def quantised(form: Placement) -> tuple[onnx.ModelProto, JsonObject]:
        graph = form.graph(model)
        result, notes = quantise(
            graph,
            tensors,
            form.scheme(scheme),
            method=settings["calibration_method"],
            boundary=settings["boundary"],
            max_drop=settings["max_drop"],
            faster_fp32=form.fp32_nodes(graph),
            outputs=signature.outputs,
        )
        return result, {**notes, "placement": form.name, "placements_ms": times}

    result, notes = quantised(forms[0])
    kept: Any = notes["kept_fp32"]
    noisy = any(row["reason"].startswith("noise") for row in kept)
    without = [form for form in forms[1:] if not form.clips]
    return quantised(without[0]) if noisy and forms[0].clips and without else (result, notes)


def check_settings(bundle: Bundle, precision: str, options: Mapping[str, Any], *, target: Target) -> None:
    """Refuse, before anything is made, options that :func:`prepare_onnx` would refuse for this bundle.

    Raises:
        UsageError: an option that the precision or the target does not have, or a bundle without calibration
            images.
        InvalidInputError: calibration images that are too few, or of another size.
    """
    settings = read_settings(precision, options)
    if precision != "int8":
        return
    from smash_export.compiling.precision.calibration import check_calibration
    from smash_export.compiling.precision.int8 import scheme_for
    from smash_export.measure.machine import cpu_features

    check_quantisable(bundle)
    check_calibration(bundle.calibration(), bundle.preprocessing, settings["calibration_minimum"])
    _chosen(scheme_for(target.name, cpu_features()), settings)


def check_quantisable(bundle: Bundle) -> None:
    """Raise UsageError if the network of the bundle is no fp32 one: a foreign file may hold int8 already."""
    stored = read_onnx_facts(bundle.onnx).precision
    if stored != "fp32":
        raise UsageError(
            f"the network of {bundle.path} holds {stored} already",
            expected="an fp32 network to quantise",
            received=stored,
            hint="Compile it with --precision fp32, which keeps it as it is"
            + (
                ", int8 included." if stored == "int8" else "; for int8 adopt the fp32 file it was made from."
            ),
        )


def _check_opset(model: onnx.ModelProto, bundle: Bundle) -> None:
    version = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if version < INT8_OPSET:
        raise UsageError(
            f"the network of {bundle.path} is of opset {version}, which has no int8 with a scale per channel",
            expected=f"opset {INT8_OPSET} or newer",
            received=version,
            hint="Export it again at opset 17; adopt found no newer one that answers the same.",
        )


def read_settings(precision: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a precision with ``options`` over them.

    Raises:
        UsageError: an unknown option or a value out of range.
    """
    known = OPTIONS.get(precision, {})
    settings = {name: default for name, (_, _, default) in known.items()}
    for name, value in options.items():
        if name not in known:
            raise UsageError(
                f"precision {precision} has no option {name!r}",
                expected=", ".join(known) or "no options",
                received=name,
            )
        expected, check, _ = known[name]
        if not check(value):
            raise UsageError(f"precision option {name!r}", expected=expected, received=value)
        settings[name] = value
    return settings


def _chosen(scheme: Scheme, settings: Mapping[str, Any]) -> Scheme:
    if settings["activations"] != "auto":
        if scheme.placement == "tensorrt" and settings["activations"] != "s8":
            raise UsageError("TensorRT takes int8 activations only", expected="s8", received="u8")
        symmetric = settings["activations"] == "s8"
        scheme = replace(scheme, activations=settings["activations"], symmetric=symmetric)
    if settings["reduce_range"] != "auto":
        scheme = replace(scheme, reduce_range=settings["reduce_range"])
    return scheme
