"""What fp16 and int8 both need of an ONNX graph: names for every node, folded norms, tensors seen.

Both work on the fp32 ``model.onnx`` and run it through ONNX Runtime on calibration images; the runtime
that the file is for runs it later, in verification.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, VerificationError

if TYPE_CHECKING:
    import onnx

INT8_OPSET = 13  # scales per channel came with it
CHUNK = 32  # images of one run: intermediate tensors of all of them are in memory at once
_FOLDED = {"BatchNormalization", "Identity", "Constant", "Dropout"}


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with norms folded into convolutions, a unique name on every node and all types inferred.

    A graph that holds none of BatchNormalization, Identity, Constant and Dropout keeps its nodes as they
    are; others pass through ONNX Runtime's basic optimisations, which are exact.
    """
    import onnx

    if any(node.op_type in _FOLDED for node in model.graph.node):
        model = _optimised(model)
    else:
        model = onnx.ModelProto.FromString(model.SerializeToString())
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
        seen.add(node.name)
        taken.add(node.name)
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return inferred


def session_of(model: onnx.ModelProto | bytes) -> Any:
    """An ONNX Runtime session on the CPU, one thread, no log lines.

    Q/DQ nodes round and nothing else: they are not fused into integer kernels, whose results depend on
    this machine's processor (on x86 without VNNI they saturate). The file may be for another one.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        InvalidInputError: ONNX Runtime refuses the graph.
    """
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    data = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own classes have no public base
        raise InvalidInputError("ONNX Runtime refuses the graph", received=error) from None


def require_onnxruntime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingRuntimeError(
            "fp16 and int8 are calibrated with ONNX Runtime, which is not here",
            hint="Install it: pip install 'smash-export[cpu]'",
        ) from None
    return onnxruntime


def static_batch(model: onnx.ModelProto) -> int | None:
    """The only batch that the graph takes, or None when its batch axis is free."""
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    return int(first.dim_value) if first.HasField("dim_value") else None


def chunks(tensors: np.ndarray, size: int | None = None) -> Iterator[np.ndarray]:
    """float32 [N, ...] in pieces of 32 images; with ``size`` in pieces of exactly that many, the last
    one filled up with its last image."""
    step = size or CHUNK
    for start in range(0, len(tensors), step):
        part = tensors[start : start + step]
        if size is not None and len(part) < size:
            part = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        yield np.ascontiguousarray(part)


def logits_of(model: onnx.ModelProto, tensors: np.ndarray) -> np.ndarray:
    """float32 [N, C, ...] -> logits float32 [N, K]."""
    session = session_of(model)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: part})[0] for part in chunks(tensors, static_batch(model))]
    return np.concatenate(parts)[: len(tensors)]


def tensor_peaks(model: onnx.ModelProto, tensors: np.ndarray) -> dict[str, float]:
    """Largest absolute value of every float tensor over the images: input, weights and all outputs."""
    import onnx

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    listed = {value.name for value in copy.graph.output}
    floats = {value.name: value for value in copy.graph.value_info if _is_float(value)}
    for node in copy.graph.node:
        for name in node.output:
            if name in floats and name not in listed:
                copy.graph.output.append(floats[name])
                listed.add(name)
    session = session_of(copy)
    names = [output.name for output in session.get_outputs()]
    source = session.get_inputs()[0].name
    peaks = dict.fromkeys([*names, source], 0.0)
    for part in chunks(tensors, static_batch(model)):
        peaks[source] = max(peaks[source], float(np.abs(part).max()))
        for name, value in zip(names, session.run(None, {source: part}), strict=True):
            peaks[name] = max(peaks[name], float(np.abs(value).max(initial=0.0)))
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor)
            peaks[tensor.name] = float(np.abs(array).max(initial=0.0))
    return peaks


def check_finite(logits: np.ndarray, what: str) -> None:
    """Raise VerificationError if any logit is NaN or infinite."""
    if not np.isfinite(logits).all():
        raise VerificationError(
            f"{what} answers with numbers that are none", expected="finite logits", received="NaN or infinity"
        )


def sqnr_db(expected: np.ndarray, received: np.ndarray) -> float:
    """Signal to quantisation noise in decibels: 10 log10(sum x^2 / sum (x - y)^2); 200 where equal."""
    signal = float(np.square(expected, dtype=np.float64).sum())
    noise = float(np.square(expected.astype(np.float64) - received).sum())
    if noise == 0:
        return 200.0
    return round(float(10 * np.log10(max(signal, 1e-300) / noise)), 2)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute."""
    import onnx

    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def readers(graph: onnx.GraphProto) -> Mapping[str, list[onnx.NodeProto]]:
    """Tensor name -> nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name -> node that writes it."""
    return {name: node for node in graph.node for name in node.output}


class TensorSets:
    """Tensors that must have something in common, by name: a union of disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The one name that stands for the set of this tensor; a tensor never joined is its own set."""
        while self._parent.setdefault(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        """Make the sets of all these tensors one."""
        roots = [self.root(name) for name in names]
        for other in roots[1:]:
            self._parent[other] = roots[0]


def _is_float(value: onnx.ValueInfoProto) -> bool:
    import onnx

    kind: int = value.type.tensor_type.elem_type
    return kind == onnx.TensorProto.FLOAT


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    runtime = require_onnxruntime()
    with files.temporary_folder() as folder:
        path = folder / "basic.onnx"
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        try:
            runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own classes have no public base
            raise InvalidInputError("ONNX Runtime refuses the graph", received=error) from None
        result: onnx.ModelProto = onnx.load(path)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result
