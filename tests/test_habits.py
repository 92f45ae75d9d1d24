"""Habits that can be counted: short functions, records that are types, few folders and layers, sentences.

The bounds are the goals; what is better than them may get worse up to them, and no further.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("search", "deploy_targets", "smash_export", "smash_base")
LONG = 50  # lines of a function, signature and docstring included
LONG_SHARE = 0.01
UNTYPED_PER_1000 = 2.0
MOST_ENTRIES = 15
MOST_LAYERS = 7

UNTYPED = "dict[str, Any]"
ALIAS = re.compile(r"^(\w+)(?:: TypeAlias)? = .*dict\[str, Any\]", re.MULTILINE)
DANGLING = re.compile(r"^[\w*`]+(, [\w*`]+)*: (of|that|to|why|before|in order)\b")


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    return {path: path.read_text() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def test_functions_are_short(sources: dict[Path, str]) -> None:
    lengths = [
        (node.end_lineno or 0) - node.lineno + 1
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(lengths) > 1000
    assert sorted(lengths)[len(lengths) // 2] <= 10
    assert sum(length > LONG for length in lengths) / len(lengths) <= LONG_SHARE


def test_records_are_types_and_not_dictionaries_of_anything(sources: dict[Path, str]) -> None:
    lines = sum(text.count("\n") for text in sources.values())
    assert 1000 * sum(map(untyped, sources.values())) / lines <= UNTYPED_PER_1000


def untyped(text: str) -> int:
    """Dictionaries of anything; another name for one counts wherever it is used."""
    named = sum(len(re.findall(rf"\b{alias}\b", text)) - 1 for alias in ALIAS.findall(text))
    return text.count(UNTYPED) + named


def test_another_name_for_a_dictionary_of_anything_counts() -> None:
    assert untyped("Row = dict[str, Any]\ndef read(row: Row) -> list[Row]: ...") == 3


def test_the_product_has_few_folders_and_layers() -> None:
    entries = [path for path in (ROOT / "smash_export").iterdir() if path.name[:2] not in ("__", "py")]
    assert 10 < len(entries) <= MOST_ENTRIES
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [
        contract["layers"] for contract in contracts if contract.get("containers") == ["smash_export"]
    ]
    assert len(layers) <= MOST_LAYERS
    named = {name for layer in layers for name in re.split(r"[ :|]+", layer)}
    assert named == {path.stem for path in entries}, "the contract leaves nothing out"


def test_no_docstring_and_no_entry_of_one_begins_in_the_middle(sources: dict[Path, str]) -> None:
    dangling = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path, text in sources.items()
        for docstring in docstrings(text)
        for number, line in enumerate(docstring.split("\n"))
        if DANGLING.match(line.strip()) or (number == 0 and line.startswith("Of "))
    ]
    assert not dangling


def docstrings(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
