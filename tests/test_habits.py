"""Habits that can be counted: short functions, and types where a dictionary of anything would do.

The bounds are what was reached, with a little room; the aims are 1 % and 2. Lower them when you improve them.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("search", "deploy_targets", "smash_export", "smash_base")
LONG = 50  # lines of a function, signature and docstring included
LONG_SHARE = 0.025
UNTYPED_PER_1000 = 6.0


def sources() -> list[str]:
    return [path.read_text() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def test_functions_are_short() -> None:
    lengths = [
        (node.end_lineno or 0) - node.lineno + 1
        for text in sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(lengths) > 1000
    assert sorted(lengths)[len(lengths) // 2] <= 10
    assert sum(length > LONG for length in lengths) / len(lengths) <= LONG_SHARE


def test_records_are_types_and_not_dictionaries_of_anything() -> None:
    texts = sources()
    lines = sum(text.count("\n") for text in texts)
    untyped = sum(text.count("dict[str, Any]") for text in texts)
    assert 1000 * untyped / lines <= UNTYPED_PER_1000
