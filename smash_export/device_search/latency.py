"""Latency of architectures on a device: measured on the compiled graph, or predicted from a table.

A candidate is measured without training and without an exporter: its graph is written directly
(:mod:`smash_export.export.onnx_writer`) with random weights of the right size, compiled by the target and
timed through the target's own session, with the one measurement of ``bench``.

A *table* makes that unnecessary for most candidates, and possible for a device that is not here. A *kit*
holds graphs of random networks of the space; the device runs them (it needs numpy, its runtime and this
program, no PyTorch and no onnx) and writes the times into a table; the table is copied back and fitted: the
time of a network as a sum of non-negative costs of its nodes by kind (per node, per multiply-accumulate, per
number written, per row), with channels in whole vectors of as many as explain the times best. Its error, on
networks that the fit has not seen, stands beside every prediction. In the end networks are measured, not
predicted.

    kit     zip: kit.json, one ONNX file per network
    table   JSON, schema 2: kit.json's facts, machine, runtime, and per network its features, for each number
            of channels in a vector, and times
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from smash_base import files
from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_export.measure.timing import SPREAD_LIMIT, Latency, interleaved, measure_latency, ratio
from smash_search.rank.latency_model import VECTORS, fit_costs, whole
from smash_search.rank.measurement import LOWEST
from smash_search.space.architecture import Architecture, InputSpec
from smash_targets.base import ModelSignature, Precision, Session, SessionOptions, get_target
from smash_targets.common import open_graph

if TYPE_CHECKING:
    from smash_export.remote.device import Device

SCHEMA = 2
FITS = 3  # each without the outliers of the one before
FOLDS = 5
MAX_KIT_BYTES = 2**31
BUILD_SECONDS = 0.3  # of timing each network of a kit
PASSES = 3  # over the networks of a kit, each with a share of the time: a busy moment spoils one only
CONFIRMATIONS, CONFIRMED_SECONDS = 3, 0.5  # measurements of a pick, and seconds of each
TURNS, IN_TURNS_SECONDS = 10, 0.25  # of networks that are compared, and seconds of each
FLAGGED = "latency_flagged"  # among the same: how many of them met a busy machine
REPEATS = 3  # measurements of a candidate, as long as its times are spread
DOWNHILL, TRIES = 30, 300  # mutations measured before a limit is refused, and tried where limits allow few


@dataclass(frozen=True)
class Setting:
    """What is measured: which runtime, and how it runs.

    Attributes:
        target, precision: as on the command line.
        batch: images per inference.
        threads: Number of threads of one inference.
        device, provider: as in :class:`smash_targets.base.SessionOptions`.
    """

    target: str = "onnxruntime"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    device: str | None = None
    provider: str | None = None

    def options(self) -> SessionOptions:
        """For :meth:`Target.open`."""
        return SessionOptions(self.threads, self.batch, self.device, self.provider)

    def check(self) -> None:
        """Raise UsageError or MissingRuntimeError unless the target can be measured here."""
        self.check_precision()
        get_target(self.target).require()

    def check_precision(self) -> None:
        """Raise UsageError unless networks can be measured at this precision, wherever the runtime is."""
        target = get_target(self.target)
        if self.precision not in target.precisions:
            raise UsageError(
                f"target {self.target} has no precision {self.precision}",
                expected=" or ".join(target.precisions),
                received=self.precision,
            )
        if self.precision == "int8" and target.precision_source != "onnx":
            raise UsageError(
                f"target {self.target} makes int8 files from calibration images, which no candidate has",
                expected="another precision while networks are searched; compile makes the int8 file then",
                received=self.precision,
            )


# --------------------------------------------------------------------------------------------- graphs


def random_weights(
    architecture: Architecture, input_spec: InputSpec, classes: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Frozen weights that keep activations finite; what a network computes does not change its time."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for part in architecture.convolutions(input_spec.channels, classes):
        shape = part.weight_shape
        deviation = math.sqrt(2 / max(1, math.prod(shape[1:])))
        weights[f"{part.name}.weight"] = (deviation * random.standard_normal(shape)).astype(np.float32)
        weights[f"{part.name}.bias"] = np.zeros(shape[0], np.float32)
    for index, block in enumerate(architecture.blocks):
        end = "head" if index + 1 == len(architecture.blocks) else f"blocks.{index}.transition"
        weights[f"{end}.scale"] = np.ones(block.channels_out, np.float32)
        weights[f"{end}.shift"] = np.zeros(block.channels_out, np.float32)
    return weights


def candidate_graph(
    architecture: Architecture, input_spec: InputSpec, classes: int, setting: Setting | None = None
) -> bytes:
    """The ONNX file of an architecture with random weights, at the setting's precision."""
    from smash_export.export.onnx_writer import onnx_from_architecture

    weights = random_weights(architecture, input_spec, classes)
    model = onnx_from_architecture(architecture, weights, input_spec)
    if setting is None or get_target(setting.target).precision_source != "onnx":
        return model
    if setting.precision not in ("fp16", "int8"):
        return model
    return _at_precision(model, input_spec, setting)


def _at_precision(model: bytes, input_spec: InputSpec, setting: Setting) -> bytes:
    import onnx

    graph = onnx.load_model_from_string(model)
    if setting.precision == "fp16":
        from smash_export.compiling.precision.fp16 import cast_to_fp16

        rounded, _ = cast_to_fp16(graph, _noise(input_spec, 64))
    else:
        from smash_export.compiling.precision.int8 import quantise_untrained, scheme_for
        from smash_export.compiling.precision.placements import usual
        from smash_export.measure.machine import cpu_features

        form = usual(setting.target)
        scheme = form.scheme(scheme_for(setting.target, cpu_features()))
        rounded = quantise_untrained(form.graph(graph), scheme)
    content: bytes = rounded.SerializeToString(deterministic=True)
    return content


def _noise(input_spec: InputSpec, batch: int) -> np.ndarray:
    shape = (batch, input_spec.channels, *input_spec.size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _signature(input_spec: InputSpec, classes: int, batch: int) -> ModelSignature:
    return ModelSignature(
        "input", "logits", (input_spec.channels, *input_spec.size), classes, (1, batch, batch)
    )


def measure_graph(
    model: bytes, input_spec: InputSpec, classes: int, setting: Setting, seconds: float = 0.3
) -> Latency:
    """Compile an ONNX file for the setting's target and time it through the target's session.

    Raises:
        MissingRuntimeError: the runtime is not here.
    """
    with _session_of(model, input_spec, classes, setting) as session:
        return measure_latency(
            session, _noise(input_spec, setting.batch), seconds=seconds, warm_up=seconds / 4
        )


@contextmanager
def _session_of(model: bytes, input_spec: InputSpec, classes: int, setting: Setting) -> Iterator[Session]:
    """The target's session of an ONNX file that is compiled for it."""
    target, precision = get_target(setting.target), cast(Precision, setting.precision)
    signature = _signature(input_spec, classes, setting.batch)
    with tempfile.TemporaryDirectory(prefix="smash-export-") as name:
        folder = Path(name) / "graph"
        with open_graph(target, model, signature, precision, setting.options(), folder) as session:
            yield session


def measure_architecture(
    architecture: Architecture,
    input_spec: InputSpec,
    classes: int,
    setting: Setting,
    seconds: float = 0.3,
) -> Latency:
    """Latency of an architecture on this machine."""
    model = candidate_graph(architecture, input_spec, classes, setting)
    return measure_graph(model, input_spec, classes, setting, seconds)


# ------------------------------------------------------------------------------------------- features


def features_of(
    architecture: Architecture,
    input_spec: InputSpec,
    classes: int,
    setting: Setting,
    *,
    vectors: Sequence[int] = VECTORS,
    grouped: bool = True,
) -> list[dict[str, float]]:
    """:func:`features` of a network in the form that the setting's target computes, for each of ``vectors``.

    At int8 pools are folded and channels filled up before a runtime sees them. Of the graph that they
    were made from, a fit explained the times of ONNX Runtime with a tau of 0.85 instead of 0.95.
    """
    model = candidate_graph(architecture, input_spec, classes)
    if setting.precision != "int8":
        return features(model, vectors, grouped=grouped)
    import onnx

    from smash_export.compiling.precision.placements import usual

    form = usual(setting.target)
    graph = form.graph(onnx.load_model_from_string(model))
    return features(graph.SerializeToString(), vectors, by_vectors=form.clips, grouped=grouped)


def features(
    model: bytes, vectors: Sequence[int] = VECTORS, *, by_vectors: bool = False, grouped: bool = True
) -> list[dict[str, float]]:
    """What the time of a graph is explained by: per kind of node its count, work, numbers written and rows.

    Counted at batch 1. Convolutions are divided into pointwise, dense, grouped and depthwise ones; other
    nodes by whether they write channels that fill no vector, which are copied.

    Args:
        model: an fp32 ONNX file.
        vectors: Numbers of channels that a device may compute at once; each gives features of its own.
        by_vectors: ONNX Runtime's int8 convolutions of whole vectors are kinds of their own.
        grouped: Grouped convolutions are a kind of their own, and not one dense convolution for each group.
    """
    import onnx

    from smash_export.compiling.precision.whole_vectors import in_whole_vectors

    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model)).graph
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.output]
    }
    weights = {value.name: list(value.dims) for value in graph.initializer}
    found = [{"network": 1.0} for _ in vectors]
    for node in graph.node:
        written = [shapes[name] for name in node.output if name in shapes]
        if node.op_type == "Conv":
            shape = weights[node.input[1]]
            groups = next(entry.i for entry in node.attribute if entry.name == "group")
            kind = _kind(shape, groups, grouped)
            if by_vectors and not in_whole_vectors(shape[0], shape[1], groups):
                kind += " of parts"
        for features_, vector in zip(found, vectors, strict=True):
            if node.op_type == "Conv":
                _add_convolution(features_, kind, shape, groups, written[0], vector)
            else:
                _add_node(features_, node.op_type, written, vector)
    return found


def _add(found: dict[str, float], name: str, value: float) -> None:
    found[name] = found.get(name, 0.0) + value


def _add_node(found: dict[str, float], kind: str, written: Sequence[Sequence[int]], vector: int) -> None:
    """Any node but a convolution, which writes tensors of these shapes [N, C, ...]."""
    if any(shape[1] % vector for shape in written if len(shape) > 2):
        kind += " of parts"
    _add(found, f"{kind}.nodes", 1)
    _add(found, f"{kind}.written", sum(_numbers(shape, vector) for shape in written))


def _add_convolution(
    found: dict[str, float],
    kind: str,
    shape: Sequence[int],
    groups: int,
    written: Sequence[int],
    vector: int,
) -> None:
    """A convolution with a filter of this shape [outputs, inputs of a group, ...] that writes [N, C, ...]."""
    area, taps = math.prod(written[2:]), math.prod(shape[2:])
    outputs, pairs = whole(shape[0], vector), whole(shape[0], vector) / vector
    if kind.startswith(("grouped", "depthwise")):
        macs = (outputs if kind.startswith("depthwise") else shape[0] * shape[1]) * taps * area
        _add(found, f"{kind}.groups", groups)
    else:
        macs = groups * whole(shape[0] // groups, vector) * whole(shape[1], vector) * taps * area
        pairs *= whole(shape[1], vector) / vector
    _add(found, f"{kind}.nodes", 1)
    _add(found, f"{kind}.macs", macs)
    _add(found, f"{kind}.written", _numbers(written, vector))
    _add(found, f"{kind}.read", whole(shape[1] * groups, vector) * taps * area)
    if area > 1:  # an inner loop runs along a row, for each row of the filter and pair of vectors
        _add(found, f"{kind}.rows", pairs * math.prod(written[2:-1]) * (taps // shape[-1]))


def _numbers(shape: Sequence[int], vector: int) -> int:
    """Numbers of a tensor [N, C, ...] at batch 1, its channels in whole vectors."""
    return math.prod(shape[1:]) if len(shape) < 3 else whole(shape[1], vector) * math.prod(shape[2:])


def _kind(shape: Sequence[int], groups: int, grouped: bool) -> str:
    """Kind of a convolution with a filter of this shape [outputs, inputs of a group, ...]."""
    if groups > 1 and shape[1] == 1 and shape[0] == groups:
        return "depthwise"
    if groups > 1:
        return "grouped" if grouped else "dense"
    return "pointwise" if math.prod(shape[2:]) == 1 else "dense"


# ------------------------------------------------------------------------------------- kits and tables


def write_kit(
    path: Path,
    architectures: Sequence[Architecture],
    input_spec: InputSpec,
    classes: int,
    setting: Setting,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write graphs and features of networks into one zip file, for a device that has no PyTorch.

    The same networks give the same bytes: a device's task is known by them.
    """
    stream = io.BytesIO()
    networks = []
    with zipfile.ZipFile(stream, "w") as archive:

        def add(name: str, content: str | bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # without the time

        for index, architecture in enumerate(architectures):
            add(f"{index}.onnx", candidate_graph(architecture, input_spec, classes, setting))
            explained = zip(VECTORS, features_of(architecture, input_spec, classes, setting), strict=True)
            by_vector = {str(vector): found for vector, found in explained}
            networks.append({"key": architecture.key, "features": by_vector})
            advance()
        facts = {
            "schema": SCHEMA,
            "input": input_spec.to_json(),
            "classes": classes,
            "setting": asdict(setting),
            "networks": networks,
        }
        add("kit.json", json.dumps(facts))
    files.write_bytes(path, stream.getvalue())


def build_table(
    kit: Path,
    out: Path,
    *,
    seconds: float = BUILD_SECONDS,
    advance: Callable[[], None] = lambda: None,
) -> LatencyTable:
    """Measure every network of a kit on this machine; resumes a table that was begun in the same way here.

    The networks are gone through PASSES times, and each one's fastest median counts: what else the machine
    does makes a network slower, never faster, and does not last over all passes.

    Args:
        kit: File that :func:`write_kit` wrote.
        out: the table.
        seconds: Seconds of timing for each network, over all passes.
        advance: called after each of the PASSES measurements of each network.

    Raises:
        InvalidInputError: not a kit.
        MissingRuntimeError: the kit's runtime is not here.
    """
    facts = read_kit(kit)
    setting = Setting(**facts["setting"])
    setting.check()
    input_spec, classes = InputSpec.from_json(facts["input"]), facts["classes"]
    partial, job = out.with_name(out.name + ".partial.jsonl"), _job(facts, seconds)
    done = {
        (record["pass"], record["index"]): record["latency"]
        for record in files.read_jsonl(partial)
        if record.get("job") == job  # older files have none
    }
    share, count = seconds / PASSES, len(facts["networks"])
    with zipfile.ZipFile(kit) as archive:
        for turn, index in itertools.product(range(PASSES), range(count)):
            if (turn, index) not in done:
                graph = archive.read(f"{index}.onnx")
                latency = measure_graph(graph, input_spec, classes, setting, share).to_json()
                done[turn, index] = latency
                files.append_jsonl(partial, {"job": job, "pass": turn, "index": index, "latency": latency})
            advance()
    table = _table_of(facts, done)
    files.write_json(out, table.document)
    partial.unlink()
    return table


def _job(facts: Mapping[str, Any], seconds: float) -> str:
    """Digest of what times depend on: the kit, their length, the runtime and the machine."""
    from smash_export.measure.machine import describe_machine

    machine = {name: value for name, value in describe_machine().items() if name != "load"}
    return _digest({"kit": _id(facts), "seconds": seconds, "runtime": _runtime(facts), "machine": machine})


def _runtime(facts: Mapping[str, Any]) -> str:
    """Version of the runtime that a kit is for."""
    return get_target(facts["setting"]["target"]).availability().version


def _table_of(facts: Mapping[str, Any], done: Mapping[tuple[int, int], JsonObject]) -> LatencyTable:
    """The table of a kit's networks, from what was measured in each pass of each one."""
    from smash_export.measure.machine import describe_machine

    return LatencyTable(
        {
            **{name: facts[name] for name in ("schema", "input", "classes", "setting")},
            "runtime": _runtime(facts),
            "machine": describe_machine(),
            "networks": [
                {**network, "latency": min((done[turn, index] for turn in range(PASSES)), key=_median)}
                for index, network in enumerate(facts["networks"])
            ],
        }
    )


def _median(latency: Mapping[str, Any]) -> float:
    return float(latency["p50_ms"])


def _id(facts: Mapping[str, Any]) -> str:
    """Digest of all that a kit says: the same networks at another precision or batch are another kit."""
    return _digest({name: facts[name] for name in ("setting", "input", "classes", "networks")})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_kit(path: Path) -> dict[str, Any]:
    """What a kit holds; raises InvalidInputError unless it is one."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_KIT_BYTES:
                raise InvalidInputError(f"{path} is too large", expected=f"at most {MAX_KIT_BYTES} bytes")
            text = archive.read("kit.json").decode()
            facts: dict[str, Any] = files.parse_json(text, what=f"{path}: kit.json")
    except (zipfile.BadZipFile, KeyError, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} is not a latency kit",
            expected="a file that `smash-export latency kit` wrote",
            received=error,
        ) from None
    _check_facts(path, facts)
    return facts


def _check_facts(path: Path, facts: Any) -> None:
    wanted = {"schema", "input", "classes", "setting", "networks"}
    if not isinstance(facts, dict) or not wanted <= set(facts) or facts["schema"] != SCHEMA:
        raise InvalidInputError(
            f"{path} is not a kit or table of this version",
            expected=f"schema {SCHEMA} with {', '.join(sorted(wanted))}",
            received=facts.get("schema") if isinstance(facts, dict) else facts,
            hint="Build it again: smash-export latency kit, then latency build on the device.",
        )
    try:
        Setting(**facts["setting"])
        for network in facts["networks"]:
            rows = [network["features"][str(vector)].values() for vector in VECTORS]
            if not all(isinstance(value, int | float) for value in itertools.chain.from_iterable(rows)):
                raise TypeError("features that are not numbers")
    except (TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{path} has malformed entries", received=error) from None


class LatencyTable:
    """Measured times of networks on one device, and the prediction fitted to them.

    Args:
        document: as in the file; see the head of the module.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.setting = Setting(**document["setting"])
        self.input_spec = InputSpec.from_json(document["input"])
        self.classes: int = document["classes"]

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Read a table; raises InvalidInputError."""
        document = files.read_json(path, what="latency table")
        _check_facts(path, document)
        if len(document["networks"]) < FOLDS:
            raise InvalidInputError(
                f"{path} holds too few networks",
                expected=f"at least {FOLDS}",
                received=len(document["networks"]),
            )
        for network in document["networks"]:
            latency = network.get("latency")
            median = latency.get("p50_ms") if isinstance(latency, dict) else None
            if not isinstance(median, int | float) or not 0 < median < math.inf:
                raise InvalidInputError(
                    f"{path} holds a network without a time",
                    expected="a file that `smash-export latency build` wrote",
                    received=latency,
                    hint="A kit is measured on the device first: smash-export latency build.",
                )
        return cls(document)

    @cached_property
    def vector(self) -> int:
        """Number of channels that the device computes at once: what explains its times best."""
        return min(self._left_out, key=lambda vector: float(np.median(self._relative(vector))))

    @cached_property
    def _left_out(self) -> dict[int, np.ndarray]:
        """Milliseconds of each network by fits that have not seen it, float [networks], by vector."""
        order = np.random.default_rng(0).permutation(len(self.times))
        found = {}
        for vector in VECTORS:
            rows, predicted = self._rows(vector), np.empty_like(self.times)
            for fold in range(FOLDS):
                test = order[fold::FOLDS]
                train = np.setdiff1d(order, test)
                predicted[test] = rows[test] @ fit_costs(rows[train], self.times[train], passes=FITS)
            found[vector] = predicted
        return found

    def _relative(self, vector: int) -> np.ndarray:
        errors: np.ndarray = np.abs(self._left_out[vector] / self.times - 1)
        return errors

    def _features_of_all(self, vector: int) -> list[dict[str, float]]:
        return [network["features"][str(vector)] for network in self.document["networks"]]

    def _names_of(self, vector: int) -> list[str]:
        return sorted(set().union(*self._features_of_all(vector)))

    @cached_property
    def _names(self) -> list[str]:
        return self._names_of(self.vector)

    def _rows(self, vector: int) -> np.ndarray:
        """Features of the networks of the table [networks, features], by name."""
        names = self._names_of(vector)
        return np.asarray([[row.get(name, 0.0) for name in names] for row in self._features_of_all(vector)])

    @cached_property
    def times(self) -> np.ndarray:
        """Measured median of each network in milliseconds, float [networks]."""
        return np.asarray([network["latency"]["p50_ms"] for network in self.document["networks"]])

    @cached_property
    def costs(self) -> np.ndarray:
        """Milliseconds per unit of each feature, float [features]."""
        return fit_costs(self._rows(self.vector), self.times, passes=FITS)

    def predict_features(self, found: Mapping[str, float]) -> float:
        """Milliseconds of a graph with these features, for vectors of :attr:`vector` channels."""
        return float(np.asarray([found.get(name, 0.0) for name in self._names]) @ self.costs)

    def predict(self, architecture: Architecture) -> float:
        """Milliseconds of an architecture on the table's device."""
        return self.predict_features(self._features(architecture))

    def unpriced(self, architecture: Architecture) -> set[str]:
        """Kinds of nodes of an architecture that no network of the table has: they cost nothing."""
        strange = set(self._features(architecture)).difference(self._names)
        return {name.partition(".")[0] for name in strange}

    def _features(self, architecture: Architecture) -> dict[str, float]:
        """Features of an architecture; grouped convolutions as dense ones where the table has none."""
        grouped = any(name.startswith("grouped") for name in self._names)
        (found,) = features_of(
            architecture, self.input_spec, self.classes, self.setting, vectors=[self.vector], grouped=grouped
        )
        return found

    @cached_property
    def error(self) -> dict[str, float]:
        """Error on networks that a fit has not seen (five folds): relative, and rank correlation."""
        from scipy.stats import kendalltau

        predicted, relative = self._left_out[self.vector], self._relative(self.vector)
        return {
            "networks": len(self.times),
            "median": float(np.median(relative)),
            "p90": float(np.percentile(relative, 90)),
            "kendall_tau": float(kendalltau(predicted, self.times).statistic),
        }


# ------------------------------------------------------------------------------------ for the search


class DeviceLatency:
    """Measures candidates of a search, or predicts them from a table (a search's ``Measurement``).

    Args:
        input_spec, classes: Input and number of classes of the networks.
        setting: what to measure on.
        limit_ms: largest latency of the pick, or None.
        table: predicts instead of measuring, for a device that is not here.
        elsewhere: the table's device, where it can be asked: what may be picked is measured there. Without a
            table, which it is yet to make, nothing is measured: :meth:`describe` alone has an answer.
        seconds: Seconds of each measurement.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        classes: int,
        setting: Setting,
        *,
        limit_ms: float | None = None,
        table: LatencyTable | None = None,
        elsewhere: Device | None = None,
        seconds: float = 0.2,
    ) -> None:
        if table is None:
            setting.check() if elsewhere is None else setting.check_precision()
        elif (table.input_spec, table.classes) != (input_spec, classes):
            raise InvalidInputError(
                "the latency table is for other networks",
                expected=f"{input_spec.to_json()}, {classes} classes",
                received=f"{table.input_spec.to_json()}, {table.classes} classes",
                hint="Build one with: smash-export latency kit",
            )
        self._input, self._classes, self._setting = input_spec, classes, setting
        self.limit_ms, self._table, self._seconds = limit_ms, table, seconds
        self._elsewhere = elsewhere
        self._reference: tuple[list[str], list[Session], Callable[[], Any]] | None = None  # keys; closes them

    def describe(self) -> JsonObject:
        """What was measured and how, for config.json and the report."""
        table, device = self._table, self._elsewhere
        described: JsonObject = {
            "setting": asdict(self._setting if table is None else table.setting),
            "predicted": table is not None or device is not None,
        }
        if table is not None:
            described["table"] = _digest(table.document)  # a search that goes on is to go on with the same
        if device is not None:
            described["device"] = device.name
        return {**described, "limit_ms": self.limit_ms}

    def measure(self, architecture: Architecture) -> dict[str, float]:
        """``{"latency_ms": ...}``: the median."""
        if self._table is not None:
            return {"latency_ms": self._table.predict(architecture)}
        return {"latency_ms": self._undisturbed(architecture, self._seconds).p50_ms}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        """The slowest of several longer measurements, what a limit can be held to, and the fastest.

        A limit is not to be missed by what else the machine did just then: each is repeated as in
        :meth:`measure`.
        """
        if self._table is not None and self._elsewhere is not None:
            return self._confirm_elsewhere(architecture, self._table, self._elsewhere)
        if self._table is not None:
            return self.measure(architecture)
        measured = [self._undisturbed(architecture, CONFIRMED_SECONDS) for _ in range(CONFIRMATIONS)]
        medians = [latency.p50_ms for latency in measured]
        # Not by the load of the minute before, which is the training of the search itself.
        flagged = float(sum(latency.spread > SPREAD_LIMIT for latency in measured))
        return {"latency_ms": max(medians), LOWEST: min(medians), FLAGGED: flagged}

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        """See :class:`~smash_search.rank.measurement.Measurement`; none where a table predicts."""
        if self._table is not None:
            return []
        seconds = self._seconds / (1 + len(others)) if briefly else IN_TURNS_SECONDS
        noise = _noise(self._input, self._setting.batch)
        with ExitStack() as opened:
            sessions = [opened.enter_context(self._opened(architecture))]
            sessions += (
                self._kept(others) if briefly else map(opened.enter_context, map(self._opened, others))
            )
            runs = {str(number): (session, noise) for number, session in enumerate(sessions)}
            times = interleaved(runs, seconds=seconds, rounds=TURNS, warm_up=seconds / 4)
        return [ratio(times["0"], times[str(number)]) for number in range(1, len(runs))]

    def _opened(self, architecture: Architecture) -> AbstractContextManager[Session]:
        graph = candidate_graph(architecture, self._input, self._classes, self._setting)
        return _session_of(graph, self._input, self._classes, self._setting)

    def _kept(self, networks: Sequence[Architecture]) -> list[Session]:
        """Sessions that stay open until others are asked for: one network may serve hundreds."""
        keys = [network.key for network in networks]
        if self._reference is None or self._reference[0] != keys:
            if self._reference is not None:
                self._reference[2]()
                self._reference = None
            with ExitStack() as opened:
                sessions = [opened.enter_context(self._opened(network)) for network in networks]
                self._reference = keys, sessions, weakref.finalize(self, opened.pop_all().close)
        return self._reference[1]

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which opens sessions of its own."""
        return {**vars(self), "_reference": None}

    def _undisturbed(self, architecture: Architecture, seconds: float) -> Latency:
        """The fastest of a few measurements as long as their times are spread: others only make it slower."""
        measured: list[Latency] = []
        while not measured or (measured[-1].spread > SPREAD_LIMIT and len(measured) < REPEATS):
            measured.append(
                measure_architecture(architecture, self._input, self._classes, self._setting, seconds)
            )
        return min(measured, key=lambda latency: latency.p50_ms)

    def _confirm_elsewhere(
        self, architecture: Architecture, table: LatencyTable, device: Device
    ) -> dict[str, float]:
        """Repeated measurements on the device itself: the same network several times in one kit."""
        with tempfile.TemporaryDirectory(prefix="smash-export-") as name:
            kit, out = Path(name) / f"pick-{architecture.key}.zip", Path(name) / "table.json"
            networks = [architecture] * CONFIRMATIONS
            write_kit(kit, networks, self._input, self._classes, table.setting)
            seconds = PASSES * CONFIRMED_SECONDS
            device.ask(
                ["latency", "build", "{kit}", "{table}", "--seconds", f"{seconds:g}"],
                inputs={"kit": kit},
                outputs={"table": out},
                seconds=120 + 10 * CONFIRMATIONS * seconds,
            )
            measured = files.read_json(out, what="latency table")["networks"]
        medians = [_median(network["latency"]) for network in measured]
        flagged = float(sum(network["latency"]["flagged"] for network in measured))
        return {"latency_ms": max(medians), LOWEST: min(medians), FLAGGED: flagged}

    def unpriced(self, architectures: Iterable[Architecture]) -> list[str]:
        """Kinds of nodes of these networks that the table has no price for; none where times are measured."""
        if self._table is None:
            return []
        return sorted(set().union(*map(self._table.unpriced, architectures)))

    def refusal(self, measures: Mapping[str, float]) -> str | None:
        """Why a network may not be picked, or None."""
        if self.limit_ms is None or measures["latency_ms"] <= self.limit_ms:
            return None
        return f"{measures['latency_ms']:.3g} ms is over the limit of {self.limit_ms:g} ms"


def fastest_of(
    architectures: Sequence[Architecture],
    latency: DeviceLatency,
    limit_ms: float,
    *,
    enough_ms: float | None = None,
    mutate: Callable[[Architecture, int], Architecture | None] | None = None,
) -> tuple[Architecture, float]:
    """The first network within ``enough_ms``, the limit unless given, or else the fastest of all.

    Args:
        architectures: Networks to measure, at least one.
        latency: Measurement of them.
        limit_ms: Milliseconds that a network must keep.
        enough_ms: Milliseconds at which no further one is measured.
        mutate: Gives a neighbour of a network for the number of a try, or None; where no network keeps the
            limit, those of the fastest one are measured, until one does.

    Raises:
        GateError: none keeps the limit; names the fastest there is.
    """
    measured: dict[Architecture, float] = {}
    enough_ms = limit_ms if enough_ms is None else enough_ms
    for architecture in architectures:
        measured[architecture] = latency.measure(architecture)["latency_ms"]
        if measured[architecture] <= enough_ms:
            return architecture, measured[architecture]
    fastest = min(measured, key=lambda entry: measured[entry])
    if mutate is not None:
        fastest = _downhill(fastest, measured, latency, limit_ms, mutate)
    if measured[fastest] <= limit_ms:
        return fastest, measured[fastest]
    raise GateError(
        f"no network of the space keeps the latency limit, of {len(measured)} that were measured",
        expected=f"at most {limit_ms:g} ms",
        received=f"{measured[fastest]:.3g} ms for the fastest found ({fastest.key})",
        hint="Raise --max-latency, or try --precision int8, smaller images (?size=N) or a smaller --space.",
    )


def _downhill(
    fastest: Architecture,
    measured: dict[Architecture, float],
    latency: DeviceLatency,
    limit_ms: float,
    mutate: Callable[[Architecture, int], Architecture | None],
) -> Architecture:
    """The fastest of a chain of mutations, each of the fastest so far, that ends within the limit.

    What was measured on the way is added to ``measured``.
    """
    most = len(measured) + DOWNHILL
    for number in range(TRIES):
        if measured[fastest] <= limit_ms or len(measured) == most:
            break
        mutant = mutate(fastest, number)
        if mutant is None or mutant in measured:
            continue
        measured[mutant] = latency.measure(mutant)["latency_ms"]
        if measured[mutant] <= measured[fastest]:
            fastest = mutant
    return fastest


def parse_milliseconds(text: str) -> float:
    """``3ms``, ``0.5 ms``, ``2500us`` or ``3`` (milliseconds) as milliseconds; raises UsageError."""
    value, factor = text.strip().lower(), 1.0
    for unit, size in (("ms", 1.0), ("us", 1e-3), ("µs", 1e-3), ("s", 1e3)):
        if value.endswith(unit):
            value, factor = value.removesuffix(unit).strip(), size
            break
    try:
        milliseconds = float(value) * factor
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < 1e7:
        raise UsageError("a latency", expected="a time such as 3ms or 800us", received=text)
    return milliseconds
