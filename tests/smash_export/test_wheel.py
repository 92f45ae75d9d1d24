"""The wheel holds everything, and predicts from a bundle in an environment without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "smash_export": "smash_export",
    "search": "smash_search",
    "deploy_targets": "smash_targets",
    "smash_base": "smash_base",
}
pytestmark = [pytest.mark.wheel, pytest.mark.slow]


def run(*words: str | Path, code: int = 0, cwd: Path | None = None) -> str:
    """stdout of a command that has to leave with ``code``; nothing of this checkout is importable for it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    answer = subprocess.run(
        [str(word) for word in words], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert answer.returncode == code, f"{words}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout if code == 0 else answer.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for directory, package in FOLDERS.items():
        shutil.copytree(ROOT / directory, source / directory, ignore=shutil.ignore_patterns("__pycache__"))
        if package != directory:
            (source / package).symlink_to(directory)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", source, cwd=folder)
    (built,) = (folder / "dist").glob("smash_export-*.whl")
    return built


@pytest.fixture(scope="module")
def edge(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the base and ONNX Runtime, as on an edge device."""
    folder = tmp_path_factory.mktemp("edge")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    return folder / "bin"


def test_every_tracked_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    there = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{FOLDERS[name.partition('/')[0]]}/{name.partition('/')[2]}"
        for name in tracked
        if name and (ROOT / name).exists()
    }
    assert wanted, "run from a git checkout"
    assert not wanted - there


def test_the_wheel_names_licence_command_and_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    for extra in ("search", "cpu", "gpu", "openvino", "ncnn", "serve", "grpc", "ray"):
        assert f"Provides-Extra: {extra}\n" in text
    (entry,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert "smash-export = smash_export.cli:main" in archive.read(entry).decode()


def test_an_edge_device_predicts_without_torch(
    edge: Path, digits_bundle: Path, digits_images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, labels = digits_images
    paths = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(images[index, :, :, 0]).save(paths[-1])

    for module in ("torch", "onnx", "sklearn"):
        assert "No module named" in run(edge / "python", "-c", f"import {module}", code=1)
    program = edge / "smash-export"
    answer = json.loads(run(program, "predict", digits_bundle, *paths, "--json", cwd=tmp_path))
    text = json.dumps(answer)
    assert text.count(".png") >= len(paths)

    script = (
        "import sys, smash_export\n"
        f"with smash_export.load({str(digits_bundle)!r}) as classifier:\n"
        "    answers = classifier.predict(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "print(*(answer.label for answer in answers))\n"
    )
    words = run(edge / "python", "-c", script, *paths, cwd=tmp_path).split()
    agreement = np.mean([word == str(label) for word, label in zip(words, labels[:20], strict=True)])
    assert agreement >= 0.9


def interpreter(version: str) -> Path | None:
    """A Python of that version that makes environments: on the PATH, or one that pyenv keeps."""
    name = f"python{version}"
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [Path(shutil.which(name) or name), *sorted(kept.glob(f"{version}.*/bin/{name}"), reverse=True)]
    for place in places:
        # pyenv puts a script of that name on the PATH that may lead nowhere
        words = [place, "-c", "import ensurepip, ssl, venv"]
        if place.is_file() and subprocess.run(words, capture_output=True).returncode == 0:
            return place
    return None


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_newer_pythons_predict(
    version: str,
    wheel: Path,
    digits_bundle: Path,
    digits_images: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    run(python, "-m", "venv", tmp_path / "edge", cwd=tmp_path)
    pip = [tmp_path / "edge" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=tmp_path)
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for image, path in zip(digits_images[0], paths, strict=False):
        Image.fromarray(image[:, :, 0]).save(path)
    program = tmp_path / "edge" / "bin" / "smash-export"
    answers = json.loads(run(program, "predict", digits_bundle, *paths, "--json", cwd=tmp_path))
    assert json.dumps(answers).count(".png") >= len(paths)
    assert json.loads(run(program, "inspect", digits_bundle, "--json", cwd=tmp_path))["kind"] == "bundle"


def test_an_edge_device_can_be_asked_what_it_is(edge: Path, digits_bundle: Path, tmp_path: Path) -> None:
    program = edge / "smash-export"
    assert run(program, "--version", cwd=tmp_path).startswith("smash-export ")
    found = json.loads(run(program, "doctor", "--json", cwd=tmp_path))
    assert found["extras"]["cpu"]["ready"]
    assert not found["extras"]["search"]["ready"]
    assert json.loads(run(program, "inspect", digits_bundle, "--json", cwd=tmp_path))["kind"] == "bundle"
    rows = {
        row["target"]: row for row in json.loads(run(program, "targets", "--json", cwd=tmp_path))["targets"]
    }
    assert rows["onnxruntime"]["available"]
    assert not rows["torchscript"]["available"]
    assert "pip install" in rows["torchscript"]["install"]


def test_what_needs_the_search_extra_says_so_with_the_command(edge: Path, tmp_path: Path) -> None:
    line = run(edge / "smash-export", "inspect", _tiny_onnx(tmp_path), code=3, cwd=tmp_path)
    assert "pip install 'smash-export[search]'" in line
    assert len(line.strip().splitlines()) == 1


def _tiny_onnx(folder: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["logits"])],
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 2])],
        [value("logits", TensorProto.FLOAT, ["batch", 2])],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    return path
