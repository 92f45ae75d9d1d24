"""The network with its preprocessing and softmax inside one ONNX file, for programs that have neither.

    image  uint8 [batch, H, W, C]  ->  probabilities float32 [batch, K]
                                   or  scores float32 [batch, k], classes int64 [batch, k]

C++, DeepStream, trtexec and Triton then need no code of their own but the resizing.
``targets/baked/<precision>/`` holds ``model.onnx``, ``labels.txt`` and a folder for each runtime that
compiled it (:mod:`smash_export.deploy.baked_runtimes`). Every file is run on all test images by the runtime
it is for, and held to the gates of its precision: as log probabilities, which differ from logits by one
number per image. The metadata of the ONNX file hold ``labels``, ``preprocessing`` and, where the bundle has
one, ``doubt_below``: an image whose largest probability is below it is perhaps of none of the classes.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smash_base import files
from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Preprocessing, probabilities_of, scale_and_shift
from smash_export.bundle.bundle import Bundle, CompiledFile, opened
from smash_export.deploy.baked_runtimes import (
    INPUT,
    Baked,
    Run,
    Taken,
    chosen_runtimes,
    compile_baked,
    onnxruntime_run,
)
from smash_export.deploy.trtexec import graph_for_tensorrt
from smash_export.measure.gates import GATES
from smash_export.measure.machine import describe_machine
from smash_export.measure.verify import SMALL_BATCH_IMAGES, Parity, check_parity, compare_batches, held_to
from smash_targets.base import ModelSignature, get_target

if TYPE_CHECKING:
    import onnx

TARGET = "baked"
Output = Literal["probabilities", "top-k"]
PREFIX = "baked."  # of the names of inner tensors that are put around the network
_LEAST = 1e-30  # below it a probability has no digits left


def bake(
    bundle: Bundle | Path | str,
    precision: str = "fp32",
    output: Output = "probabilities",
    top_k: int = 5,
    runtimes: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> CompiledFile:
    """Write, verify and add ``targets/baked/<precision>/``.

    Args:
        bundle: an opened bundle or its path.
        precision: "fp32", "fp16" or "int8" of the graph inside, as TensorRT gets it.
        output: what comes out.
        top_k: how many classes, for output "top-k".
        runtimes: which others compile it; all that take seconds if empty, and whatever is named.
        options: settings of the precision (:data:`smash_export.compiling.precision.OPTIONS`).

    Raises:
        UsageError: no such precision, runtime or option, or more classes than there are.
        VerificationError: the ONNX file does not answer as the network does.
    """
    bundle = opened(bundle)
    if precision not in get_target(TARGET).precisions:
        raise UsageError("precision", expected="fp32, fp16 or int8", received=precision)
    if output == "top-k" and not 1 <= top_k <= bundle.signature.classes:
        raise UsageError("top-k", expected=f"1 to {bundle.signature.classes}", received=top_k)
    chosen = chosen_runtimes(runtimes)
    staging = bundle.staging(TARGET, precision)
    try:
        file = Baked(bundle, precision, top_k if output == "top-k" else None, staging)
        notes, evidence = _write(file, chosen, options)
        notes |= {"output": output, "top_k": top_k}
        return bundle.add_compiled(TARGET, precision, staging, "model.onnx", notes, evidence)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(
    file: Baked, runtimes: tuple[str, ...], options: Mapping[str, Any] | None
) -> tuple[JsonObject, JsonObject]:
    """The file, and those that other runtimes make of it; notes and evidence for the manifest."""
    import onnx

    bundle, precision = file.bundle, file.precision
    with files.temporary_folder() as work:
        source, notes = graph_for_tensorrt(bundle, precision, work, options)
        model = onnx.load_model_from_string(source.read_bytes())
    baked = bake_graph(model, bundle.preprocessing, bundle.signature, file.top_k, bundle.doubt_below)
    files.write_bytes(file.main, baked.SerializeToString(deterministic=True))
    files.write_text(file.folder / "labels.txt", "".join(f"{label}\n" for label in bundle.labels))
    parity = verify_baked(bundle, precision, "onnxruntime", onnxruntime_run(file.main))
    taken = [Taken("onnxruntime", "verified", "model.onnx", parity.agreement)]
    taken += compile_baked(file, runtimes, functools.partial(verify_baked, bundle, precision))
    evidence: JsonObject = {
        "parity": parity.to_json(),
        "gate": asdict(GATES[held_to(bundle, precision)]),
        "machine": describe_machine(),
        "runtime": {"target": "onnxruntime", "device": "cpu"},
    }
    return {**notes, "taken_by": [asdict(item) for item in taken]}, evidence


def bake_graph(
    model: onnx.ModelProto,
    preprocessing: Preprocessing,
    signature: ModelSignature,
    top_k: int | None = None,
    doubt_below: float | None = None,
) -> onnx.ModelProto:
    """The graph between preprocessing and probabilities; the arithmetic is :meth:`Preprocessing.normalise`'s.

    Args:
        model: float32 [batch, *input_shape] -> logits or probabilities [batch, K].
        top_k: the best classes instead of all probabilities.
        doubt_below: see :attr:`Bundle.doubt_below`; for the metadata.
    """
    import onnx
    from onnx import TensorProto, helper

    baked: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    graph, outputs = baked.graph, output_tensors(signature, top_k)
    _rename_tensors(graph, {INPUT, *(name for name, _, _ in outputs)})
    source, result = graph.input[0], graph.output[0]
    batch = source.type.tensor_type.shape.dim[0]
    first = batch.dim_value if batch.HasField("dim_value") else batch.dim_param
    nodes = _before(graph, preprocessing, source.name) + list(graph.node)
    nodes += _after(graph, signature, result.name, top_k)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.input[:], graph.output[:]
    shape = [first, *preprocessing.sample_shape]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    for name, kind, width in outputs:
        graph.output.append(helper.make_tensor_value_info(name, kind, [first, width]))
    facts = {item.key: item.value for item in model.metadata_props} | {"input": "uint8, channels last"}
    if doubt_below is not None:
        facts["doubt_below"] = json.dumps(doubt_below)
    helper.set_model_props(baked, facts)
    onnx.checker.check_model(baked)
    return baked


def _rename_tensors(graph: Any, reserved: set[str]) -> None:
    """Other names for the network's own tensors that are called as what is put around it."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    renamed = {}
    for name in sorted(taken):
        if name in reserved or name.startswith(PREFIX):
            renamed[name] = f"network.{name}"
            while renamed[name] in taken:
                renamed[name] += "_"
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)


def output_tensors(signature: ModelSignature, top_k: int | None) -> list[tuple[str, int, int]]:
    """Name, ONNX type and width of each output."""
    if top_k is None:
        return [("probabilities", 1, signature.classes)]
    return [("scores", 1, top_k), ("classes", 7, top_k)]


def _before(graph: Any, preprocessing: Preprocessing, name: str) -> list[Any]:
    """image -> what the network takes: float, channels first, scaled and shifted."""
    from onnx import TensorProto, helper, numpy_helper

    scale, shift = scale_and_shift(preprocessing.mean, preprocessing.std)
    axes = len(preprocessing.sample_shape)
    per_channel = (-1, *(1,) * (axes - 1))
    for constant, values in (("baked.scale", scale), ("baked.shift", shift)):
        array = np.asarray(values, np.float32).reshape(per_channel)
        graph.initializer.append(numpy_helper.from_array(array, constant))
    nodes = [helper.make_node("Cast", [INPUT], ["baked.float"], "baked.cast", to=TensorProto.FLOAT)]
    nodes.append(
        helper.make_node(
            "Transpose", ["baked.float"], ["baked.planes"], "baked.transpose", perm=[0, axes, *range(1, axes)]
        )
    )
    planes = "baked.planes"
    if preprocessing.order == "BGR":
        channels = np.arange(preprocessing.channels)[::-1].copy()
        graph.initializer.append(numpy_helper.from_array(channels, "baked.order"))
        nodes.append(
            helper.make_node("Gather", [planes, "baked.order"], ["baked.bgr"], "baked.gather", axis=1)
        )
        planes = "baked.bgr"
    nodes.append(helper.make_node("Mul", [planes, "baked.scale"], ["baked.scaled"], "baked.mul"))
    nodes.append(helper.make_node("Add", ["baked.scaled", "baked.shift"], [name], "baked.add"))
    return nodes


def _after(graph: Any, signature: ModelSignature, name: str, top_k: int | None) -> list[Any]:
    """What the network gives -> probabilities, or the best classes."""
    from onnx import helper, numpy_helper

    answer = "baked.answer" if top_k is not None else "probabilities"
    if signature.outputs == "logits":
        nodes = [helper.make_node("Softmax", [name], [answer], "baked.softmax", axis=1)]
    else:
        nodes = [helper.make_node("Identity", [name], [answer], "baked.identity")]
    if top_k is not None:
        graph.initializer.append(numpy_helper.from_array(np.array([top_k]), "baked.k"))
        nodes.append(
            helper.make_node("TopK", [answer, "baked.k"], ["scores", "classes"], "baked.topk", axis=1)
        )
    return nodes


def verify_baked(bundle: Bundle, precision: str, target: str, run: Run) -> Parity:
    """All test images through a file, against eager PyTorch.

    Raises:
        VerificationError: a gate of the precision is missed.
    """
    samples, signature = bundle.samples(), bundle.signature
    expected = _compared(probabilities_of(np.asarray(samples.logits), signature.outputs), signature)
    least, usual, most = signature.batch
    found = {}
    for size in {least, usual, most}:  # the largest runs all images, the others some
        count = len(samples) if size == most else min(len(samples), SMALL_BATCH_IMAGES)
        answers = [
            _dense(run(part)[:2], signature.classes)
            for part in _batches(np.asarray(samples.images[:count]), size, least == most)
        ]
        answered = _compared(np.concatenate(answers)[:count], signature)
        found[size] = _filled(answered, expected[:count])
    parity = compare_batches(expected, found, samples.labels, targets=samples.targets)
    check_parity(parity, held_to(bundle, precision), f"the baked file in {target}")
    return parity


def _batches(images: np.ndarray, size: int, fixed: bool) -> Iterator[np.ndarray]:
    """Pieces of ``size`` images; the last one filled up where only that size is taken."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        if fixed and len(part) < size:
            part = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        yield np.ascontiguousarray(part)


def _dense(outputs: tuple[np.ndarray, ...], classes: int) -> np.ndarray:
    """Probabilities [B, K]; of the best classes only, the others are NaN."""
    if len(outputs) == 1:
        return outputs[0]
    scores, indices = outputs
    dense = np.full((len(scores), classes), np.nan, np.float32)
    np.put_along_axis(dense, indices.astype(np.int64), scores, axis=1)
    return dense


def _filled(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Classes that a file does not answer count as the reference says, but never as its first."""
    answered = np.minimum(expected, np.nanmin(found, 1, keepdims=True))
    return np.where(np.isnan(found), answered, found)


def _compared(probabilities: np.ndarray, signature: ModelSignature) -> np.ndarray:
    """What the gates compare: logarithms, which are logits but for what all classes share.

    Sigmoids as they are: a runtime may give 0 for the 1e-8 of another.
    """
    if signature.outputs == "sigmoid":
        return probabilities
    logs: np.ndarray = np.log(np.maximum(probabilities, _LEAST), dtype=np.float32)
    return logs
