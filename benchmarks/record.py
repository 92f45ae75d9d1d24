"""One way to commit a benchmark's result: figures, goals, machine, versions, date.

    from benchmarks.record import record
    record("latency", {"p50_ms": 0.23}, [
        {"what": "p50 of one image", "goal": "<= 0.3 ms", "value": 0.23, "met": True, "note": ""},
    ])

writes ``benchmarks/results/latency.json`` and the overview ``README.md`` beside it, and prints the goals.
``met`` is None for what could not be measured here; the note says why. Run a benchmark from the
repository's root: ``python -m benchmarks.NAME``.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from smash_base.errors import InvalidInputError
from smash_base.files import write_text
from smash_export.measure import machine
from smash_export.progress import Output, to_json

RESULTS = Path(__file__).resolve().parent / "results"
GOAL_KEYS = {"what", "goal", "value", "met", "note"}


def record(name: str, results: dict[str, Any], goals: list[dict[str, Any]]) -> Path:
    """Write ``benchmarks/results/NAME.json`` and print the goals as a table.

    Args:
        name: Name of the benchmark, the file's stem.
        results: everything measured.
        goals: one dict per goal: ``what``, ``goal``, ``value``, ``met`` (None: not judged), ``note``.

    Returns:
        The file written.

    Raises:
        InvalidInputError: a goal with other keys, or with a ``met`` that is not true, false or None.
    """
    for goal in goals:
        if set(goal) != GOAL_KEYS:
            raise InvalidInputError(
                f"a goal of benchmark {name}", expected=sorted(GOAL_KEYS), received=sorted(goal)
            )
        if goal["met"] not in (True, False, None):
            raise InvalidInputError(
                f"goal {goal['what']!r}", expected="met true, false or None", received=goal["met"]
            )
    document = {
        "benchmark": name,
        "date": machine.now(),
        "commit": _commit(),
        "machine": {**machine.describe_machine(), "gpus": machine.gpus()},
        "versions": machine.versions(),
        "goals": goals,
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    write_text(path, to_json(document) + "\n")
    write_text(RESULTS / "README.md", overview(RESULTS))
    Output().table(
        f"{name}: goals",
        ["what", "goal", "value", "verdict", "note"],
        [[goal["what"], goal["goal"], goal["value"], verdict(goal), goal["note"]] for goal in goals],
    )
    return path


def verdict(goal: dict[str, Any]) -> str:
    """What became of a goal, in words."""
    if goal["met"] is None:
        return "not measured here" if goal["value"] in ("", "-", None) else "not judged"
    return "met" if goal["met"] else "MISSED"


def overview(folder: Path) -> str:
    """Every goal of every committed result as one Markdown page."""
    lines = [
        "# What was measured",
        "",
        "Written by `benchmarks/record.py` from the JSON files beside it, which hold all that was measured,",
        'the machine and the versions. A goal that was missed says so; "not measured here" needs hardware',
        'or data that was not at hand; "not judged" has no goal, or fewer rows than its goal asks for.',
        "The paper's experiments: [docs/experiments](../../docs/experiments).",
    ]
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        computer, when = document["machine"], document["date"][:10]
        lines += [
            "",
            f"## [{path.stem}]({path.name})",
            "",
            f"{when}, {computer['processor']}, cores: {computer['cores']}, load: {computer['load']}.",
            "",
            "| what | goal | value | verdict | note |",
            "|---|---|---|---|---|",
        ]
        for goal in document["goals"]:
            cells = [goal["what"], goal["goal"], goal["value"], verdict(goal), goal["note"]]
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _commit() -> str:
    """Short hash of HEAD, with "+" when tracked files differ from it; "" outside a checkout."""
    root = RESULTS.parent
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")
