"""Which form of a network is fastest at int8: a few are measured on the machine that compiles.

All compute the same network (:mod:`smash_export.compiling.precision.integer_form`); they differ in what
stands in integers and how. What is fast differs by runtime, processor and network: a first convolution of
three channels takes 22 microseconds at int8 in ONNX Runtime and 7 at fp32, in OpenVINO 8 and 11 (ResNet-8,
VNNI). With a fourth channel of zeros it takes 12 at int8 in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smash_base import files
from smash_base.errors import SmashError
from smash_export.compiling.precision.int8 import Scheme, quantise_untrained
from smash_export.compiling.precision.integer_form import fold_pools
from smash_export.compiling.precision.names import PLACEMENT_NAMES
from smash_export.compiling.precision.whole_vectors import fill_vectors
from smash_export.export.onnx_graphs import prepared, readers
from smash_export.measure.timing import interleaved
from smash_targets.base import ModelSignature, Session, SessionOptions, Target, get_target
from smash_targets.common import open_graph

if TYPE_CHECKING:
    import onnx

SECONDS, ROUNDS = 0.2, 10  # for each form; slow networks take longer, as a few runs of each round are timed
TIE = 1.02  # a form must be this much faster than an earlier one to be worth it


@dataclass(frozen=True)
class Placement:
    """One form.

    Attributes:
        name: as in ``--option placement=NAME``.
        folds: pooling becomes part of the convolution behind it.
        clips: for the integer kernels of ONNX Runtime: see :class:`Scheme`, and channels in whole vectors,
            those of the images too (:mod:`smash_export.compiling.precision.whole_vectors`).
        first_fp32: the first convolution and its activation stay in fp32.
    """

    name: str
    folds: bool = False
    clips: bool = False
    first_fp32: bool = False

    def graph(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The fp32 graph of this form."""
        model = fold_pools(model) if self.folds else model
        return fill_vectors(model, images=not self.first_fp32) if self.clips else model

    def scheme(self, scheme: Scheme) -> Scheme:
        """How this form is rounded."""
        return replace(scheme, clips=self.clips)

    def fp32_nodes(self, model: onnx.ModelProto) -> list[str]:
        """Nodes of a :func:`prepared` graph that it leaves in fp32."""
        return _first_layer(model) if self.first_fp32 else []


# From the simplest on. Integer ReLUs are for ONNX Runtime; OpenVINO fuses a ReLU with the rounding behind it.
PLACEMENTS = tuple(
    Placement(
        name,
        folds=name != "plain",
        clips=name.startswith("clipped"),
        first_fp32=name.endswith("first_fp32"),
    )
    for name in PLACEMENT_NAMES
)


def usual(target: str) -> Placement:
    """What is fast as a rule, for graphs that are timed once and never shipped."""
    return named("clipped" if target == "onnxruntime" else "folded")


def named(name: str) -> Placement:
    """The placement of that name."""
    return PLACEMENTS[PLACEMENT_NAMES.index(name)]


def candidates(model: onnx.ModelProto, target: str) -> list[Placement]:
    """Forms in which this graph differs, from the simplest on."""
    folds = len(fold_pools(model).graph.node) < len(model.graph.node)
    clips = target == "onnxruntime" and _clips_change(model)
    whole = get_target(target).int8_placement == "whole"  # images are bytes, and the first layer reads them
    different: dict[tuple[bool, bool, bool], Placement] = {}
    for placement in PLACEMENTS:
        if (placement.clips and not clips) or (placement.first_fp32 and whole):
            continue
        form = replace(placement, folds=placement.folds and folds)
        different.setdefault((form.folds, form.clips, form.first_fp32), form)
    return list(different.values())


def _clips_change(model: onnx.ModelProto) -> bool:
    """Whether ReLUs or hard swishes would be computed on integers, or channels be filled up."""
    reading = readers(model.graph)
    if any(node.op_type == "Relu" and len(reading[node.input[0]]) > 1 for node in model.graph.node):
        return True
    if any(node.op_type == "HardSwish" for node in model.graph.node):
        return True
    return _shapes(fill_vectors(model, images=True)) != _shapes(model)


def _shapes(model: onnx.ModelProto) -> list[list[int]]:
    """Shapes of the constants."""
    return [list(tensor.dims) for tensor in model.graph.initializer]


def measured(
    model: onnx.ModelProto, scheme: Scheme, target: Target, signature: ModelSignature
) -> tuple[list[Placement], dict[str, float]]:
    """Time each form through the target's own session, one thread, interleaved.

    Returns:
        the forms from the one to ship on, and the milliseconds of each by name, the fastest of all rounds.
    """
    model = prepared(model)
    forms = candidates(model, target.name)
    shape = (signature.batch[0], *signature.input_shape)
    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    with files.temporary_folder() as folder, ExitStack() as stack:
        runs: dict[str, tuple[Session, np.ndarray]] = {}
        for placement in forms:
            try:
                session = _opened(model, placement, scheme, target, signature, folder / placement.name)
            except SmashError:  # a form that the runtime refuses is no candidate
                continue
            runs[placement.name] = stack.enter_context(session), batch
        latencies = interleaved(runs, seconds=SECONDS, rounds=ROUNDS, warm_up=0)
    times = {name: latency.min_ms for name, latency in latencies.items()}
    opened = [placement for placement in forms if placement.name in times]
    return in_order(opened, times), {name: round(value, 4) for name, value in times.items()}


def in_order(forms: Sequence[Placement], times: dict[str, float]) -> list[Placement]:
    """The form to ship first: the simplest that is as fast as any; then the others by their times."""
    if not forms:
        return [PLACEMENTS[0]]
    bound = TIE * min(times.values())
    best = next(placement for placement in forms if times[placement.name] <= bound)
    others = sorted(forms, key=lambda placement: times[placement.name])
    return [best, *(placement for placement in others if placement != best)]


def _opened(
    model: onnx.ModelProto,
    placement: Placement,
    scheme: Scheme,
    target: Target,
    signature: ModelSignature,
    folder: Path,
) -> Session:
    graph = placement.graph(model)
    rounded = quantise_untrained(graph, placement.scheme(scheme), placement.fp32_nodes(graph))
    options = SessionOptions(threads=1, batch=signature.batch[0])
    return open_graph(target, rounded.SerializeToString(), signature, "int8", options, folder)


def _first_layer(model: onnx.ModelProto) -> list[str]:
    reading = readers(model.graph)
    first = [node for node in reading[model.graph.input[0].name] if node.op_type == "Conv"]
    if len(first) != 1:
        return []
    after = reading.get(first[0].output[0], [])
    activation = after[0].name if len(after) == 1 and after[0].op_type in ("Relu", "Clip") else None
    return [first[0].name, *([activation] if activation else [])]
