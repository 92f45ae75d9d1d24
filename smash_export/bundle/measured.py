"""Every measured result of a bundle in one place: parity of each file, and what bench recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smash_base.json_values import JsonObject
from smash_export.bundle.bundle import Bundle

PARITY = ("images", "max_difference", "agreement", "accuracy", "accuracy_reference")
LATENCY = ("min_ms", "p50_ms", "p90_ms", "p99_ms")


def measured(bundle: Bundle) -> JsonObject:
    """``target/precision`` -> what was measured; nothing is computed here."""
    found: JsonObject = {}
    for entry in bundle.manifest.compiled:
        parity = entry.evidence.get("parity")
        facts: JsonObject = {"bytes": sum(file.size for file in entry.files.values())}
        if isinstance(parity, dict):
            facts |= {name: parity[name] for name in PARITY if name in parity}
        facts |= dict(_latencies(bundle.manifest.records.get("bench"), entry.target, entry.precision))
        found[f"{entry.target}/{entry.precision}"] = facts
    return found


def _latencies(record: Any, target: str, precision: str) -> Iterator[tuple[str, Any]]:
    """``latency, batch 1`` -> milliseconds, as bench wrote them."""
    rows = record.get("files", []) if isinstance(record, dict) else []
    for row in rows:
        if (row.get("target"), row.get("precision")) == (target, precision):
            for batch, values in (row.get("latency") or {}).items():
                yield f"latency, batch {batch}", {name: values[name] for name in LATENCY if name in values}
