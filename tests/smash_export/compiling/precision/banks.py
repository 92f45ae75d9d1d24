"""Small ONNX graphs for the tests of this folder: a trained-like memory-bank network and helpers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIZE, CHANNELS, CLASSES = 12, 8, 5


class Graph:
    """Writes an ONNX graph of one image input node by node; weights are small and fixed by the seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(
        self, source: str, name: str, channels: int, units: int, kernel: int = 3, groups: int = 1
    ) -> str:
        fan = channels // groups * kernel * kernel
        weight = self.random.standard_normal((units, channels // groups, kernel, kernel)) * (2 / fan) ** 0.5
        bias = self.random.standard_normal(units) * 0.1
        inputs = [source, self.constant(f"{name}.w", weight), self.constant(f"{name}.b", bias)]
        pads = [kernel // 2] * 4
        return self.node("Conv", inputs, name, kernel_shape=[kernel] * 2, pads=pads, group=groups)

    def model(
        self, output: str, shape: tuple[int, ...] = (1, SIZE, SIZE), batch: int | str = "batch"
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, CLASSES])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def classifier(
    graph: Graph, source: str, channels: int, batch: int | str = "batch", ridge: float = 3e-3
) -> onnx.ModelProto:
    """Pool, flatten and classify; the last layer is fitted to labelled() by least squares."""
    graph.node("GlobalAveragePool", [source], "pool")
    graph.node("Flatten", ["pool"], "flat")
    graph.constant("fc.w", np.eye(CLASSES, channels))
    graph.constant("fc.b", np.zeros(CLASSES))
    graph.node("Gemm", ["flat", "fc.w", "fc.b"], "logits", transB=1)
    features = helper.make_model(
        helper.make_graph(
            graph.nodes[:-1],
            "features",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
            [helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["batch", channels])],
            graph.weights[:-2],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    x, labels = labelled(400, seed=99)
    session = onnxruntime.InferenceSession(features.SerializeToString(), providers=["CPUExecutionProvider"])
    flat = session.run(None, {"input": x})[0].astype(np.float64)
    flat = np.hstack([flat, np.ones((len(flat), 1))])
    penalty = ridge * np.trace(flat.T @ flat) / flat.shape[1] * np.eye(flat.shape[1])
    solved = np.linalg.solve(flat.T @ flat + penalty, flat.T @ (10 * np.eye(CLASSES)[labels]))
    del graph.weights[-2:]
    graph.constant("fc.w", solved[:-1].T)
    graph.constant("fc.b", solved[-1])
    return graph.model("logits", batch=batch)


def memory_bank(seed: int = 0, batch: int | str = "batch", ridge: float = 3e-3) -> onnx.ModelProto:
    """Stem, two ops that read concatenated banks and add into them, a split write, a rectified end."""
    graph = Graph(seed)
    graph.conv("input", "stem", 1, CHANNELS)
    graph.node("Relu", ["stem"], "bank0")
    for op, banks in enumerate((["bank0"], ["bank0", "bank1", "bank2"])):
        read = banks[0] if len(banks) == 1 else graph.node("Concat", banks, f"op{op}.read", axis=1)
        graph.conv(read, f"op{op}.reduce", CHANNELS * len(banks), CHANNELS, kernel=1)
        graph.node("Relu", [f"op{op}.reduce"], f"op{op}.relu")
        graph.conv(f"op{op}.relu", f"op{op}.a", CHANNELS, 2 * CHANNELS, groups=2)
        graph.conv(f"op{op}.relu", f"op{op}.b", CHANNELS, 2 * CHANNELS)
        graph.node("Add", [f"op{op}.a", f"op{op}.b"], f"op{op}.out")
        outputs = [f"bank{2 * op + 1}", f"bank{2 * op + 2}"]
        graph.nodes.append(
            helper.make_node("Split", [f"op{op}.out"], outputs, name=f"op{op}.split", axis=1, num_outputs=2)
        )
    graph.node("Add", ["bank1", "bank3"], "bank1.1")
    graph.node("Concat", ["bank0", "bank1.1", "bank2", "bank4"], "end", axis=1)
    graph.node("Relu", ["end"], "end.relu")
    graph.node("AveragePool", ["end.relu"], "half", kernel_shape=[2, 2], strides=[2, 2])
    return classifier(graph, "half", 4 * CHANNELS, batch, ridge)


def images(count: int, seed: int = 0) -> np.ndarray:
    """float32 [count, 1, 12, 12]: the images of :func:`labelled`."""
    return labelled(count, seed)[0]


def labelled(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth blobs of different place and size, and which of five strengths they have."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    centre, radius = random.uniform(3, SIZE - 3, (count, 2, 1, 1)), random.uniform(2.5, 3.5, (count, 1, 1))
    labels = random.integers(0, CLASSES, count)
    strength = (labels - 2 + random.uniform(-0.2, 0.2, count))[:, None, None]
    blob = strength * np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / radius**2)
    return blob[:, None].astype(np.float32), labels.astype(np.int64)
