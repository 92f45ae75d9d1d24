"""Adding a kind of operation touches five files, and the tests say which of them was forgotten.

CONTRIBUTING names the five. Here a kind is added to a copy of the packages: a last 1x1 convolution ``again``,
from an op's output to its output. Cost, limits, folding, supernet and fake quantisation must know it by
themselves.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPACE = "search/space"
FIVE: dict[str, list[tuple[str, str]]] = {
    f"{SPACE}/architecture.py": [
        ("    squeeze: int = 0\n", "    again: bool = False\n"),
        (
            "bottleneck, self.units, ones, ones, generated=True)\n",
            "        if self.again:\n"
            '            yield Convolution("again", self.units, self.units, ones, ones)\n',
        ),
        (
            '{"squeeze": op.squeeze} if op.squeeze else {}\n',
            '    beyond |= {"again": True} if op.again else {}\n',
        ),
        ('{"gate", "reduce", "project", "squeeze"', ', "again"'),
        ('        squeeze=op.get("squeeze", 0),\n', '        again=op.get("again", False),\n'),
    ],
    f"{SPACE}/space.py": [
        ("    squeeze: bool = False\n", "    again: bool = False\n"),
        (
            "            squeeze=squeeze,\n",
            '            again=self.again and draws.chance(f"{where}.again", 0.5),\n',
        ),
        (
            "convs, gate, op.reduce, project, squeeze",
            ', op.again != (self.again and draws.chance(f"{where}.again?", rate))',
        ),
        (
            'need(self.squeeze or not op.squeeze, f"{where}.squeeze", "none", op.squeeze)\n',
            '        need(self.again or not op.again, f"{where}.again", "none", op.again)\n',
        ),
        ('project="none", squeeze=squeeze', ", again=self.again"),
    ],
    f"{SPACE}/encoding.py": [
        ('            "squeeze": 1,\n', '            "again": 1,\n'),
        ('marks.append(at["squeeze"])\n', '        if op.again:\n            marks.append(at["again"])\n'),
    ],
    "search/model/interpreter.py": [
        (
            'x = source.normalise(f"{where}.norm_out", x)\n',
            '    if op.again:\n        x = _convolve(x, source.affine(f"{where}.again"), ones)\n',
        ),
    ],
    "smash_export/export/onnx_writer.py": [
        (
            'weights[f"{name}.project.weight"], weights[f"{name}.project.bias"]\n        )\n',
            "    if op.again:\n"
            "        parts = (weights[f'{name}.again.{part}'] for part in ('weight', 'bias'))\n"
            "        x = writer.convolution(x.name, f'{name}.again', *parts)\n",
        ),
    ],
}
OF_THE_TESTS = {
    "tests/search/legal.py": [
        ('RICH = replace(TINY, name="rich"', ", again=True"),
        ("                    squeeze=squeeze,\n", "                    again=draw(st.booleans()),\n"),
    ],
}
# Hypothesis looks for one example that fails and does not make it small.
SHORT = """
from hypothesis import Phase
settings.register_profile("short", settings.get_profile("repeatable"), phases=[Phase.generate])
settings.load_profile("short")
"""
IN_SPACE = "tests/search/space/test_space.py::test_every_draw_is_inside_the_space"
IN_JSON = "tests/search/space/test_architecture.py::test_a_hand_written_architecture_survives_json"
IN_COST = "tests/search/space/test_cost.py::test_parameters_and_macs_are_those_of_a_forward_pass"
IN_CODE = "tests/search/space/test_encoding.py::test_ops_that_differ_in_any_choice_have_different_codes"
IN_FOLDING = "tests/search/model/test_interpreter.py::test_folding_is_exact"
IN_SUPERNET = (
    "tests/search/model/test_supernet.py::test_a_frozen_network_equals_the_forward_pass_that_was_scored"
)
IN_QAT = (
    "tests/search/model/test_fake_quantisation.py::test_rounding_is_close_to_the_network_and_has_few_values"
)
IN_ONNX = "tests/smash_export/export/test_onnx_writer.py::test_drawn_networks"


def changed(text: str, insertions: list[tuple[str, str]]) -> str:
    """The text with something more behind each place, which must be there once."""
    for place, more in insertions:
        assert text.count(place) == 1, place
        text = text.replace(place, place + more)
    return text


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with the new kind of operation, and the tests that judge it."""
    tree = tmp_path_factory.mktemp("tree")
    nothing_old = shutil.ignore_patterns("__pycache__", "environments")
    for folder in ("search", "deploy_targets", "smash_base", "smash_export", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=nothing_old)
    for link, folder in (("smash_search", "search"), ("smash_targets", "deploy_targets")):
        (tree / link).symlink_to(folder)
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
    for name, insertions in {**FIVE, **OF_THE_TESTS}.items():
        (tree / name).write_text(changed((ROOT / name).read_text(), insertions))
    with open(tree / "tests" / "conftest.py", "a") as file:
        file.write(SHORT)
    return tree


def outcome(tree: Path, *tests: str) -> tuple[int, str]:
    """Exit code and words of pytest in the tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_contributing_names_the_five_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Add a kind of operation")[2].partition("\n## ")[0]
    named = re.findall(r"^\d\. `([a-z_/]+\.py)`", section, re.MULTILINE)
    assert named == list(FIVE)


@pytest.mark.slow
def test_five_files_add_a_kind_of_operation(tree: Path) -> None:
    tests = (IN_SPACE, IN_JSON, IN_COST, IN_CODE, IN_FOLDING, IN_SUPERNET, IN_QAT, IN_ONNX)
    code, said = outcome(tree, *tests)
    assert code == 0, said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forgotten", "test", "words"),
    [
        (f"{SPACE}/space.py", IN_SPACE, "unexpected keyword argument 'again'"),
        (f"{SPACE}/encoding.py", IN_CODE, "{'Op.again'} not in the code"),
        ("search/model/interpreter.py", IN_COST, "test_parameters_and_macs_are_those_of_a_forward_pass"),
        ("smash_export/export/onnx_writer.py", IN_ONNX, "assert difference <= 1e-5"),
    ],
)
def test_a_forgotten_file_is_found(tree: Path, forgotten: str, test: str, words: str) -> None:
    """Without the first of the five there is no new kind to forget."""
    whole = (tree / forgotten).read_text()
    shutil.copyfile(ROOT / forgotten, tree / forgotten)
    try:
        code, said = outcome(tree, test)
    finally:
        (tree / forgotten).write_text(whole)
    assert code
    assert words in said, said[-3000:]
