"""An Architecture and its frozen weights, written directly as an ONNX graph.

In milliseconds, without PyTorch and without an exporter: this is how a search measures candidates, and
the file that a bundle ships after it was checked against the eager network and the traced one. The same
inputs give the same bytes.

The graph is *lowered*, exactly up to the rounding of reordered sums. The interpreter
(:mod:`smash_search.model.interpreter`) splits, adds and concatenates banks; runtimes pay for every copy. Here

* a bank that holds one chunk of one tensor is never copied: whoever reads it takes the whole tensor,
  with zero columns in its 1x1 weights for channels that it does not read, where that is cheaper;
* a chunk that stands in several banks that an op reads is read once, their columns added;
* an op that adds to exactly the banks of one tensor is one addition of whole tensors;
* what was rectified is not rectified again;
* the same tensors are concatenated once; banks are put in the order that needs fewest copies;
* convolutions whose groups do not hold whole vectors are written with fewer, wider groups;
* a bank that nothing wrote becomes a constant and disappears into the next bias;
* the scale of a norm moves into the next weights where all of it is positive (ReLU commutes with it), its
  shift into the biases of the convolutions that wrote the banks: a runtime then fuses the rest of a block's
  end with the last convolution, as in a network that never had banks.

    Glossary of shapes: as in smash_search.model.interpreter; n channels of a bank, A spatial area
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smash_base.preprocess import Preprocessing
from smash_export.export.biases import move_into_biases
from smash_search.space.architecture import LEAKY_SLOPE, Architecture, Block, Conv, InputSpec, Op
from smash_search.space.cost import block_sizes

if TYPE_CHECKING:
    from smash_search.model.interpreter import FrozenNetwork

OPSET = 20
IR_VERSION = 10
INPUT, OUTPUT, BATCH = "input", "logits", "batch"
PRODUCER = "smash-export"

# What a lowering may trade: one node costs about as much as this many multiply-accumulates (measured
# on one x86 core with ONNX Runtime: about 2 microseconds a node, 10 GMAC/s in small 1x1 convolutions).
NODE_MACS = 20_000
COPY_MACS = 10  # copying one float
BLOCK = 8  # channels of one vector of floats on AVX2; AVX-512 and NEON kernels take multiples of it


class _Tensor(NamedTuple):
    name: str
    channels: int


class _Term(NamedTuple):
    """Channels [start, start + n) of a tensor."""

    tensor: _Tensor
    start: int


@dataclass
class _Writer:
    """Nodes in the order in which they run, and constants by name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    _cache: dict[object, _Tensor] = field(default_factory=dict)
    # Tensor -> activations that leave it as it is.
    _unchanging: dict[str, Sequence[str]] = field(default_factory=dict)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def initialisers(self) -> list[onnx.TensorProto]:
        return [
            numpy_helper.from_array(np.ascontiguousarray(value), n) for n, value in self.constants.items()
        ]

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def convolution(
        self,
        source: str,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
        stride: Sequence[int] | None = None,
    ) -> _Tensor:
        dims = weight.ndim - 2
        dilation = list(dilation or (1,) * dims)
        pads = [(size - 1) // 2 * step for size, step in zip(weight.shape[2:], dilation, strict=True)]
        inputs = [
            source,
            self.constant(f"{name}.weight", weight.astype(np.float32)),
            self.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=list(weight.shape[2:]),
            pads=pads * 2,
            dilations=dilation,
            group=groups,
            strides=list(stride or (1,) * dims),
        )
        return _Tensor(name, weight.shape[0])

    def activation(self, kind: str, source: str) -> str:
        operators = {
            "relu": ("Relu", {}),
            "leaky_relu": ("LeakyRelu", {"alpha": LEAKY_SLOPE}),
            "tanh": ("Tanh", {}),
            "relu6": ("Clip", {}),
            "hard_swish": ("HardSwish", {}),
        }
        if kind == "none" or kind in self._unchanging.get(source, ()):
            return source
        operator, attributes = operators[kind]
        key = (kind, source)
        if key not in self._cache:  # both branches rectify the same reduced tensor
            bounds = [self.scalar("zero", 0.0), self.scalar("six", 6.0)] if kind == "relu6" else []
            inputs = [source, *bounds]
            result = self.node(operator, inputs, f"{source}.{kind}", **attributes)
            self._cache[key] = _Tensor(result, 0)
            self._unchanging[result] = {"relu": ("relu",), "relu6": ("relu", "relu6")}.get(kind, ())
        return self._cache[key].name

    def scalar(self, name: str, value: float) -> str:
        """A number that several nodes share."""
        key = ("scalar", name)
        if key not in self._cache:
            self._cache[key] = _Tensor(self.constant(name, np.asarray(value, np.float32)), 0)
        return self._cache[key].name

    def concatenation(self, parts: Sequence[_Tensor], name: str) -> _Tensor:
        if len(parts) == 1:
            return parts[0]
        key = tuple(part.name for part in parts)
        if key not in self._cache:
            self.node("Concat", key, name, axis=1)
            self._cache[key] = _Tensor(name, sum(part.channels for part in parts))
        return self._cache[key]

    def addition(self, parts: Sequence[_Tensor], name: str) -> _Tensor:
        total = parts[0]
        for index, part in enumerate(parts[1:]):
            last = index + 2 == len(parts)
            total = _Tensor(
                self.node("Add", [total.name, part.name], name if last else f"{name}.{index}"),
                total.channels,
            )
        return total

    def chunk(self, term: _Term, n: int) -> _Tensor:
        """A term as a tensor of its own; a tensor is split once, into all its chunks."""
        tensor = term.tensor
        if tensor.channels == n:
            return tensor
        key = ("split", tensor.name, n)
        if key not in self._cache:
            names = [f"{tensor.name}.chunk{index}" for index in range(tensor.channels // n)]
            self.nodes.append(
                helper.make_node(
                    "Split",
                    [tensor.name],
                    names,
                    name=f"{tensor.name}.split",
                    axis=1,
                    num_outputs=len(names),
                )
            )
            self._cache[key] = tensor
        return _Tensor(f"{tensor.name}.chunk{term.start // n}", n)


def onnx_from_architecture(
    architecture: Architecture,
    weights: Mapping[str, np.ndarray],
    input_spec: InputSpec,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    batch: int | None = None,
) -> bytes:
    """Write the ONNX file of a frozen network.

    Args:
        architecture: the network.
        weights: frozen weights (:func:`smash_search.model.interpreter.fold`, names in the head of that
        module).
        input_spec: channels and size of its input.
        labels, preprocessing: stored as JSON in the metadata when given.
        batch: a fixed batch; None names the axis "batch".

    Returns:
        The serialised ModelProto: opset 20, float32 input "input" [batch, C, *S], output "logits"
        [batch, K], one file, no date.
    """
    writer = _Writer()
    stem = writer.convolution(
        INPUT, "stem", weights["stem.weight"], weights["stem.bias"], stride=architecture.stem.stride
    )
    x = _Tensor(writer.activation("relu", stem.name), stem.channels)
    sizes = block_sizes(architecture, input_spec.size)
    for index, block in enumerate(architecture.blocks):
        last = index + 1 == len(architecture.blocks)
        end = "head" if last else f"blocks.{index}.transition"
        banks = _write_block(writer, f"blocks.{index}", block, weights, x, math.prod(sizes[index]))
        ended = _write_end(writer, end, banks, block, weights)
        if last:
            _write_head(writer, ended)
        else:
            window = architecture.blocks[index + 1].pool
            source = _write_pool(writer, f"{end}.pool", ended.rectified.name, sizes[index], window)
            ones = (1,) * architecture.dims
            matrix = ended.weight.reshape(*ended.weight.shape, *ones)
            x = writer.convolution(source, end, matrix, ended.bias)
    classes = weights["head.weight"].shape[0]
    first: str | int = BATCH if batch is None else batch
    shape = [first, input_spec.channels, *input_spec.size]
    graph = helper.make_graph(
        writer.nodes,
        f"smash-{architecture.key}",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [first, classes])],
        writer.initialisers(),
    )
    model = helper.make_model(
        graph,
        producer_name=PRODUCER,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return _finished(model, architecture, labels, preprocessing)


def onnx_from_trace(
    network: FrozenNetwork,
    input_spec: InputSpec,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> bytes:
    """The same file as PyTorch's exporter writes it (torch.export): slower to make and to run.

    Args: as :func:`onnx_from_architecture`.
    """
    import contextlib
    import io
    import logging
    import warnings

    import torch

    example = torch.zeros(2, input_spec.channels, *input_spec.size)  # a batch of 1 would be specialised
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim(BATCH, min=1, max=4096)},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.producer_version = ""
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces of the exporter, with paths of this machine
    return _finished(model, network.architecture, labels, preprocessing)


def _finished(
    model: onnx.ModelProto,
    architecture: Architecture,
    labels: Sequence[str] | None,
    preprocessing: Preprocessing | None,
) -> bytes:
    metadata = {"architecture": architecture.key}
    if labels is not None:
        metadata["labels"] = json.dumps(list(labels), ensure_ascii=False)
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(preprocessing.to_json())
    helper.set_model_props(model, metadata)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


# ------------------------------------------------------------------------------------ inside a block


def _write_block(
    writer: _Writer,
    where: str,
    block: Block,
    weights: Mapping[str, np.ndarray],
    x: _Tensor,
    area: int,
) -> list[list[_Term]]:
    """Run the ops; returns what each bank holds at the end, as sums of terms."""
    n = block.bank_channels
    banks: list[list[_Term]] = [[] for _ in range(block.banks)]
    for index in range(block.input_banks):
        banks[index] = [_Term(x, index * n)]
    for index, op in enumerate(block.ops):
        name = f"{where}.ops.{index}"
        if op.reduce:
            reduced = _write_reduce(writer, name, op, banks, weights, x, n, area)
        else:
            reduced = _gathered(writer, name, op, banks, x, n)
        output = _write_branches(writer, name, op, weights, reduced)
        output = _write_end_of_op(writer, name, op, weights, output)
        _add_output(writer, name, op, banks, output, n)
    return banks


def _write_reduce(
    writer: _Writer,
    name: str,
    op: Op,
    banks: list[list[_Term]],
    weights: Mapping[str, np.ndarray],
    x: _Tensor,
    n: int,
    area: int,
) -> _Tensor:
    weight = weights[f"{name}.reduce.weight"]  # [M, R n, 1, 1]
    columns = weight.reshape(weight.shape[0], -1)
    for bank in op.reads:
        _settle(writer, f"{name}.bank{bank}", banks, bank, n)
    terms = [(banks[bank][0], position) for position, bank in enumerate(op.reads) if banks[bank]]
    sources = _sources([term for term, _ in terms], n, len(columns), area, writer)
    if not sources:  # reads nothing but zeros: what is left is the bias
        sources = {_Term(x, 0): (x, 0)}
    tensors = list(dict.fromkeys(tensor for tensor, _ in sources.values()))
    offsets, total = {}, 0
    for tensor in tensors:
        offsets[tensor] = total
        total += tensor.channels
    matrix = np.zeros((len(columns), total), np.float64)
    for term, position in terms:
        tensor, start = sources[term]
        left = offsets[tensor] + start
        matrix[:, left : left + n] += columns[:, position * n : (position + 1) * n]
    joined = writer.concatenation(tensors, f"{name}.read")
    shaped = matrix.reshape(*matrix.shape, *weight.shape[2:])
    return writer.convolution(joined.name, f"{name}.reduce", shaped, weights[f"{name}.reduce.bias"])


def _sources(
    terms: Sequence[_Term], n: int, outputs: int, area: int, writer: _Writer
) -> dict[_Term, tuple[_Tensor, int]]:
    """Where each term is taken from: its whole tensor, or a chunk of it when much would be wasted."""
    chosen: dict[_Term, tuple[_Tensor, int]] = {}
    used: dict[_Tensor, set[int]] = {}
    for term in terms:
        used.setdefault(term.tensor, set()).add(term.start)
    for term in terms:
        tensor = term.tensor
        wasted = tensor.channels - n * len(used[tensor])
        copies = NODE_MACS + tensor.channels * area * COPY_MACS
        if wasted * area * (outputs + COPY_MACS) <= copies:
            chosen[term] = (tensor, term.start)
        else:
            chosen[term] = (writer.chunk(term, n), 0)
    return chosen


def _gathered(writer: _Writer, name: str, op: Op, banks: list[list[_Term]], x: _Tensor, n: int) -> _Tensor:
    """What an op without a first 1x1 convolution reads; a tensor whose chunks follow each other stays
    whole.
    """
    for bank in op.reads:
        _settle(writer, f"{name}.bank{bank}", banks, bank, n)
    held = [banks[bank][0] if banks[bank] else None for bank in op.reads]
    parts: list[_Tensor] = []
    place = 0
    while place < len(held):
        term = held[place]
        if term is None:
            parts.append(_zeros(writer, x, n))
            place += 1
            continue
        chunks = term.tensor.channels // n
        whole = [_Term(term.tensor, index * n) for index in range(chunks)]
        if held[place : place + chunks] == whole:
            parts.append(term.tensor)
            place += chunks
        else:
            parts.append(writer.chunk(term, n))
            place += 1
    return writer.concatenation(parts, f"{name}.read")


def _zeros(writer: _Writer, x: _Tensor, n: int) -> _Tensor:
    """A bank that nothing wrote, of the size of the block's input."""
    key = ("zeros", x.name, n)
    if key not in writer._cache:
        chunk = writer.chunk(_Term(x, 0), n)
        name = writer.node("Mul", [chunk.name, writer.scalar("zero", 0.0)], f"{x.name}.zeros")
        writer._cache[key] = _Tensor(name, n)
    return writer._cache[key]


def _write_branches(
    writer: _Writer, name: str, op: Op, weights: Mapping[str, np.ndarray], reduced: _Tensor
) -> _Tensor:
    ends = []
    for branch in op.branches():
        x = reduced
        for slot in branch:
            conv = op.convs[slot]
            assert conv is not None  # active
            x = _write_conv(writer, f"{name}.convs.{slot}", conv, weights, x)
        ends.append(x)
    if not ends:
        return reduced
    if len(ends) == 1:
        return ends[0]
    if op.gate:
        gate = writer.node("Sigmoid", [ends[1].name], f"{name}.gate")
        return _Tensor(writer.node("Mul", [ends[0].name, gate], f"{name}.gated"), op.width)
    return writer.addition(ends, f"{name}.branches")


def _write_end_of_op(
    writer: _Writer, name: str, op: Op, weights: Mapping[str, np.ndarray], x: _Tensor
) -> _Tensor:
    """Squeeze-excitation and the last 1x1 convolution, where an op has them."""
    if op.project is not None:
        x = _Tensor(writer.activation(op.project, x.name), x.channels)
    if op.squeeze:
        pooled = writer.node("GlobalAveragePool", [x.name], f"{name}.pooled")
        hidden = writer.convolution(
            pooled, f"{name}.squeeze", weights[f"{name}.squeeze.weight"], weights[f"{name}.squeeze.bias"]
        )
        excited = writer.convolution(
            writer.activation("relu", hidden.name),
            f"{name}.excite",
            weights[f"{name}.excite.weight"],
            weights[f"{name}.excite.bias"],
        )
        factor = writer.node("Sigmoid", [excited.name], f"{name}.factor")
        x = _Tensor(writer.node("Mul", [x.name, factor], f"{name}.weighed"), x.channels)
    if op.project is not None:
        x = writer.convolution(
            x.name, f"{name}.project", weights[f"{name}.project.weight"], weights[f"{name}.project.bias"]
        )
    return x


def _write_conv(
    writer: _Writer, name: str, conv: Conv, weights: Mapping[str, np.ndarray], x: _Tensor
) -> _Tensor:
    source = writer.activation(conv.activation, x.name)
    weight, groups = regroup(weights[f"{name}.weight"], conv.groups)
    return writer.convolution(source, name, weight, weights[f"{name}.bias"], conv.dilation, groups)


def regroup(weight: np.ndarray, groups: int) -> tuple[np.ndarray, int]:
    """The same convolution in fewer, wider groups where runtimes run those faster.

    Joining groups adds zeros: [O, I, *k] -> [O, I * groups / new, *k].
    """
    outputs, inputs = weight.shape[0], weight.shape[1] * groups
    depthwise = groups == inputs == outputs
    if groups == 1 or (depthwise and (inputs % BLOCK == 0 or inputs > 3 * BLOCK)):
        return weight, groups  # depthwise convolutions of whole blocks have a path of their own
    wanted = _groups_that_run(inputs, outputs, groups)
    if wanted == groups:
        return weight, groups
    joined = np.zeros((outputs, inputs // wanted, *weight.shape[2:]), weight.dtype)
    rows, columns, together = outputs // groups, inputs // groups, groups // wanted
    for group in range(groups):
        left = group % together * columns
        at = slice(group * rows, (group + 1) * rows)
        joined[at, left : left + columns] = weight[at]
    return joined, wanted


def _groups_that_run(inputs: int, outputs: int, groups: int) -> int:
    """Number of groups that a grouped convolution is fastest with, zeros between them included.

    Measured with ONNX Runtime 1.32 and OpenVINO 2026.4 on AVX-512: 8 to 64 channels in 2 to 16 groups,
    kernels of 3 to 7, 7 to 28 pixels, between two 1x1 convolutions. What is chosen here takes 1.03 and 1.04
    times as long as the best number in the mean, what architectures have 1.14 and 1.19. ONNX Runtime works
    on blocks of 16 channels inside a group there, of 8 on AVX2 (64 channels in 16, 8 and 4 groups, 14x14
    pixels, 3x3: 79, 95 and 52 us); OpenVINO is slow with two or three channels in a group. More zeros than
    these cost more than they save, the more the larger the kernel (24 channels in 4 groups, 7x7: 170 us,
    dense 253).
    On AVX2 only instructions were counted: a group of 16 takes up to 1.7 times those of two groups of 8.
    """
    narrow, wide = min(inputs, outputs), max(inputs, outputs)
    fewer = [count for count in range(1, groups + 1) if groups % count == 0]

    def whole(block: int) -> list[int]:
        return [n for n in fewer if not inputs // n % block and not outputs // n % block]

    if full := [n for n in whole(2 * BLOCK) if n == groups or wide // n == 2 * BLOCK]:
        return max(full)
    if wide <= 2 * BLOCK:
        return 1
    if vectors := [n for n in whole(BLOCK) if groups // n <= 2]:
        return max(vectors)
    return max((n for n in fewer if narrow // n >= 4), default=1)


def _add_output(
    writer: _Writer, name: str, op: Op, banks: list[list[_Term]], output: _Tensor, n: int
) -> None:
    chunks = output.channels // n
    held = [banks[bank] for bank in op.writes]
    if (
        len(op.writes) == chunks
        and all(len(terms) == 1 for terms in held)
        and len({terms[0].tensor for terms in held}) == 1
        and held[0][0].tensor.channels == output.channels
        and [terms[0].start for terms in held] == [index * n for index in range(chunks)]
    ):  # exactly the banks of one tensor, in order: one addition of whole tensors
        total = writer.addition([held[0][0].tensor, output], f"{name}.sum")
        for index, bank in enumerate(op.writes):
            banks[bank] = [_Term(total, index * n)]
        return
    for index, bank in enumerate(op.writes):
        banks[bank] = [*banks[bank], _Term(output, index % chunks * n)]


def _settle(writer: _Writer, name: str, banks: list[list[_Term]], bank: int, n: int) -> None:
    """Add up a bank that holds several terms; later readers and the block's end use the sum."""
    if len(banks[bank]) > 1:
        total = writer.addition([writer.chunk(term, n) for term in banks[bank]], name)
        banks[bank] = [_Term(total, 0)]


# ---------------------------------------------------------------------------------- end of a block


class _End(NamedTuple):
    """Rectified banks [B, channels, *S], and what follows: weight [next, channels], bias [next]."""

    rectified: _Tensor
    weight: np.ndarray
    bias: np.ndarray


def _write_end(
    writer: _Writer,
    name: str,
    banks: list[list[_Term]],
    block: Block,
    weights: Mapping[str, np.ndarray],
) -> _End:
    """All banks * scale + shift, ReLU; empty banks and positive scales move into what follows."""
    n = block.bank_channels
    scale = weights[f"{name}.scale"].astype(np.float64)
    shift = weights[f"{name}.shift"].astype(np.float64)
    weight = weights[f"{name}.weight"].astype(np.float64)
    weight = weight.reshape(weight.shape[0], -1)  # [next, banks n]
    bias = weights[f"{name}.bias"].astype(np.float64)
    parts, order = _arrange(writer, name, banks, n)
    empty = [bank for bank in range(block.banks) if not banks[bank]]
    dropped = _channels(empty, n)
    bias = bias + weight[:, dropped] @ np.maximum(shift[dropped], 0)
    kept = _channels(order, n)
    weight, scale, shift = weight[:, kept], scale[kept], shift[kept]
    if not parts:
        raise ValueError(f"{name}: no bank holds anything")  # an input bank always does
    view = (1, -1, *[1] * (weights["stem.weight"].ndim - 2))
    if scale.min() > 1e-3 * np.abs(scale).max():
        weight, shift = weight * scale, shift / scale
        joined = _shifted(writer, name, parts, shift, view)
    else:
        joined = writer.concatenation(parts, f"{name}.banks").name
        factor = writer.constant(f"{name}.scale", scale.astype(np.float32).reshape(view))
        joined = writer.node("Mul", [joined, factor], f"{name}.scaled")
        offset = writer.constant(f"{name}.shift", shift.astype(np.float32).reshape(view))
        joined = writer.node("Add", [joined, offset], f"{name}.shifted")
    rectified = writer.node("Relu", [joined], f"{name}.rectified")
    return _End(_Tensor(rectified, len(kept)), weight, bias)


def _shifted(
    writer: _Writer, name: str, parts: list[_Tensor], shift: np.ndarray, view: tuple[int, ...]
) -> str:
    """Concatenated parts plus ``shift``, in the biases of what wrote them where that is possible."""
    places = np.cumsum([0, *(part.channels for part in parts)])
    held = {part.name for part in parts}
    left = []  # parts whose shift needs a node
    for index, part in enumerate(parts):
        piece = slice(places[index], places[index + 1])
        alone = parts.count(part) == 1
        if alone and move_into_biases(writer.nodes, writer.constants, part.name, shift[piece], held):
            shift[piece] = 0
        else:
            left.append(index)
    if len(left) == 1:
        (index,) = left
        values = shift[places[index] : places[index + 1]].astype(np.float32)
        offset = writer.constant(f"{name}.shift", values.reshape(view))
        added = writer.node("Add", [parts[index].name, offset], f"{name}.shifted")
        parts = [*parts[:index], _Tensor(added, parts[index].channels), *parts[index + 1 :]]
    joined = writer.concatenation(parts, f"{name}.banks").name
    if len(left) < 2:
        return joined
    offset = writer.constant(f"{name}.shift", shift.astype(np.float32).reshape(view))
    return writer.node("Add", [joined, offset], f"{name}.shifted")


def _arrange(writer: _Writer, name: str, banks: list[list[_Term]], n: int) -> tuple[list[_Tensor], list[int]]:
    """Parts to concatenate and the banks in their order: whole tensors wherever every chunk is a bank."""
    for bank in range(len(banks)):
        _settle(writer, f"{name}.bank{bank}", banks, bank, n)
    homes: dict[_Tensor, dict[int, list[int]]] = {}
    for bank, terms in enumerate(banks):
        for term in terms:
            homes.setdefault(term.tensor, {}).setdefault(term.start, []).append(bank)
    parts, order = [], []
    for tensor, chunks in homes.items():
        chunks = {start: list(owners) for start, owners in chunks.items()}
        while len(chunks) * n == tensor.channels and all(chunks.values()):
            parts.append(tensor)  # once more for a tensor whose every chunk stands in several banks
            order += [chunks[start].pop(0) for start in sorted(chunks)]
        for start, owners in chunks.items():
            for bank in owners:
                parts.append(writer.chunk(_Term(tensor, start), n))
                order.append(bank)
    return parts, order


def _channels(banks: Sequence[int], n: int) -> np.ndarray:
    return (np.asarray(banks, np.int64)[:, None] * n + np.arange(n)).reshape(-1)


def _write_pool(writer: _Writer, name: str, source: str, size: tuple[int, ...], window: int) -> str:
    shape = [min(window, value) for value in size]
    if max(shape) == 1:
        return source
    return writer.node("AveragePool", [source], name, kernel_shape=shape, strides=shape)


def _write_head(writer: _Writer, end: _End) -> None:
    average = writer.node("GlobalAveragePool", [end.rectified.name], "head.average")
    flat = writer.node("Flatten", [average], "head.flat", axis=1)
    inputs = [
        flat,
        writer.constant("head.weight", end.weight.astype(np.float32)),
        writer.constant("head.bias", end.bias.astype(np.float32)),
    ]
    writer.node("Gemm", inputs, OUTPUT, transB=1)
