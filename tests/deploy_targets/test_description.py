"""A target describes itself: no list elsewhere names it, and one file with one line adds one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.measure import machine
from smash_targets.base import get_target, target_names

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "deploy_targets" / "environments"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", target_names())
def test_every_target_says_what_others_must_know(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert target.extra in EXTRAS
    assert target.environment in ("", *(path.stem for path in ENVIRONMENTS.glob("*.txt")))
    if name not in ("trtexec", "baked"):  # a program on another machine
        assert target.modules
    assert all(target.modules.values()), "a module that no distribution brings"
    assert target.imports_torch == ("torch" in target.modules)
    for module in target.modules:
        assert cli._extra_of(module) in EXTRAS


def test_versions_of_every_runtime_stand_beside_results() -> None:
    recorded = machine.versions()
    for name in target_names():
        target = get_target(name)
        for distributions in target.modules.values():
            for distribution in distributions:
                assert recorded.get(distribution) == machine.version_of(distribution)
    assert "MNN" in recorded or machine.version_of("MNN") is None


MADE_UP = '''"""A runtime that these tests made up: ONNX Runtime under another name."""

from smash_targets.base import Target, get_target
from smash_targets.common import find_runtime


class MadeUpTarget(Target):
    name = "made_up"
    extra = "cpu"
    modules = {"markdown_it": ("markdown-it-py",)}

    def availability(self):
        return find_runtime(self, "pip install markdown-it-py")

    def compile(self, request, destination):
        return get_target("onnxruntime").compile(request, destination)

    def open(self, path, signature, options):
        return get_target("onnxruntime").open(path, signature, options)
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with one file and one line more."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("smash_base", "smash_search", "smash_targets", "smash_export"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "smash_targets" / "made_up.py").write_text(MADE_UP)
    base = tree / "smash_targets" / "base.py"
    line = '    "made_up": "smash_targets.made_up:MadeUpTarget",\n'
    text = base.read_text()
    assert text.count('    "onnxruntime": ') == 1
    base.write_text(text.replace('    "onnxruntime": ', f'{line}    "onnxruntime": '))
    return tree


def answer(tree: Path, *words: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "smash_export.cli", *words, "--json", "-q"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tree,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_one_file_and_one_line_add_a_target_to_every_command(
    tree: Path, digits_bundle: Path, tmp_path: Path
) -> None:
    rows = {row["target"]: row for row in answer(tree, "targets")["targets"]}
    assert rows["made_up"]["available"]
    diagnosis = answer(tree, "doctor")
    assert "made_up" in {row["target"] for row in diagnosis["targets"]}
    bundle = tmp_path / "bundle"
    shutil.copytree(digits_bundle, bundle)
    assert answer(tree, "compile", str(bundle), "--target", "made_up")["target"] == "made_up"
    (verified,) = answer(tree, "verify", str(bundle), "--target", "made_up")["files"]
    assert verified["status"] == "passed"
    (benched,) = answer(tree, "bench", str(bundle), "-t", "made_up", "--seconds", "0.05", "--rounds", "1")[
        "files"
    ]
    assert benched["status"] == "measured"
    compared = answer(tree, "compare", str(bundle), "-t", "made_up", "--seconds", "0.05", "--rounds", "1")
    assert "markdown-it-py" in compared["versions"]
    picture = tmp_path / "image.png"
    Image.fromarray(Bundle.open(bundle).samples().images[0].squeeze()).save(picture)
    predicted = answer(tree, "predict", str(bundle), str(picture), "--target", "made_up")
    assert predicted["target"] == "made_up"
    assert predicted["predictions"][0]["label"]


def test_a_runtime_in_an_environment_of_its_own_needs_numpy_and_nothing_else_of_ours() -> None:
    """Every target's module can be imported where neither Pillow nor torch nor onnx is."""
    code = (
        "import sys\n"
        "for name in ('PIL', 'torch', 'onnx', 'pydantic', 'click', 'rich'): sys.modules[name] = None\n"
        "import smash_targets.isolation.answers\n"
        "from smash_targets.base import get_target, target_names\n"
        "print(len([get_target(name) for name in target_names()]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert answer.stdout.strip() == str(len(target_names())), answer.stderr
