"""Latency: candidates are measured on their own graphs; a table predicts networks it has not seen."""

from __future__ import annotations

import gc
import io
import itertools
import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_export.cli import cli
from smash_export.device_search.latency import (
    FLAGGED,
    DeviceLatency,
    LatencyTable,
    Setting,
    build_table,
    candidate_graph,
    fastest_of,
    features,
    features_of,
    measure_graph,
    parse_milliseconds,
    read_kit,
    write_kit,
)
from smash_export.export.onnx_writer import onnx_from_architecture
from smash_export.measure.timing import Latency
from smash_search.model.interpreter import Network, fold
from smash_search.rank.latency_model import VECTORS
from smash_search.rank.measurement import LOWEST
from smash_search.space.architecture import InputSpec
from smash_search.space.best import BestFile, write_best
from smash_search.space.cost import cost_of
from smash_search.space.known import known_networks, plain_resnet
from smash_search.space.space import SPACES, space_for
from smash_targets.base import Session, Target, get_target
from smash_targets.common import open_graph

TINY = SPACES["tiny"]
SPEC = InputSpec(1, (8, 8))
LABELS = tuple("0123456789")


def structure(model: bytes) -> list[tuple[str, list[str]]]:
    graph = onnx.load_from_string(model).graph
    return [(node.op_type, list(node.input)) for node in graph.node]


def test_the_measured_graph_is_the_exported_one_but_for_its_weights() -> None:
    for slot in range(10):
        architecture = TINY.draw(0, slot)
        frozen = fold(Network(architecture, SPEC, 10).eval())
        exported = onnx_from_architecture(architecture, frozen, SPEC)
        assert structure(candidate_graph(architecture, SPEC, 10)) == structure(exported)


QUANTISED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_candidate_is_measured_on_a_file_of_every_precision(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[bytes] = []

    def seen(model: bytes, *rest: Any) -> Latency:
        timed.append(model)
        return measure_graph(model, *rest)

    monkeypatch.setattr("smash_export.device_search.latency.measure_graph", seen)
    setting = Setting(precision=precision)
    device = DeviceLatency(SPEC, 10, setting, seconds=0.05)
    assert device.measure(TINY.draw(0, 0))["latency_ms"] > 0
    assert set(timed) == {candidate_graph(TINY.draw(0, 0), SPEC, 10, setting)}
    graph = onnx.load_from_string(timed[0]).graph
    kinds = {node.op_type for node in graph.node}
    assert bool(kinds & QUANTISED) == (precision == "int8")
    weights = {value.data_type for value in graph.initializer if len(value.dims) > 1}
    integers = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    stored = {"fp32": {onnx.TensorProto.FLOAT}, "fp16": {onnx.TensorProto.FLOAT16}, "int8": integers}
    assert weights <= stored[precision]


def test_features_count_every_convolution_and_its_work() -> None:
    for slot in range(20):
        architecture = TINY.draw(0, slot)
        (found,) = features(candidate_graph(architecture, SPEC, 10), [1])
        convolutions = (
            1
            + sum(1 + op.pattern.count("1") for block in architecture.blocks for op in block.ops)
            + len(architecture.blocks)
            - 1
        )
        kinds = ("pointwise", "dense", "grouped", "depthwise")
        assert sum(found.get(f"{kind}.nodes", 0) for kind in kinds) == convolutions
        work = sum(found.get(f"{kind}.macs", 0) for kind in kinds)
        assert work >= 0.9 * cost_of(architecture, SPEC, 10).macs - 5000  # the linear layer is no convolution


@pytest.mark.parametrize(
    ("groups", "grouped", "kind", "macs"),
    [
        (1, True, "dense", 64),
        (2, True, "grouped", 32),
        (2, False, "dense", 128),
        (8, True, "depthwise", 8),
        (8, False, "depthwise", 8),
    ],
)
def test_a_grouped_convolution_is_a_kind_of_its_own_or_a_dense_one_for_each_group(
    groups: int, grouped: bool, kind: str, macs: int
) -> None:
    network = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    file = io.BytesIO()
    torch.onnx.export(network.eval(), (torch.zeros(1, 8, 5, 5),), file, dynamo=False)
    (found,) = features(file.getvalue(), [8], grouped=grouped)
    assert found[f"{kind}.macs"] == macs * 9 * 25
    assert {name.partition(".")[0] for name in found} == {"network", kind}


def test_at_int8_the_form_that_runs_is_counted(tmp_path: Path) -> None:
    setting = Setting(precision="int8")
    architectures = [TINY.draw(0, slot) for slot in range(12)]
    for architecture in architectures:
        (plain,) = features(candidate_graph(architecture, SPEC, 10), [8])
        assert features_of(architecture, SPEC, 10, Setting(), vectors=[8]) == [plain]
        (found,) = features_of(architecture, SPEC, 10, setting, vectors=[8])
        nodes = {name: count for name, count in found.items() if name.endswith(".nodes")}
        assert any(name.endswith(" of parts.nodes") for name in nodes) or nodes["dense.nodes"] > 0
        kinds = ("pointwise", "dense", "grouped", "depthwise")
        for sizes in (plain, found):  # pools go into convolutions, which stay as many
            count = sum(sizes.get(f"{kind}{part}.nodes", 0) for kind in kinds for part in ("", " of parts"))
            assert count == sum(plain.get(f"{kind}.nodes", 0) for kind in kinds)
        assert found.get("AveragePool.nodes", 0) <= plain.get("AveragePool.nodes", 0)
    write_kit(tmp_path / "kit.zip", architectures, SPEC, 10, setting)
    facts = read_kit(tmp_path / "kit.zip")
    found = features_of(architectures[0], SPEC, 10, setting)
    assert facts["networks"][0]["features"] == rows_of(found)


def rows_of(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Features as a table holds them."""
    return dict(zip(map(str, VECTORS), found, strict=True))


@pytest.mark.parametrize("vector", [4, 16])
def test_a_table_predicts_by_the_vectors_that_explain_its_times(vector: int) -> None:
    """Convolutions of 8 channels take half of a vector of 16, and banks of 8 are copied."""
    space = SPACES["small"]
    networks = []
    for slot in range(60):
        found = rows_of(features(candidate_graph(space.draw(4, slot), SPEC, 10)))
        row = found[str(vector)]
        time = 0.05 + 2e-6 * row.get("dense.macs", 0) + 1e-3 * row.get("dense.rows", 0)
        time += 0.02 * row.get("Add of parts.nodes", 0)
        networks.append({"key": str(slot), "features": found, "latency": {"p50_ms": time}})
    facts = {"schema": 2, "input": SPEC.to_json(), "classes": 10, "setting": {}, "networks": networks}
    table = LatencyTable(facts)
    assert table.vector == vector
    assert table.error["median"] < 0.005
    unseen = features(candidate_graph(space.draw(5, 0), SPEC, 10), [vector])
    assert table.predict(space.draw(5, 0)) == table.predict_features(unseen[0])


def synthetic(count: int = 60, noise: float = 0.0) -> LatencyTable:
    """A device whose times are exactly a sum of costs, but for noise."""
    random = np.random.default_rng(0)
    networks = []
    for slot in range(count):
        architecture = TINY.draw(4, slot)
        explained = features(candidate_graph(architecture, SPEC, 10))
        found = explained[0]
        time = 0.05 + 2e-6 * found.get("dense.macs", 0) + 0.004 * found.get("Add.nodes", 0)
        time *= float(np.exp(noise * random.standard_normal()))
        row = {"key": architecture.key, "features": rows_of(explained), "latency": {"p50_ms": time}}
        networks.append(row)
    return LatencyTable(
        {
            "schema": 2,
            "input": SPEC.to_json(),
            "classes": 10,
            "setting": {"target": "onnxruntime"},
            "networks": networks,
        }
    )


def test_a_device_whose_times_are_sums_is_predicted_exactly() -> None:
    table = synthetic()
    assert table.error["median"] < 0.001
    assert table.error["kendall_tau"] > 0.999
    unseen = TINY.draw(5, 0)
    (found,) = features(candidate_graph(unseen, SPEC, 10), [4])
    expected = 0.05 + 2e-6 * found.get("dense.macs", 0) + 0.004 * found.get("Add.nodes", 0)
    assert table.predict(unseen) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("has_any", [True, False])
def test_grouped_convolutions_have_their_own_price_or_that_of_dense_ones(has_any: bool) -> None:
    table = synthetic()
    networks = table.document["networks"]
    if not has_any:
        networks[:] = [network for network in networks if "grouped.nodes" not in network["features"]["4"]]
    drawn = (TINY.draw(5, slot) for slot in itertools.count())
    one = next(
        network
        for network in drawn
        if "grouped.nodes" in features(candidate_graph(network, SPEC, 10), [4])[0]
    )
    (found,) = features(candidate_graph(one, SPEC, 10), [4], grouped=has_any)
    expected = 0.05 + 2e-6 * found.get("dense.macs", 0) + 0.004 * found.get("Add.nodes", 0)
    assert table.predict(one) == pytest.approx(expected, rel=0.01)
    assert not {name for name in table.unpriced(one) if name.startswith("grouped")}


def test_disturbed_measurements_do_not_bend_the_prediction() -> None:
    table = synthetic()
    for network in table.document["networks"][::10]:
        network["latency"]["p50_ms"] *= 5
    exact = synthetic()
    unseen = [TINY.draw(5, slot) for slot in range(10)]
    for architecture in unseen:
        assert table.predict(architecture) == pytest.approx(exact.predict(architecture), rel=0.02)


def test_the_stated_error_is_that_of_noise_which_cannot_be_predicted() -> None:
    assert 0.05 < synthetic(noise=0.1).error["median"] < 0.12


def test_a_kit_is_measured_without_torch_and_onnx_and_resumes(tmp_path: Path) -> None:
    kit, table = tmp_path / "kit.zip", tmp_path / "table.json"
    write_kit(kit, [TINY.draw(0, slot) for slot in range(12)], SPEC, 10, Setting())
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "scipy", "sklearn"):
            raise ImportError(name + " is not on the device")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from smash_export.device_search.latency import build_table
count = 0
def advance():
    global count
    count += 1
    if count == {{stop}}:
        raise SystemExit(9)
build_table(Path({str(kit)!r}), Path({str(table)!r}), seconds=0.02, advance=advance)
"""
    stopped = subprocess.run([sys.executable, "-c", program.format(stop=5)], check=False)
    assert stopped.returncode == 9
    assert not table.exists()
    partial = table.with_name("table.json.partial.jsonl")
    first = [json.loads(line) for line in partial.read_text().splitlines()]
    assert len(first) == 5
    older = [{"kit": "0", **{name: line[name] for name in ("index", "latency")}} for line in first[:2]]
    older[1]["pass"] = 0  # of versions without passes, and without what times depend on
    partial.write_text(partial.read_text() + "".join(json.dumps(line) + "\n" for line in older))
    subprocess.run([sys.executable, "-c", program.format(stop=-1)], check=True)
    built = LatencyTable.read(table)
    assert len(built.times) == 12
    assert built.times[0] <= first[0]["latency"]["p50_ms"]
    assert not partial.exists()
    assert set(built.error) == {"networks", "median", "p90", "kendall_tau"}


def test_a_table_that_was_begun_with_the_same_networks_at_another_batch_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [TINY.draw(0, slot) for slot in range(5)]
    first, second, table = (tmp_path / name for name in ("first.zip", "second.zip", "table.json"))
    write_kit(first, networks, SPEC, 10, Setting())
    write_kit(second, networks, SPEC, 10, Setting(batch=8))
    batches: list[int] = []

    def measure(model: bytes, spec: InputSpec, classes: int, setting: Setting, seconds: float) -> Latency:
        if batches == [1, 1]:
            raise KeyboardInterrupt
        batches.append(setting.batch)
        return Latency.from_nanoseconds([10**6], threads=1, load=0.0)

    monkeypatch.setattr("smash_export.device_search.latency.measure_graph", measure)
    with pytest.raises(KeyboardInterrupt):
        build_table(first, table)
    batches.clear()
    build_table(second, table)
    assert batches == [8] * 15


@pytest.mark.parametrize("changed", ["seconds", "runtime", "machine", "nothing"])
def test_a_table_that_was_begun_in_another_way_begins_anew(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, table = tmp_path / "kit.zip", tmp_path / "table.json"
    write_kit(kit, [TINY.draw(0, slot) for slot in range(5)], SPEC, 10, Setting())
    asked: list[float] = []

    def measure(model: bytes, spec: InputSpec, classes: int, setting: Setting, seconds: float) -> Latency:
        if len(asked) == 2 and not table.with_name("again").exists():
            raise KeyboardInterrupt
        asked.append(seconds)
        return Latency.from_nanoseconds([10**6], threads=1, load=0.0)

    host = {"processor": "A", "load": 0.1}
    monkeypatch.setattr("smash_export.device_search.latency.measure_graph", measure)
    monkeypatch.setattr("smash_export.measure.machine.describe_machine", lambda: dict(host))
    with pytest.raises(KeyboardInterrupt):
        build_table(kit, table, seconds=0.3)
    table.with_name("again").touch()
    asked.clear()
    host |= {"load": 3.0} | ({"processor": "B"} if changed == "machine" else {})
    if changed == "runtime":
        here = get_target("onnxruntime").availability()
        monkeypatch.setattr(
            type(get_target("onnxruntime")), "availability", lambda self: replace(here, version="0.0.1")
        )
    build_table(kit, table, seconds=0.6 if changed == "seconds" else 0.3)
    assert len(asked) == (13 if changed == "nothing" else 15)


def table_of_one(milliseconds: float) -> LatencyTable:
    rows = rows_of([{"network": 1.0} for _ in VECTORS])
    network = {"key": "0", "features": rows, "latency": {"p50_ms": milliseconds}}
    facts = {"schema": 2, "input": SPEC.to_json(), "classes": 10, "setting": {}, "networks": [network]}
    return LatencyTable(facts)


def test_a_search_goes_on_with_the_table_that_it_began_with() -> None:
    def described(milliseconds: float) -> object:
        return DeviceLatency(SPEC, 10, Setting(), table=table_of_one(milliseconds)).describe()

    assert described(1.0) == described(1.0)
    assert described(1.0) != described(2.0)


def test_a_busy_moment_does_not_reach_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = tmp_path / "kit.zip"
    write_kit(kit, [TINY.draw(0, slot) for slot in range(6)], SPEC, 10, Setting())
    medians = itertools.chain([9.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [7.0] * 6)

    def measure(*_: object) -> Latency:
        return Latency.from_nanoseconds([int(next(medians) * 1e6)], threads=1, load=0.0)

    monkeypatch.setattr("smash_export.device_search.latency.measure_graph", measure)
    table = build_table(kit, tmp_path / "table.json", seconds=0.03)
    assert table.times.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_search_can_measure_and_refuse() -> None:
    device = DeviceLatency(SPEC, 10, Setting(), limit_ms=1e-4, seconds=0.02)
    measures = device.measure(TINY.draw(0, 0))
    assert measures["latency_ms"] > 1e-4
    assert "over the limit" in str(device.refusal(measures))
    assert device.refusal({"latency_ms": 5e-5}) is None


def test_a_disturbed_measurement_is_repeated_before_a_limit_is_missed_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steady, disturbed = [1_000_000] * 20, [1_000_000, 3_000_000] * 10
    times = itertools.cycle([disturbed, steady])

    def measure(*_: object) -> Latency:
        return Latency.from_nanoseconds(next(times), threads=1, load=0.0)

    monkeypatch.setattr("smash_export.device_search.latency.measure_graph", measure)
    confirmed = DeviceLatency(SPEC, 10, Setting(), limit_ms=1.0).confirm(TINY.draw(0, 0))
    assert confirmed == {"latency_ms": 1.0, LOWEST: 1.0, FLAGGED: 0.0}


def test_a_network_is_measured_in_turns_with_others_where_times_are_measured_here() -> None:
    small, large = TINY.draw(0, 0), plain_resnet((128, 256, 512), 2)  # some ten times as long
    here = DeviceLatency(SPEC, 10, Setting())
    again, over = here.times_over(large, (large, small))
    assert over > 2 * again > 0
    (briefly,) = here.times_over(large, (small,), briefly=True)
    assert briefly > 2
    again, over = here.times_over(large, (large, small), briefly=True)
    assert over > 2 * again > 0
    assert here.times_over(small, ()) == []
    assert DeviceLatency(SPEC, 10, Setting(), table=table_of_one(1.0)).times_over(small, (large,)) == []


def test_what_hundreds_are_measured_in_turns_with_is_compiled_once_in_each_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference, other = TINY.draw(0, 0), TINY.draw(0, 1)
    compiled: list[Path] = []

    def opened(target: Target, model: bytes, signature: object, *more: Any) -> Session:
        compiled.append(more[-1])
        return open_graph(target, model, signature, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("smash_export.device_search.latency.open_graph", opened)
    here = DeviceLatency(SPEC, 10, Setting())
    for _ in range(2):
        (ratio,) = here.times_over(other, (reference,), briefly=True)
        assert 0.2 < ratio < 5
    assert [folder.exists() for folder in compiled] == [False, True, False]
    there = pickle.loads(pickle.dumps(here))
    there.times_over(other, (reference,), briefly=True)
    here.times_over(reference, (other,), briefly=True)
    assert [folder.exists() for folder in compiled] == [False, False, False, False, True, False, True]
    del here, there
    gc.collect()
    assert not any(folder.exists() for folder in compiled)


@pytest.mark.parametrize(("times", "flagged"), [([1.0] * 40, 0.0), ([1.0] * 20 + [3.0] * 20, 3.0)])
def test_a_pick_is_marked_by_times_that_are_spread_and_not_by_the_load_of_its_own_search(
    times: list[float], flagged: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> Latency:
        return Latency.from_nanoseconds([int(time * 1e6) for time in times], threads=1, load=1000.0)

    monkeypatch.setattr("smash_export.device_search.latency.measure_architecture", measure)
    confirmed = DeviceLatency(SPEC, 10, Setting(), limit_ms=1.0).confirm(TINY.draw(0, 0))
    assert confirmed[FLAGGED] == flagged


def test_a_limit_that_nothing_meets_names_the_fastest() -> None:
    table = synthetic()
    device = DeviceLatency(SPEC, 10, Setting(), limit_ms=1e-4, table=table)
    with pytest.raises(GateError, match="for the fastest found"):
        fastest_of([TINY.draw(0, slot) for slot in range(5)], device, 1e-4)


def test_a_table_for_other_networks_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="other networks"):
        DeviceLatency(SPEC, 7, Setting(), table=synthetic())


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("3ms", 3), ("0.5 ms", 0.5), ("800us", 0.8), ("2", 2), ("1s", 1000)]
)
def test_times_are_read_with_their_unit(text: str, milliseconds: float) -> None:
    assert parse_milliseconds(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "0", "nan", "infms"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="3ms"):
        parse_milliseconds(text)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_kit_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kit.zip"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="latency kit"):
        build_table(path, tmp_path / "table.json")


@pytest.mark.parametrize(
    "change", [{"schema": 1}, {"schema": 3}, {"networks": [{}]}, {"setting": {"x": 1}}, {"input": None}]
)
def test_a_malformed_table_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**synthetic(6).document, **change}))
    with pytest.raises(InvalidInputError):
        LatencyTable.read(path)


@pytest.mark.parametrize("latency", [None, {}, {"p50_ms": 0}, {"p50_ms": "1"}])
def test_what_a_kit_says_of_its_networks_is_no_table(tmp_path: Path, latency: Any) -> None:
    document = synthetic(6).document
    document["networks"][3]["latency"] = latency
    if latency is None:
        del document["networks"][3]["latency"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match="without a time"):
        LatencyTable.read(path)


def test_the_commands_make_a_kit_a_table_and_a_prediction(tmp_path: Path) -> None:
    kit, table, best = tmp_path / "kit.zip", tmp_path / "table.json", tmp_path / "best.json"
    write_best(best, BestFile(TINY.draw(9, 0), SPEC, LABELS))
    run = CliRunner().invoke
    made = run(cli, ["latency", "kit", str(kit), "--data", "digits", "--networks", "12", "--json"])
    assert made.exit_code == 0, made.output
    with zipfile.ZipFile(kit) as archive:
        assert len(archive.namelist()) == 13
        networks = json.loads(archive.read("kit.json"))["networks"]
    known = {entry.key for entry in known_networks(space_for(SPEC))}
    assert sum(network["key"] in known for network in networks) == 2, "the others are draws"
    built = run(cli, ["latency", "build", str(kit), str(table), "--seconds", "0.02", "--json"])
    assert built.exit_code == 0, built.output
    told = run(cli, ["latency", "predict", str(table), str(best), "--measure", "--json"])
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert document["networks"][0]["predicted_ms"] > 0
    assert document["networks"][0]["measured_ms"] > 0


@pytest.mark.parametrize(
    ("target", "precision", "expected"),
    [("ncnn", "int8", "calibration images"), ("litert", "fp16", "no precision fp16")],
)
def test_no_kit_is_written_that_a_device_would_refuse(
    target: str, precision: str, expected: str, tmp_path: Path
) -> None:
    kit = tmp_path / "kit.zip"
    words = ["latency", "kit", str(kit), "--data", "digits", "--networks", "10"]
    refused = CliRunner().invoke(cli, [*words, "--target", target, "--precision", precision])
    assert isinstance(refused.exception, UsageError)
    assert expected in str(refused.exception)
    assert not kit.exists()


def search_words(folder: Path, *more: str) -> list[str]:
    small = (
        "--steps 3 --batch 8 --candidates 6 --finalists 2 --rungs 1 --baseline none --images 60 --threads 1"
    )
    return ["search", "--data", "digits", "--run", str(folder), *small.split(), *more, "--json"]


def test_a_search_keeps_a_limit_that_was_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, search_words(tmp_path / "run", "--max-latency", "50ms"))
    assert result.exit_code == 0, result.output
    measures = (tmp_path / "run" / "measures.jsonl").read_text().splitlines()
    assert all(0 < json.loads(line)["measures"]["latency_ms"] < 50 for line in measures)
    assert len(measures) >= 6


def test_a_search_with_a_limit_that_nothing_meets_trains_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, search_words(tmp_path / "run", "--max-latency", "0.1us"))
    assert isinstance(result.exception, GateError)
    assert "fastest found" in str(result.exception)
    assert not (tmp_path / "run" / "hypernet.pt").exists()


def test_a_search_for_a_device_that_is_not_here_predicts(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(synthetic().document))
    result = CliRunner().invoke(cli, search_words(tmp_path / "run", "--latency-table", str(path)))
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "predicted" in json.dumps(config)


def test_a_kit_of_the_same_networks_is_the_same_file_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device's task is called after it: a search that is repeated must find what was measured for it."""
    contents = []
    for second in (10**9, 10**9 + 60):
        monkeypatch.setattr("zipfile.time.time", lambda second=second: second)
        write_kit(tmp_path / "kit.zip", [TINY.draw(0, 0)], SPEC, 10, Setting())
        contents.append((tmp_path / "kit.zip").read_bytes())
    assert contents[0] == contents[1]
