"""What trtexec prints and exports: its log, and its times, profile, layer-info and output JSON.

Read after the documented forms of 8.5 to 11.1. Traps that the format has:

* one percentile in 8.4 and older, several since; numbers may be ``1e-05``;
* "qps" counts queries, which are batches: images per second is that times the batch;
* a failed run may end without ``&&&& FAILED`` (11.1): only ``PASSED`` says that it worked;
* profile names are not escaped, so a quote or backslash in a layer name makes invalid JSON;
* outputs hold bare nan and inf; layer info holds names only unless the engine was built with detailed
  verbosity, and 11 has "I/O Tensors" and a separate "Datatype" where 10 has "Bindings" and "Format/Datatype".
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smash_base.errors import InvalidInputError
from smash_base.json_values import JsonObject

MAX_BYTES = 256 * 2**20
TIME_KEYS = ("h2dMs", "computeMs", "d2hMs", "latencyMs")

_PREFIX = re.compile(r"^(?:\[[^\]]*\]\s*)?\[(?P<severity>[FEWIV])\]\s?(?P<text>.*)$")
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_STATISTIC = re.compile(
    rf"(?P<name>min|max|mean|median|percentile(?:\((?P<at>[\d.]+)%\))?) = (?P<value>{_NUMBER}) ms"
)
_SECTIONS = {
    "Latency": "latency",
    "Enqueue Time": "enqueue",
    "H2D Latency": "h2d",
    "GPU Compute Time": "compute",
    "D2H Latency": "d2h",
}
_VERSION = re.compile(r"TensorRT version:? (\d+(?:\.\d+)+)")
_BANNER = re.compile(
    r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec \[(?:TensorRT )?v?([\d.]+)\][^#]*#\s*(.*)"
)
_BUILT = re.compile(rf"Engine built in ({_NUMBER}) sec")
_LOADED = re.compile(rf"Engine deserialized in ({_NUMBER}) sec")
_BINDING = re.compile(r"Input binding for \S+ with dimensions (\d+)(?:x\d+)* is created")
_SHAPE = re.compile(r"--shapes=\S*?:(\d+)(?:x\d+)*")


@dataclass(frozen=True)
class Statistics:
    """Milliseconds of one stage; percentiles by their number, for example ``{90.0: 1.2}``."""

    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: Mapping[float, float] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return {**asdict(self), "percentiles": {f"{key:g}": value for key, value in self.percentiles.items()}}


@dataclass(frozen=True)
class RunLog:
    """One trtexec log.

    Attributes:
        passed: whether trtexec said so; its exit code is the better witness.
        version: Version of TensorRT, "" when the log does not tell.
        command: the command line, "" when the log does not tell.
        batch: images of one query, from ``--shapes`` or, for fixed shapes, from the line about the input
            binding; None when the log does not tell.
        stages: "latency", "enqueue", "h2d", "compute" and "d2h", those that were measured.
        queries_per_second: None when nothing was measured.
        build_seconds, load_seconds: Seconds to build and to load the engine; None when it was not.
        errors, warnings: lines of that severity.
    """

    passed: bool
    version: str
    command: str
    batch: int | None
    stages: Mapping[str, Statistics]
    queries_per_second: float | None
    build_seconds: float | None
    load_seconds: float | None
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def images_per_second(self) -> float | None:
        """Queries per second times the batch."""
        if self.queries_per_second is None or self.batch is None:
            return None
        return self.queries_per_second * self.batch


def read_log(text: str) -> RunLog:
    """Read what trtexec printed.

    Raises:
        InvalidInputError: nothing in it is of trtexec.
    """
    stages: dict[str, Statistics] = {}
    values: dict[str, float] = {}
    version = command = verdict = ""
    errors, warnings = [], []
    known = False
    binding: int | None = None
    for raw in text.splitlines():
        banner = _BANNER.search(raw)
        if banner:
            known = True
            verdict, command = banner[1], banner[3] or command
            version = version or _version_of(banner[2])
            continue
        match = _PREFIX.match(raw.strip())
        if not match:
            continue
        known = True
        severity, line = match["severity"], match["text"].strip()
        if severity in "FE":
            errors.append(line)
        elif severity == "W":
            warnings.append(line)
        found = _VERSION.search(line)
        if found:
            version = found[1]
        for name, pattern in (("built", _BUILT), ("loaded", _LOADED)):
            found = pattern.search(line)
            if found:
                values[name] = float(found[1])
        found = _BINDING.search(line)
        if found:
            binding = int(found[1])
        found = re.match(rf"Throughput: ({_NUMBER}) qps", line)
        if found:
            values["qps"] = float(found[1])
        title, colon, rest = line.partition(": ")
        if colon and title in _SECTIONS and "min = " in rest:
            stages[_SECTIONS[title]] = _statistics(rest)
    if not known:
        raise InvalidInputError(
            "this is no log of trtexec",
            expected="lines that begin with [date-time] [I]",
            received=text[:80] or "an empty file",
        )
    shape = _SHAPE.search(command)
    return RunLog(
        passed=verdict == "PASSED",  # errors of tactics that were tried and skipped stand in good logs too
        version=version,
        command=command,
        batch=int(shape[1]) if shape else binding,
        stages=stages,
        queries_per_second=values.get("qps"),
        build_seconds=values.get("built"),
        load_seconds=values.get("loaded"),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def _version_of(banner: str) -> str:
    """``v101600`` -> 10.16.0, ``v8601`` -> 8.6.1 (four digits before version 10)."""
    if "." in banner or not banner.isdecimal():
        return banner
    number = int(banner)
    if number >= 100_000:
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return f"{number // 1000}.{number // 100 % 10}.{number % 100}"


def _statistics(text: str) -> Statistics:
    values: dict[str, float] = {}
    percentiles: dict[float, float] = {}
    for match in _STATISTIC.finditer(text):
        value = float(match["value"])
        if match["name"].startswith("percentile"):
            percentiles[float(match["at"] or 99)] = value
        else:
            values[match["name"]] = value
    missing = {"min", "max", "mean", "median"} - set(values)
    if missing:
        raise InvalidInputError(
            "a line of trtexec's summary", expected=f"{sorted(missing)[0]} = NUMBER ms", received=text
        )
    return Statistics(values["min"], values["max"], values["mean"], values["median"], percentiles)


def read_times(text: str) -> dict[str, np.ndarray]:
    """``--exportTimes``: milliseconds of every query, float64 [N] for each of ``TIME_KEYS``."""
    rows = _lenient(text, "times")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidInputError("trtexec times", expected="a list of objects", received=text[:80])
    try:
        return {key: np.array([float(row[key]) for row in rows]) for key in TIME_KEYS}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError("trtexec times", expected=", ".join(TIME_KEYS), received=error) from None


@dataclass(frozen=True)
class LayerTime:
    """One layer of ``--exportProfile``, milliseconds and percent of the whole."""

    name: str
    average_ms: float
    median_ms: float | None
    percentage: float


_LAYER = re.compile(r'\{\s*"name"\s*:\s*"(?P<name>.*)"\s*,\s*"timeMs"\s*:(?P<rest>[^{}]*)\}')


def read_profile(text: str) -> list[LayerTime]:
    """``--exportProfile``, names with quotes and backslashes in them included."""
    rows: list[tuple[str, dict[str, float]]] = []
    for line in re.split(r"\n|(?<=\}),(?=\s*\{)", text):
        match = _LAYER.search(line)
        if match:
            numbers = json.loads("{" + f'"timeMs":{_finite(match["rest"])}' + "}", parse_constant=float)
            rows.append((match["name"], numbers))
    if not rows:
        raise InvalidInputError(
            "trtexec profile", expected='objects with "name" and "timeMs"', received=text[:80]
        )
    try:
        return [
            LayerTime(name, float(row["averageMs"]), _optional(row.get("medianMs")), float(row["percentage"]))
            for name, row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            "trtexec profile", expected="averageMs and percentage", received=error
        ) from None


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class EngineLayers:
    """``--exportLayerInfo``, or what the engine inspector says.

    Attributes:
        layers: one object per layer; ``{"Name": ...}`` alone when the engine was built without details.
        detailed: whether the layers tell their types.
        tensors: names of inputs and outputs of the engine.
    """

    layers: tuple[Mapping[str, Any], ...]
    detailed: bool
    tensors: tuple[str, ...]

    def precisions(self) -> Counter[str]:
        """How many layers write or hold values of each type: "fp32", "fp16", "bf16", "int8", ..."""
        counts: Counter[str] = Counter()
        for layer in self.layers:
            counts.update(set(_types(layer)))
        return counts


_TYPE_NAMES = (
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(float|fp32|float32)\b", re.IGNORECASE)),
)


def _types(layer: Mapping[str, Any]) -> Iterable[str]:
    words = []
    outputs: Any = layer.get("Outputs")
    for tensor in outputs if isinstance(outputs, list) else ():
        if isinstance(tensor, Mapping):
            words += [tensor.get(key) for key in ("Datatype", "DataType", "Format/Datatype", "Format")]
    for key in ("Weights", "Kernel"):
        weights = layer.get(key)
        if isinstance(weights, Mapping):
            words.append(weights.get("Type"))
    for word in words:
        for name, pattern in _TYPE_NAMES:
            if isinstance(word, str) and pattern.search(word):
                yield name
                break


def read_layer_info(text: str) -> EngineLayers:
    """Both layouts: 10 with "Bindings", 11 with "I/O Tensors"."""
    document: Any = _lenient(text, "layer info")
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        raise InvalidInputError("trtexec layer info", expected='an object with "Layers"', received=text[:80])
    rows: list[Any] = document["Layers"]
    detailed = bool(rows) and all(isinstance(row, dict) for row in rows)
    layers = tuple(row if isinstance(row, dict) else {"Name": str(row)} for row in rows)
    listed = document.get("I/O Tensors", document.get("Bindings"))
    tensors: list[Any] = listed if isinstance(listed, list) else []
    names = tuple(str(item.get("Name", "")) if isinstance(item, dict) else str(item) for item in tensors)
    return EngineLayers(layers, detailed, names)


def read_outputs(text: str) -> dict[str, np.ndarray]:
    """``--exportOutput``: float32 arrays by tensor name; bare nan and inf are read as such."""
    rows = _lenient(text, "output")
    result = {}
    try:
        for row in rows if isinstance(rows, list) else [rows]:
            shape = [int(size) for size in str(row["dimensions"]).split("x")]
            values = np.array([float(value) for value in row["values"]], np.float32)
            if math.prod(shape) != values.size or min(shape) < 1:
                raise InvalidInputError(
                    f"trtexec output {row['name']}",
                    expected=f"{row['dimensions']} values",
                    received=values.size,
                )
            result[str(row["name"])] = values.reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            "trtexec output", expected="name, dimensions and values", received=error
        ) from None
    return result


def kind_of(text: str) -> str:
    """Which of "log", "times", "profile", "layers" and "output" a text is."""
    start = text.lstrip()[:1]
    if start == "{" or (start == "[" and '"Layers"' in text[:2000]):
        return "layers"
    if start == "[" and not _PREFIX.match(text.lstrip().splitlines()[0]):
        for key, kind in (
            ('"count"', "profile"),
            ('"latencyMs"', "times"),
            ('"dimensions"', "output"),
            ('"timeMs"', "profile"),
        ):
            if key in text[:20_000]:
                return kind
    return "log"


def read_text(path: Path) -> str:
    """A result file as text.

    Raises:
        InvalidInputError: missing or larger than 256 MiB.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InvalidInputError(
                f"{path} is too large", expected=f"at most {MAX_BYTES} bytes", received=size
            )
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist", expected="a log or JSON file of trtexec") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a folder", expected="a log or JSON file of trtexec") from None


_BARE = re.compile(r'"(?:[^"\\]|\\.)*"|(?P<word>[-+]?\b(?:nan|inf|infinity)\b(?:\([^)]*\))?)', re.IGNORECASE)


def _finite(text: str) -> str:
    """Bare nan and inf of C++ streams in the spelling that Python's JSON reader takes."""

    def replace(match: re.Match[str]) -> str:
        word = match["word"]
        if not word:
            return match[0]
        if "nan" in word.lower():
            return "NaN"
        return "-Infinity" if word.startswith("-") else "Infinity"

    return _BARE.sub(replace, text)


def _lenient(text: str, what: str) -> Any:
    try:
        return json.loads(_finite(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"trtexec {what} is not JSON", received=error) from None
