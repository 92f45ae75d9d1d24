"""Every command is one function of the same name with the same defaults, and importing them is light."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import smash_export
from smash_export import cli

# What is several commands, a group of three, TensorRT's tools, or a script for shells.
NOT_FUNCTIONS = {"run", "train", "latency", "check", "trtexec", "trtexec-results", "completion"}
# What a command shows of its own, or names otherwise because a user types it.
OWN_OPTIONS = {"output", "config", "as_json", "quiet", "print_config", "dry_run", "executor"}


def command_of(name: str) -> click.Command:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in NOT_FUNCTIONS])
def test_every_command_is_a_function_with_types_a_docstring_and_the_same_defaults(name: str) -> None:
    function = getattr(smash_export, name)
    assert function.__doc__, name
    parameters = inspect.signature(function).parameters
    assert all(parameter.annotation is not parameter.empty for parameter in parameters.values()), name
    command = command_of(name)
    without_options = command.make_context(name, [], resilient_parsing=True).params
    for option in command.params:
        parameter = parameters.get(option.name or "")
        if isinstance(option, click.Argument) or parameter is None or option.name in OWN_OPTIONS:
            continue
        if parameter.default is parameter.empty:
            continue  # what a function must be told, a command may guess
        default = without_options[option.name or ""]
        assert settled(default) == settled(parameter.default), f"{name}: {option.name}"


def test_whatever_is_a_path_may_be_text() -> None:
    for name in smash_export.__all__:
        if not inspect.isfunction(function := getattr(smash_export, name)):
            continue
        for parameter in inspect.signature(function).parameters.values():
            words = re.findall(r"\w+", parameter.annotation)
            assert "str" in words or not {"Path", "Bundle"} & set(words), f"{name}: {parameter}"


def settled(value: Any) -> Any:
    return tuple(value) or None if isinstance(value, list | tuple) else value


def test_what_is_offered_is_what_type_checkers_and_star_imports_see() -> None:
    tree = ast.parse(Path(smash_export.__file__).read_text())
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smash_")
        for alias in node.names
    }
    offered = set(smash_export.__all__) - {"__version__"}
    assert typed == offered == set(smash_export._PLACES)
    assert offered <= set(dir(smash_export))


def test_looking_at_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, smash_export; dir(smash_export); smash_export.inspect; smash_export.targets;"
        "print({'torch', 'onnx', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        smash_export.serch  # noqa: B018


def test_a_bundle_is_verified_measured_and_used_from_python(digits_bundle_copy: Path) -> None:
    verification = smash_export.verify(digits_bundle_copy, target="onnxruntime", isolated=False)
    assert [report.status for report in verification.files] == ["passed"]
    assert verification.to_json()["images"] == len(verification.samples)
    evaluation = smash_export.evaluate(digits_bundle_copy)
    assert evaluation.accuracy == verification.files[0].parity.accuracy  # type: ignore[union-attr]
    benchmark = smash_export.bench(digits_bundle_copy, targets=["onnxruntime"], seconds=0.05, rounds=1)
    assert benchmark.files[0].status == "measured"
    manifest = smash_export.Bundle.open(digits_bundle_copy).manifest
    assert manifest.records["bench"]["settings"]["rounds"] == 1  # type: ignore[index, call-overload]
    images = list(verification.samples.images[:3])
    answers = list(smash_export.predict(digits_bundle_copy, images, 1))
    logits = verification.samples.logits[:3]
    assert [answer.index for answer in answers] == logits.argmax(axis=1).tolist()  # type: ignore[union-attr]


def test_a_repository_for_triton_is_written_from_an_address_and_from_an_opened_bundle(
    digits_bundle: Path, tmp_path: Path
) -> None:
    (model,) = smash_export.triton(str(digits_bundle), str(tmp_path / "models"))
    assert model == tmp_path / "models" / digits_bundle.name
    assert (model / "1" / "model.onnx").is_file()
    opened = smash_export.Bundle.open(str(digits_bundle))
    assert smash_export.triton(opened, str(tmp_path / "models"), force=True) == [model]


def test_addresses_of_bundles_are_served(digits_bundle: Path) -> None:
    for module in ("uvicorn", "starlette", "prometheus_client", "python_multipart"):
        pytest.importorskip(module)
    code = (
        "import multiprocessing, os, signal, sys\n"
        "import smash_export\n"
        "from smash_export.server.run import Settings\n"
        "def ready(addresses):\n"
        "    print(addresses.http, len(multiprocessing.active_children()))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "settings = Settings(port=0, grpc_port=None, drain_delay=0, workers=int(sys.argv[2]))\n"
        "smash_export.serve(eval(sys.argv[1]), settings, ready)\n"
    )
    for workers, bundles in (1, str(digits_bundle)), (2, [f"digits={digits_bundle}", digits_bundle]):
        words = [sys.executable, "-c", f"from pathlib import PosixPath\n{code}", repr(bundles), str(workers)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        address, processes = done.stdout.split()
        assert address.startswith("http://127.0.0.1:")
        assert int(processes) == (workers if workers > 1 else 0)
