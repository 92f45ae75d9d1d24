"""bench: the numbers mean what they say, and a runtime that crashes or hangs costs its own row only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import UsageError, VerificationError
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.runnable import selected_files
from smash_export.cli import run
from smash_export.compiling.compile import compile_bundle
from smash_export.measure import bench
from smash_export.measure.bench_process import BenchProcess
from smash_export.measure.timing import MIN_RUNS, Latency, interleaved, measure_latency, ratio, round_orders
from smash_targets.base import Availability, Session, SessionInfo, get_target


class Sleeper(Session):
    """A session whose time is known."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.runs = seconds, 0
        self.info = SessionInfo("sleeper", "1", "none", "cpu", 1, "fp32")

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        time.sleep(self.seconds)
        return np.zeros((len(batch), 2), np.float32)


BATCH = np.zeros((1, 1, 8, 8), np.float32)


def test_latency_is_the_time_of_one_run() -> None:
    session = Sleeper(0.002)
    latency = measure_latency(session, BATCH, seconds=0.1, warm_up=0.01)
    assert 2.0 <= latency.min_ms <= latency.p50_ms <= latency.p90_ms <= latency.p99_ms
    assert latency.n >= MIN_RUNS
    assert session.runs >= latency.n + 3  # warm-up is run and not counted
    assert latency.threads == 1


def test_slow_runs_are_timed_often_enough() -> None:
    assert measure_latency(Sleeper(0.004), BATCH, seconds=0.001, warm_up=0).n == MIN_RUNS


def test_percentiles_and_flags_follow_the_times() -> None:
    steady = Latency.from_nanoseconds([1_000_000] * 99 + [50_000_000], threads=1, load=0.0)
    assert (steady.p50_ms, steady.min_ms) == (1.0, 1.0)
    assert steady.p99_ms > 1.0
    assert not steady.flagged
    spread = Latency.from_nanoseconds([1_000_000, 3_000_000] * 50, threads=1, load=0.0)
    assert spread.flagged
    assert "spread" in spread.warnings[0]
    busy = Latency.from_nanoseconds([1_000_000] * 100, threads=1, load=1e3)
    assert "busy" in busy.warnings[0]
    few = Latency.from_nanoseconds([1_000_000] * 5, threads=1000, load=0.0)
    assert len(few.warnings) == 2
    assert few.to_json()["flagged"] is True


def test_interleaved_rounds_visit_every_session_in_turns() -> None:
    order: list[str] = []

    class Noted(Sleeper):
        def __init__(self, name: str, seconds: float) -> None:
            super().__init__(seconds)
            self.name = name

        def run(self, batch: np.ndarray) -> np.ndarray:
            if not order or order[-1] != self.name:
                order.append(self.name)
            return super().run(batch)

    runs = {name: (Noted(name, 0.001 * factor), BATCH) for name, factor in (("a", 1), ("b", 3))}
    found = interleaved(runs, seconds=0.05, rounds=6, warm_up=0.0)
    assert len(order) >= 6  # taking turns, not one after the other
    assert ratio(found["b"], found["a"]) == pytest.approx(3, rel=0.5)
    assert round_orders(["a", "b", "c"], 4, 0) == round_orders(["a", "b", "c"], 4, 0)


@pytest.fixture(scope="module")
def benched(
    digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, list[bench.Measurement]]:
    import shutil

    path = tmp_path_factory.mktemp("bench") / "bundle"
    shutil.copytree(digits_bundle, path)
    compile_bundle(path, "onnxruntime", "fp32")
    compile_bundle(path, "onnxruntime", "int8", {"calibration_method": "minmax"})
    bundle = Bundle.open(path)
    return bundle, bench.bench_bundle(bundle, batches=(1, 8), seconds=0.2, rounds=2)


def test_every_file_is_measured_with_its_source(
    benched: tuple[Bundle, list[bench.Measurement]],
) -> None:
    _, rows = benched
    assert [row.name for row in rows] == ["torchscript:fp32", "onnxruntime:fp32", "onnxruntime:int8"]
    assert [row.source for row in rows] == [True, False, False]
    for row in rows:
        assert row.status == "measured", row.problem
        assert set(row.latency) == {1, 8}
        assert row.images_per_second[8] > row.images_per_second[1] > 0
        assert 0 < row.memory["base_bytes"] < row.memory["peak_bytes"] < 2**31
        assert row.cold_start["total_s"] >= row.cold_start["open_s"] > 0
        assert row.stages["end_to_end"] >= row.stages["inference"] > 0
        assert row.stages["preprocess"] > 0
        assert row.runtime is not None
        assert row.runtime.threads == 1
    assert rows[0].memory["peak_bytes"] > rows[1].memory["peak_bytes"]  # torch against ONNX Runtime


def test_lower_precision_is_held_against_fp32_of_the_same_runtime(
    benched: tuple[Bundle, list[bench.Measurement]],
) -> None:
    rows = {row.name: row for row in benched[1]}
    int8, fp32 = rows["onnxruntime:int8"], rows["onnxruntime:fp32"]
    medians = int8.latency[1].p50_ms / fp32.latency[1].p50_ms
    least = int8.latency[1].min_ms / fp32.latency[1].min_ms
    busy = int8.latency[1].flagged or fp32.latency[1].flagged
    expected = least if busy else medians
    assert int8.relative_to_fp32 == pytest.approx(expected, abs=1e-3)
    assert int8.slower_than_fp32 == (max(expected, least) > bench.FASTER)
    assert fp32.slower_than_fp32 is None


def test_a_file_that_breaks_costs_its_own_row(
    benched: tuple[Bundle, list[bench.Measurement]], tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(benched[0].path, copy)
    bundle = Bundle.open(copy)
    broken = bundle.find_compiled("onnxruntime", "int8")
    assert broken is not None
    broken.main.write_bytes(b"not onnx")  # after the hashes were checked
    rows = {row.name: row for row in bench.bench_bundle(bundle, seconds=0.05, rounds=1)}
    assert rows["onnxruntime:int8"].status == "failed"
    assert rows["onnxruntime:int8"].problem
    assert rows["onnxruntime:fp32"].status == "measured"


def start(
    code: str, bundle: Bundle, timeout: float, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> BenchProcess:
    """A worker whose interpreter runs ``code`` first."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    np.save(folder / "images.npy", bundle.samples().images[:4])
    file = selected_files(bundle, ["onnxruntime"])[0]
    return BenchProcess.start(bundle, file, folder / "images.npy", timeout=timeout)


def test_a_crash_is_one_line_with_the_signal(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys\nif 'bench_child' in ' '.join(sys.orig_argv): import os; os.abort()"
    with pytest.raises(VerificationError, match="SIGABRT"):
        start(code, Bundle.open(digits_bundle), 30, monkeypatch, tmp_path)


def test_a_hang_is_given_up(digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, time\nif 'bench_child' in ' '.join(sys.orig_argv): time.sleep(60)"
    begin = time.monotonic()
    with pytest.raises(VerificationError, match="did not answer"):
        start(code, Bundle.open(digits_bundle), 1.0, monkeypatch, tmp_path)
    assert time.monotonic() - begin < 20


def test_what_a_runtime_prints_does_not_reach_the_answers(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import os, threading, time

begin = os.fstat(1).st_ino

def prints():
    for _ in range(1000):  # until the worker has its answers to itself
        if os.fstat(1).st_ino != begin:
            break
        time.sleep(0.01)
    for _ in range(99):
        os.write(1, b"loading...")

threading.Thread(target=prints, daemon=True).start()
"""
    worker = start(code, Bundle.open(digits_bundle), 30, monkeypatch, tmp_path)
    assert worker.time(1, 0.6)
    assert worker.memory()["peak_bytes"] > 0
    worker.stop()


def test_command_records_and_gates(
    benched: tuple[Bundle, list[bench.Measurement]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(benched[0].path)
    words = ["bench", path, "--target", "onnxruntime", "--seconds", "0.05", "--rounds", "1", "--json", "-q"]
    assert run(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["target"] for row in printed["files"]] == ["onnxruntime", "onnxruntime"]
    recorded = Bundle.open(path).manifest.records["bench"]
    assert isinstance(recorded, dict)
    assert recorded["machine"]["cores"] >= 1
    assert recorded["files"] == printed["files"]
    assert run([*words, "--max-p50", "0.000001"]) == 5
    assert run(["bench", path, "--dry-run", "--json", "-q"]) == 0


def test_a_gate_fails_where_a_file_failed_or_none_was_measured(
    benched: tuple[Bundle, list[bench.Measurement]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(benched[0].path, copy)
    words = ["bench", str(copy), "--seconds", "0.05", "--rounds", "1", "--json", "-q"]
    gate = ["--max-p50", "100000"]
    assert run([*words, "--target", "onnxruntime:fp32", *gate]) == 0
    assert run([*words, "--target", "onnxruntime:fp32", *gate, "--sustained", "0.005"]) == 0
    assert run([*words, "--target", "onnxruntime:fp32", "--max-p50", "1e-6", "--sustained", "0.005"]) == 5

    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")  # a runtime that crashes
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run([*words, "--target", "onnxruntime", *gate]) == 5
    assert run([*words, "--target", "onnxruntime", *gate, "--sustained", "0.005"]) == 5
    missing = Availability(False, reason="it is not installed", install="pip install it")
    monkeypatch.setattr(type(get_target("onnxruntime")), "availability", lambda _: missing)
    assert run([*words, "--target", "onnxruntime", *gate]) == 5


def deny_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system answers of a folder of somebody else, for a test that root runs."""
    true = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **how: path != folder and true(path, mode, **how))


@pytest.mark.slow
def test_what_was_measured_of_a_bundle_that_may_not_be_written_is_shown(
    digits_bundle_copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_bundle(digits_bundle_copy, "onnxruntime", isolated=False)
    lock = digits_bundle_copy / ".lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # nobody can lock it, root neither
    before = (digits_bundle_copy / "manifest.json").read_bytes()
    words = [str(digits_bundle_copy), "--seconds", "0.05", "--rounds", "1", "--json"]
    assert run(["bench", *words, "-t", "onnxruntime"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["files"][0]["latency"]["1"]["p50_ms"] > 0
    assert captured.err.count("not recorded") == 1
    assert run(["bench", *words, "-t", "onnxruntime", "--sustained", "0.005"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["files"][0]["verdict"]
    assert captured.err.count("not recorded") == 1
    (tmp_path / "file").touch()
    deny_writing(digits_bundle_copy, monkeypatch)
    assert run(["compare", *words, "--html", str(tmp_path / "file" / "page.html")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["recommendation"]["target"] == "onnxruntime"
    before_measuring, _, afterwards = captured.err.partition("will be shown and not recorded")
    assert "comparing" not in before_measuring
    assert "recommendation was not recorded" in afterwards
    assert "report was not written" in captured.err
    assert (digits_bundle_copy / "manifest.json").read_bytes() == before


def test_wishes_that_name_nothing_are_usage_errors(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    with pytest.raises(UsageError, match="openvino"):
        selected_files(bundle, ["openvino"])
    with pytest.raises(UsageError, match="1 to 32"):
        bench.bench_bundle(bundle, batches=(64,))
