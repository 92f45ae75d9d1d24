"""Every installed runtime at every precision: agreement, accuracy, size and latency, one thread, batch 1.

    python -m benchmarks.precision [BUNDLE ...] [--seconds 4]

Without bundles a small network is trained on scikit-learn's digits first. Bundles are copied, never
changed. Times need an idle machine; load and spread stand beside each of them in the results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.record import record
from smash_base.errors import SmashError
from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_export.measure.compare import Comparison, Row, compare_bundle
from smash_export.measure.machine import cpu_features
from smash_targets.base import get_target, target_names

MEASURED = ("fp32", "fp16", "int8")
GATES = {"fp16": (0.999, 0.1), "int8": (0.985, 0.5)}


def compile_all(bundle: Path) -> list[dict[str, Any]]:
    """Compile for every runtime that is here; one line for each, with what went wrong if it did."""
    lines = []
    for name in target_names():
        target = get_target(name)
        state = target.availability()
        for precision in MEASURED:
            if precision not in target.precisions:
                continue
            line: dict[str, Any] = {
                "target": name,
                "precision": precision,
                "status": "compiled",
                "problem": "",
            }
            begin = time.monotonic()
            if not state.available:
                line |= {"status": "missing", "problem": state.reason}
            else:
                try:
                    file = compile_bundle(bundle, name, precision)
                    line["kept_fp32"] = len(file.notes.get("kept_fp32", ()))
                except SmashError as error:
                    line |= {"status": "failed", "problem": str(error)}
            line["seconds"] = round(time.monotonic() - begin, 2)
            print(f"{name} {precision}: {line['status']} in {line['seconds']} s {line['problem'][:120]}")
            lines.append(line)
    return lines


def summary(comparison: Comparison) -> list[dict[str, Any]]:
    """What a reader of the results wants of each row."""
    found = []
    for row in comparison.rows:
        measurement, parity = row.measurement, row.parity
        latency = measurement.latency.get(1)
        found.append(
            {
                "file": row.name,
                "verdict": row.verdict,
                "reason": row.reason,
                "bytes": measurement.size_bytes,
                "agreement": None if parity is None else parity.agreement,
                "accuracy": None if parity is None else parity.accuracy,
                "points_lost": None if parity is None else parity.drop,
                "max_difference": None if parity is None else parity.max_difference,
                "latency": None if latency is None else latency.to_json(),
                "relative_to_fp32": measurement.relative_to_fp32,
                "memory": measurement.memory,
                "cold_start": measurement.cold_start,
            }
        )
    return found


def failures_of(name: str, compiled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A missed goal for each file that could not be made or was refused."""
    return [
        _goal(
            f"{name}: {line['target']} {line['precision']}",
            "a file that passes its gates",
            "none",
            False,
            line["problem"].partition(" The file and")[0][:250],
        )
        for line in compiled
        if line["status"] == "failed"
    ]


def goals_of(name: str, rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """The committed goals on one bundle."""
    goals = []
    measured = [row for row in rows if row.parity is not None]
    full = [row.parity for row in measured if row.measurement.precision == "fp32" and row.parity is not None]
    if full:
        worst = max(parity.max_difference for parity in full)
        goals.append(_goal(f"{name}: fp32, worst of {len(full)} runtimes", "<= 1e-4", worst, worst <= 1e-4))
    for precision, (agreement, drop) in GATES.items():
        found = [row.parity for row in measured if row.measurement.precision == precision and row.parity]
        if found:
            least, lost = min(item.agreement for item in found), max(item.drop for item in found)
            what = f"{name}: {precision}, worst of {len(found)} runtimes"
            goals.append(_goal(f"{what}, same label", f">= {agreement:.1%}", least, least >= agreement))
            goals.append(_goal(f"{what}, points lost", f"<= {drop}", round(lost, 4), lost <= drop))
    vnni = cpu_features().get("VNNI", False)
    for row in measured:
        relative = row.measurement.relative_to_fp32
        if row.measurement.precision == "int8" and relative is not None:
            what = f"{name}: {row.measurement.target} int8 against its fp32, VNNI"
            note = "" if vnni else "this processor has no VNNI; the value is without it"
            goals.append(_goal(what, "<= 0.5x", relative, relative <= 0.5 if vnni else None, note))
    slow = [row.p50_ms for row in measured if row.name == "torchscript:fp32" and row.p50_ms]
    fast = [(row.p50_ms, row.name) for row in measured if row.p50_ms]
    if slow and fast:
        best, who = min(fast)
        times = round(slow[0] / best, 2)
        flagged = any(latency.flagged for row in measured for latency in row.measurement.latency.values())
        note = who + ("; times unsteady" if flagged else "")
        goals.append(_goal(f"{name}: fastest file against TorchScript", ">= 6x", times, times >= 6, note))
    return goals


def _goal(what: str, goal: str, value: float | str, met: bool | None, note: str = "") -> dict[str, Any]:
    return {"what": what, "goal": goal, "value": value, "met": met, "note": note}


def main() -> None:
    """Compile, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="precision-") as folder:
        bundles = list(arguments.bundles)
        if not bundles:
            from tests.conftest import make_digits_bundle

            bundles = [make_digits_bundle(Path(folder) / "digits-cnn")]
        for source in bundles:
            copy = Path(folder) / "copies" / source.resolve().name
            shutil.copytree(source, copy)
            compiled = compile_all(copy)
            comparison = compare_bundle(Bundle.open(copy), seconds=arguments.seconds, rounds=10)
            results[copy.name] = {
                "compiled": compiled,
                "files": summary(comparison),
                "recommendation": comparison.recommendation,
                "settings": asdict(comparison.settings),
            }
            goals += goals_of(copy.name, comparison.rows) + failures_of(copy.name, compiled)
    record("precision", results, goals)


if __name__ == "__main__":
    main()
