"""What adopt changes in a foreign graph, each change held against the file itself.

The reference is what the file answers in its own runtime, as it came, on the samples and on random images
(:class:`Reference`). A newer opset, a batch axis with a name, weights that are no inputs any more: each is
kept only if the answers stay the same. onnx.version_converter alone does not warrant that: it gives
Resize of opset 10 the coordinates of opset 11 (other answers for most scales), and changes Hardmax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smash_base.errors import InvalidInputError, VerificationError
from smash_base.preprocess import Outputs
from smash_export.export.foreign_onnx import shape_of
from smash_export.export.onnx_graphs import (
    INT8_OPSET,
    attribute,
    check_finite,
    chunks,
    producers,
    session_of,
)
from smash_export.measure.gates import GATES, relative_error, too_many
from smash_targets.onnx_file import QUANTISING

if TYPE_CHECKING:
    import onnx

Run = Callable[[np.ndarray], np.ndarray]

TOLERANCE = 1e-4  # of the largest answer, where nothing is rounded to fp16 or bf16
NEW_OPSETS = (20, 17, 13)  # in the order of preference; a converter that fails at one may do at another
MIN_IR = 8  # since 4 weights need not be inputs; 8 knows everything up to opset 18
RANDOM_IMAGES = 16
LEAST_ANSWERS = 24  # by which one output that stays between 0 and 1 is a probability
_ARITHMETIC = frozenset(("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Neg", "Clip"))
_QUICK = 32  # samples that a conversion is first tried on; the finished graph is run on all


@dataclass(frozen=True)
class Step:
    """A node that is put before or behind a network: its operator and its one attribute."""

    operator: str
    attribute: str
    value: int | list[int]

    def node(self, before: str, after: str) -> onnx.NodeProto:
        """The node between two tensors."""
        import onnx

        node = onnx.helper.make_node(self.operator, [before], [after])
        node.attribute.append(onnx.helper.make_attribute(self.attribute, self.value))
        return node


_PLAIN = re.compile(r"[A-Za-z0-9_./:-]{1,200}")
_PASSING = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Dropout"}
_PASSING |= {"QuantizeLinear", "DequantizeLinear", "Clip", "Slice", "Gather"}
_SIGMOIDS = {"Sigmoid", "HardSigmoid"}
_DIVISIONS = {"Div", "Reciprocal"}  # how a sigmoid ends that was written out


class Reference:
    """What a network answers as it came.

    Attributes:
        samples: float32 [N, *input_shape], normalised.
        random: float32 [16, *input_shape] noise of the spread of the samples.
        answers, random_answers: float32 [N, K] and [16, K].
    """

    def __init__(self, run: Run, samples: np.ndarray, what: str) -> None:
        """Run the network.

        Raises:
            VerificationError: it answers real images with NaN or infinity.
            InvalidInputError: it does not answer image by image.
        """
        self.samples, self.random = samples, random_images(samples)
        self.answers, self.random_answers = run(samples), run(self.random)
        for answers, images in ((self.answers, self.samples), (self.random_answers, self.random)):
            if answers.ndim != 2 or len(answers) != len(images):
                raise InvalidInputError(
                    f"{what} does not answer image by image",
                    expected=f"[{len(images)}, K]",
                    received=list(answers.shape),
                )
        check_finite(self.answers, what)

    @property
    def classes(self) -> int:
        """K."""
        return int(self.answers.shape[1])

    def mapped(self, change: Run) -> Reference:
        """The same images with ``change`` applied to the answers."""
        copy = object.__new__(Reference)
        copy.samples, copy.random = self.samples, self.random
        copy.answers, copy.random_answers = change(self.answers), change(self.random_answers)
        return copy

    def problem(self, run: Run, precision: str, *, quick: bool = False) -> tuple[str, str] | None:
        """What is expected of ``run`` and what came instead; None where it answers as the network does.

        Args:
            run: the changed network.
            precision: Precision by :func:`computes_in`. ONNX Runtime leaves out casts, and fuses operators,
                by what stands beside them; in fp16 and bf16 each rounds otherwise then.
            quick: use few of the samples.
        """
        count = _QUICK if quick else len(self.samples)
        expected, answers = self.answers[:count], run(self.samples[:count])
        pairs = ((answers, expected), (run(self.random), self.random_answers))
        gate = GATES[precision]
        if gate.relative_error is None:
            difference = max(_difference(*pair, _of_the_largest) for pair in pairs)
            wish, found = (
                f"answers within {TOLERANCE:g} of the largest one",
                f"a difference of {difference:.3g}",
            )
            return None if difference <= TOLERANCE else (wish, found)
        error = max(_difference(*pair, relative_error) for pair in pairs)
        if not error <= gate.relative_error:
            limit = f"an error of at most {gate.relative_error:.1%} of the spread of the answers"
            return f"{limit}, which rounding to {precision} explains", f"{error:.2%}"
        changed = int((answers.argmax(axis=1) != expected.argmax(axis=1)).sum())
        if too_many(changed, len(expected), 1 - gate.agreement):
            return f"the same label for {gate.agreement:.1%} of the images", f"{changed} others"
        return None


def random_images(samples: np.ndarray) -> np.ndarray:
    """Noise with mean and spread of the samples, half of it three times as wide: real images of one kind
    may never reach the part of a graph that was changed."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((RANDOM_IMAGES, *samples.shape[1:])).astype(np.float32)
    noise[RANDOM_IMAGES // 2 :] *= 3
    return np.asarray(noise * max(float(samples.std()), 1e-3) + float(samples.mean()), dtype=np.float32)


def runner(model: onnx.ModelProto | bytes, batch: int | None) -> Run:
    """The graph in ONNX Runtime as a function of any number of images, ``batch`` of them at a time
    (None: 32, fewer at the end)."""
    session = session_of(model)
    name = session.get_inputs()[0].name

    def run(tensors: np.ndarray) -> np.ndarray:
        parts = [session.run(None, {name: part})[0] for part in chunks(tensors, batch)]
        return np.concatenate(parts)[: len(tensors)] if batch is not None else np.concatenate(parts)

    return run


def modernised(model: onnx.ModelProto, reference: Reference, batch: int | None) -> onnx.ModelProto:
    """The graph at the newest opset that keeps its answers, its own opset if none does.

    Only graphs below opset 13 are converted.
    """
    if opset_of(model) >= INT8_OPSET:
        return _without_weights_as_inputs(model)
    precision = computes_in(model)
    for candidate in _conversions(model):
        try:
            if reference.problem(runner(candidate, batch), precision, quick=True) is None:
                return candidate
        except Exception:  # noqa: BLE001 - ONNX Runtime's errors; the next candidate is tried
            continue
    return _without_weights_as_inputs(model)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators."""
    return next((int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def computes_in(model: onnx.ModelProto) -> str:
    """The coarsest type that values take on the way from the images to the answers: "fp32" (float64 counts as
    that), "fp16", "bf16" or "int8". Weights that are stored in fp16 or int8 and made floats before they are
    used do not count."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    weights = {tensor.name for tensor in graph.initializer}
    of_images = {value.name for value in graph.input if value.name not in weights}
    for node in graph.node:
        if not of_images.isdisjoint(node.input):
            if node.op_type in QUANTISING:
                return "int8"
            of_images.update(node.output)
    found = {types.get(name) for name in of_images}
    if onnx.TensorProto.BFLOAT16 in found:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in found else "fp32"


def check_same(reference: Reference, run: Run, precision: str, what: str) -> None:
    """Raise VerificationError unless ``run`` answers as the file does, on all images, but for the rounding of
    the precision that it computes in."""
    if problem := reference.problem(run, precision):
        raise VerificationError(
            f"what adopt made of {what} does not do what the file does",
            expected=problem[0],
            received=problem[1],
            hint="Export the network again at opset 17 or newer, with channels first."
            if precision == "fp32"
            else "Adopt the fp32 file that it was made from.",
        )


def are_bounded(reference: Reference) -> bool:
    """Whether every answer lies between 0 and 1, as probabilities do."""
    every = np.concatenate([reference.answers, reference.random_answers])
    return bool(np.isfinite(every).all() and every.min() >= 0 and every.max() <= 1 + 1e-3)


def outputs_of(model: onnx.ModelProto, reference: Reference) -> Outputs:
    """What the answers are, by the end of the graph and by their values."""
    last, bounded = _last_operator(model), are_bounded(reference)
    every = np.concatenate([reference.answers, reference.random_answers])
    one = np.allclose(every.sum(axis=1), 1, atol=2e-3) or last == "Softmax"  # of int8, each rounded by itself
    if bounded and reference.classes > 1 and one:
        return "probabilities"
    if last in _SIGMOIDS or (last in _DIVISIONS and bounded):
        return "sigmoid"
    if reference.classes == 1 and bounded and (last == "Softmax" or len(every) >= LEAST_ANSWERS):
        return "sigmoid"  # one of two that exclude each other
    return "logits"


@dataclass(frozen=True)
class Form:
    """In which form a file takes images and gives answers, where it is not float32, channels first, [B, K].

    Attributes:
        channels_last: images are [B, H, W, C], as TensorFlow has them.
        image_type, answer_type: numbers of ONNX's types.
    """

    channels_last: bool
    image_type: int
    answer_type: int

    def adapted(self, run: Run) -> Run:
        """``run`` of a file of this form, for images and answers of ours."""
        import onnx

        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.image_type)

        def ours(tensors: np.ndarray) -> np.ndarray:
            images = np.moveaxis(tensors, 1, -1) if self.channels_last else tensors
            answers = run(np.ascontiguousarray(images, dtype=dtype)).astype(np.float32)
            return answers.reshape(len(answers), -1)

        return ours


def in_our_form(model: onnx.ModelProto, image: tuple[int, ...]) -> Form:
    """Put what converts images and answers into the graph, around the network; what it was before.

    Args:
        model: is changed.
        image: [C, H, W] of the preprocessing.
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    source = next(value for value in model.graph.input if value.name not in weights)
    output = model.graph.output[0]
    form = Form(
        _channels_last(model, source, image),
        source.type.tensor_type.elem_type,
        output.type.tensor_type.elem_type,
    )
    inward: list[Step] = []
    outward: list[Step] = []
    if form.image_type != onnx.TensorProto.FLOAT:
        inward.append(Step("Cast", "to", form.image_type))
    if form.channels_last:
        inward.append(Step("Transpose", "perm", [0, *range(2, len(image) + 1), 1]))
        batch = shape_of(source)[0] or "batch"
        named = onnx.helper.make_tensor_value_info(source.name, form.image_type, [batch, *image])
        source.type.CopyFrom(named.type)
    if len(shape_of(output)) not in (0, 2):  # [B] becomes [B, 1]
        outward.append(Step("Flatten", "axis", 1))
        del output.type.tensor_type.shape.dim[2:]
    if form.answer_type != onnx.TensorProto.FLOAT:
        outward.append(Step("Cast", "to", onnx.TensorProto.FLOAT))
    source.type.tensor_type.elem_type = output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    _put_around(model, source.name, output.name, inward, outward)
    return form


def _channels_last(model: onnx.ModelProto, source: onnx.ValueInfoProto, image: tuple[int, ...]) -> bool:
    """Whether the file takes the image with its channels last: by the sizes that it declares or, where these
    fit both ways, by what it does first with the axes.
    """
    shape = shape_of(source)

    def fits(sizes: tuple[int, ...]) -> bool:
        return len(shape) == len(sizes) + 1 and all(
            theirs in (None, ours) for theirs, ours in zip(shape[1:], sizes, strict=True)
        )

    if not fits((*image[1:], image[0])):
        return False
    return not fits(image) or _begins_with_channels_first(model, source.name, len(image))


def _begins_with_channels_first(model: onnx.ModelProto, name: str, axes: int) -> bool:
    """Whether nothing but arithmetic comes before a transposition of that tensor to channels first."""
    for node in model.graph.node:  # in an order in which it can be run
        if name in node.input:
            if node.op_type == "Transpose":
                return list(attribute(node, "perm", [])) == [0, axes, *range(1, axes)]
            if node.op_type not in _ARITHMETIC:
                return False
            name = node.output[0]
    return False


def _put_around(
    model: onnx.ModelProto,
    source: str,
    output: str,
    inward: list[Step],
    outward: list[Step],
) -> None:
    """Operators between the input and the network, and between the network and the output."""

    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    inner = {
        name: _free(f"{name}_inner", taken) for name, steps in ((source, inward), (output, outward)) if steps
    }
    for node in graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    before = source
    for index, step in enumerate(inward):
        after = inner[source] if index == len(inward) - 1 else _free(f"{source}_{step.operator}", taken)
        graph.node.insert(index, step.node(before, after))
        before = after
    before = inner.get(output, output)
    for index, step in enumerate(outward):
        after = output if index == len(outward) - 1 else _free(f"{output}_{step.operator}", taken)
        graph.node.append(step.node(before, after))
        before = after


def with_plain_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Input and output by names that every runtime, shell and configuration file takes as they are; names
    that do so already are kept."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for value, usual in ((graph.input[0], "input"), (graph.output[0], "logits")):
        old = value.name
        if not _PLAIN.fullmatch(old):
            value.name = _free(usual, taken)
            for node in graph.node:
                node.input[:] = [value.name if name == old else name for name in node.input]
                node.output[:] = [value.name if name == old else name for name in node.output]
    return model


def as_two_classes(
    model: onnx.ModelProto, reference: Reference, outputs: Outputs
) -> tuple[onnx.ModelProto, Reference, Outputs]:
    """A network of one output as one of two classes, the first of which is "not the second".

    A probability p becomes (1 - p, p), a logit z becomes (0, z), whose softmax is (1 - p, p) again. Of one
    output "probabilities" and "sigmoid" are the same.
    """
    import onnx

    graph, output = model.graph, model.graph.output[0]
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    inner, other, constant = (_free(name, taken) for name in ("second", "first", "constant"))
    for node in graph.node:
        node.input[:] = [inner if name == output.name else name for name in node.input]
        node.output[:] = [inner if name == output.name else name for name in node.output]
    probability = outputs != "logits"
    factor = np.array(1 if probability else 0, np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(factor, constant))
    operator, operands = ("Sub", [constant, inner]) if probability else ("Mul", [inner, constant])
    graph.node.append(onnx.helper.make_node(operator, operands, [other]))
    graph.node.append(onnx.helper.make_node("Concat", [other, inner], [output.name], axis=1))
    output.type.tensor_type.shape.dim[1].dim_value = 2

    def both(answers: np.ndarray) -> np.ndarray:
        first = 1 - answers if probability else np.zeros_like(answers)
        return np.concatenate([first, answers], axis=1)

    return model, reference.mapped(both), "probabilities" if probability else "logits"


def _difference(
    received: np.ndarray, expected: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """``measure`` of the rows that the file itself answers with numbers: noise may overflow there."""
    if received.shape != expected.shape:
        return float("inf")
    rows = np.isfinite(expected).all(axis=1)
    if not np.isfinite(received[rows]).all():
        return float("inf")
    if not rows.any():
        return 0.0
    return measure(expected[rows].astype(np.float64), received[rows].astype(np.float64))


def _of_the_largest(expected: np.ndarray, received: np.ndarray) -> float:
    scale = float(np.abs(expected).max()) + 1e-6
    return float(np.abs(received - expected).max()) / scale


def _conversions(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The graph at newer opsets, as far as the converter can; whether it may be used is asked later."""
    import onnx

    scales = _old_resizes(model)
    for version in NEW_OPSETS:
        try:
            converted = onnx.version_converter.convert_version(model, version)
        except (RuntimeError, ValueError, IndexError):  # whatever its C++ code throws
            continue
        if scales:
            yield _with_old_coordinates(converted, scales)
        yield _without_weights_as_inputs(converted)


def _old_resizes(model: onnx.ModelProto) -> list[bool]:
    """Every Resize up to opset 10 and Upsample in the order of the graph: whether it makes images smaller."""
    import onnx

    if opset_of(model) > 10:
        return []
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and attribute(node, "value") is not None:
            weights[node.output[0]] = attribute(node, "value")
    smaller = []
    for node in model.graph.node:
        if node.op_type in ("Resize", "Upsample"):
            scales = attribute(node, "scales")
            if scales is None and len(node.input) > 1 and node.input[1] in weights:
                scales = onnx.numpy_helper.to_array(weights[node.input[1]])
            smaller.append(scales is not None and bool(np.min(scales) < 1))
    return smaller


def _with_old_coordinates(model: onnx.ModelProto, smaller: list[bool]) -> onnx.ModelProto:
    """Resize as ONNX Runtime runs it at opset 10: pixel i of the result lies at i / scale of the image;
    the nearest one is the one before, or the one after when the image gets smaller. The converter names
    every tensor anew but keeps the order of the nodes."""
    import onnx

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    resizes = [node for node in copy.graph.node if node.op_type == "Resize"]
    for node, shrinks in zip(resizes, smaller, strict=False):
        mode = attribute(node, "mode", b"nearest")
        settings = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
        if mode == b"nearest":
            settings["nearest_mode"] = "ceil" if shrinks else "floor"
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in settings.items())
    return _without_weights_as_inputs(copy)


def _without_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights are constants, as they are in every file since 2019: what may be overridden is not folded."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    if any(value.name in weights for value in model.graph.input):
        kept = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, MIN_IR)
    return model


def _last_operator(model: onnx.ModelProto) -> str:
    """What made the answers, renaming, reshaping, bounds and choices left out; of heads that stand beside one
    another what made each, if that is the same."""
    makers = producers(model.graph)

    def maker(name: str, depth: int = 0) -> str:
        node = makers.get(name)
        while node is not None and node.op_type in _PASSING and node.input[0] in makers:
            node = makers[node.input[0]]
        if node is None:
            return ""
        if node.op_type == "Concat" and depth < 3:
            found = {maker(part, depth + 1) for part in node.input}
            if len(found) == 1 and found <= _SIGMOIDS:
                return found.pop()
        return str(node.op_type)

    return maker(model.graph.output[0].name)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
