"""MLPerf Tiny's ResNet-8: our int8 file beside the int8 file that MLCommons publishes, on all test images.

    git clone https://github.com/mlcommons/tiny
    python -m benchmarks.mlperf_tiny tiny/benchmark/training/image_classification/trained_models

The published fp32 file (pretrainedResnet.tflite) is written as ONNX, operator by operator, adopted and
compiled for each runtime; the published int8 file (pretrainedResnet_quant.tflite) runs in LiteRT and is given
the bytes that it takes. Neither is part of this project. Times are processor time of one thread at batch 1,
interleaved. Our LiteRT file is timed twice: given the bytes that it takes, as the published one, and through
its session, which is given float32 images and rounds them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.int8 import interleaved
from benchmarks.record import record
from smash_base.errors import VerificationError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle, CompiledFile
from smash_export.compiling.compile import compile_bundle
from smash_export.export.adopt import Images, adopt
from smash_search.data import Dataset, load_dataset
from smash_targets.base import Session, SessionOptions, get_target

BARE = "litert, given bytes"
FP32, INT8 = "pretrainedResnet.tflite", "pretrainedResnet_quant.tflite"
RUNTIMES = ("onnxruntime", "openvino", "litert")
CALIBRATION, JUDGED = 1024, 2000
BYTES = Preprocessing(32, 32, 3, (0.0,) * 3, (1 / 255,) * 3)  # the network takes 0 to 255


def as_onnx(path: Path) -> onnx.ModelProto:
    """The operators of a LiteRT file as an ONNX graph with channels first; its softmax is left out."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    shapes = {item["index"]: list(map(int, item["shape"])) for item in interpreter.get_tensor_details()}
    names = {int(interpreter.get_input_details()[0]["index"]): "input"}
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(index: int, axes: tuple[int, ...]) -> str:
        value = np.asarray(interpreter.get_tensor(index), np.float32).transpose(axes)
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"constant{index}"))
        return f"constant{index}"

    operators = interpreter._get_ops_details()
    for number, operator in enumerate(operators):
        kind, inputs, output = operator["op_name"], list(map(int, operator["inputs"])), f"tensor{number}"
        source = names[inputs[0]]
        if kind == "SOFTMAX":
            break
        if kind == "CONV_2D":
            before, weight, after = shapes[inputs[0]], shapes[inputs[1]], shapes[int(operator["outputs"][0])]
            stride, kernel = before[1] // after[1], weight[1]
            pad = max(kernel - stride, 0)  # "same": the larger half behind
            weights = [constant(inputs[1], (0, 3, 1, 2)), constant(inputs[2], (0,))]
            pads = [pad // 2] * 2 + [pad - pad // 2] * 2
            shape: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
            nodes.append(helper.make_node("Conv", [source, *weights], [output], **shape))
        elif kind == "ADD":
            nodes.append(helper.make_node("Add", [source, names[inputs[1]]], [output]))
        elif kind == "AVERAGE_POOL_2D":
            nodes.append(helper.make_node("GlobalAveragePool", [source], [output]))
        elif kind == "RESHAPE":
            nodes.append(helper.make_node("Flatten", [source], [output]))
        elif kind == "FULLY_CONNECTED":
            weights = [constant(inputs[1], (0, 1)), constant(inputs[2], (0,))]
            nodes.append(helper.make_node("Gemm", [source, *weights], ["logits"], transB=1))
        else:
            raise ValueError(f"no such operator is expected: {kind}")
        if number in ACTIVATED:
            nodes.append(helper.make_node("Relu", [output], [f"{output}.relu"]))
            output = f"{output}.relu"
        names[int(operator["outputs"][0])] = output
    graph = helper.make_graph(
        nodes,
        "resnet-8",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# Operators whose fused activation is a ReLU, which the interpreter does not tell: all but the second
# convolution of a stack and its shortcut. A wrong guess is an error: answers are compared with the file's.
ACTIVATED = {0, 1, 3, 4, 7, 8, 11}


class Bare(Session):
    """A LiteRT file, one thread: takes images of its own type with channels last."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[1, 32, 32, 3] -> probabilities or what they were rounded to, [1, 10]."""
        self._interpreter.set_tensor(self._input["index"], batch)
        self._interpreter.invoke()
        result: np.ndarray = self._interpreter.get_tensor(self._output["index"])
        return result

    def taken(self, images: np.ndarray) -> np.ndarray:
        """uint8 images in the type that the file takes."""
        if self._input["dtype"] is np.float32:
            return images.astype(np.float32)
        scale, zero = self._input["quantization"]
        rounded: np.ndarray = np.rint(images / np.float32(scale)) + zero
        return rounded.clip(-128, 127).astype(np.int8)

    def answers(self, images: np.ndarray) -> np.ndarray:
        """The class of each image, int64 [N]."""
        taken = self.taken(images)
        return np.array([self.run(taken[i : i + 1]).argmax() for i in range(len(taken))])


def compiled(bundle: Bundle, runtime: str, data: str) -> CompiledFile | str:
    """The int8 file, or why there is none."""
    try:
        return compile_bundle(bundle, runtime, "int8", data=data, threads=1)
    except VerificationError as error:
        return str(error)


def adopted(folder: Path, dataset: Dataset, work: Path) -> Bundle:
    """The published fp32 network as a bundle."""
    onnx.save(as_onnx(folder / FP32), work / "resnet-8.onnx")
    test = dataset.test
    shown = Images(
        np.asarray(test.images[:JUDGED]),
        test.labels[:JUDGED],
        np.asarray(dataset.train.images[:CALIBRATION]),
        {},
    )
    labels, path = dataset.classes, work / "bundle"
    return adopt(work / "resnet-8.onnx", path, labels=labels, preprocessing=BYTES, images=shown).bundle


def measured(folder: Path, dataset: Dataset, data: str) -> dict[str, Any]:
    """Errors on all test images and milliseconds, of the published int8 file and of ours."""
    images, labels = np.asarray(dataset.test.images), dataset.test.labels
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    published, exact = Bare(folder / INT8), Bare(folder / FP32)
    answers = {"published int8": published.answers(images), "published fp32": exact.answers(images)}
    opened: dict[str, Session] = {"published int8": published}
    refused: dict[str, str] = {}
    options = SessionOptions(threads=1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        bundle = adopted(folder, dataset, Path(name))
        with get_target("onnxruntime").open(bundle.onnx, bundle.signature, options) as session:
            same = float((session.run(x).argmax(1) == answers["published fp32"]).mean())
        if same < 0.9999:
            raise ValueError(f"the ONNX graph is not the published network: {same:.2%} of the labels agree")
        for runtime in RUNTIMES:
            file = compiled(bundle, runtime, data)
            if isinstance(file, str):
                refused[runtime] = file
                continue
            session = get_target(runtime).open(file.main, bundle.signature, options)
            opened[runtime] = stack.enter_context(session)
            answers[runtime] = session.run(x).argmax(1)
            if runtime == "litert":
                opened[BARE] = bare = Bare(file.main)
                answers[BARE] = bare.answers(images)
        inputs = [
            session.taken(images[:1]) if isinstance(session, Bare) else x[:1] for session in opened.values()
        ]
        times = dict(zip(opened, interleaved(list(opened.values()), inputs), strict=True))
    errors = {key: round(100 * float((value != labels).mean()), 2) for key, value in answers.items()}
    milliseconds = {key: round(value, 4) for key, value in times.items()}
    return {"error_percent": errors, "ms": milliseconds, "same_labels_as_published": same, "refused": refused}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with the two .tflite files")
    parser.add_argument("--data", default="cifar10:data", help="CIFAR-10")
    arguments = parser.parse_args()
    found = measured(arguments.folder, load_dataset(arguments.data), arguments.data)
    print(found, flush=True)
    ours = [runtime for runtime in (*RUNTIMES, BARE) if runtime in found["ms"]]
    goals = []
    if ours:
        best = min(ours, key=lambda runtime: found["ms"][runtime])
        ratio = found["ms"][best] / found["ms"]["published int8"]
        more = found["error_percent"][best] - found["error_percent"]["published int8"]
        what = f"ResNet-8 of MLPerf Tiny, our int8 file in {best} over the published one in LiteRT"
        shared = "processor time, interleaved; the machine was shared"
        goals = [
            {
                "what": f"{what}: time",
                "goal": "<= 1.0x",
                "value": round(ratio, 3),
                "met": ratio <= 1,
                "note": shared,
            },
            {
                "what": f"{what}: points of error more",
                "goal": "<= 0.2",
                "value": round(more, 2),
                "met": more <= 0.2,
                "note": "on all test images",
            },
        ]
    record("mlperf_tiny", found, goals)


if __name__ == "__main__":
    main()
