"""The command line as a whole: cheap to start, one line per error, documented exit codes."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from smash_base import errors
from smash_export import cli
from smash_export.cli.groups import Grouped

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "sklearn",
    "scipy",
    "matplotlib",
    "pydantic",
    "rich",
    "numpy",
}


def imported_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    script = f"import sys\n{code}\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


def test_help_imports_nothing_heavy_and_names_every_command_and_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Time depends on the machine's load; what is imported does not, and decides the time.
    assert not imported_by("from smash_export.cli import run; run(['--help'])") & HEAVY
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, line) in cli.COMMANDS.items():
        assert name in text
        assert line.split()[0] in text
    for code, meaning in cli.EXIT_CODES.items():
        assert f"{code} " in text
        assert meaning in text


@pytest.mark.parametrize("module", ["smash_export", "smash_export.cli", "smash_export.cli.console"])
def test_importing_the_package_costs_nothing(module: str) -> None:
    assert not imported_by(f"import {module}") & HEAVY


def test_the_inference_api_imports_no_torch_and_no_onnx() -> None:
    code = "import smash_export; smash_export.load; smash_export.Bundle"
    assert not imported_by(code) & {"torch", "onnx", "onnxruntime", "openvino", "scipy", "sklearn"}


@pytest.mark.parametrize("module", ["smash_export", "smash_export.cli"])
def test_python_dash_m_is_the_same_program(module: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("smash-export ")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_json_and_a_description(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert isinstance(command, click.Command)
    assert command.help, "the docstring is the help"
    if isinstance(command, click.Group):
        leaves = [command.commands[key] for key in command.commands]
    else:
        leaves = [command]
    for leaf in leaves:
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert {"--json", "--quiet", "--config", "--print-config"} <= options, leaf.name
    assert cli.run([name, "--help"]) == 0


MANY = 16  # options, with the six of every command


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_the_help_of_a_command_with_many_options_groups_them(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    if sum(isinstance(parameter, click.Option) for parameter in command.params) < MANY:
        return
    assert isinstance(command, Grouped)
    assert cli.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    for heading in command.groups:
        assert f"\n{heading}:\n" in text


RIDDLE = re.compile(r"(Of|For|At|In|By|From|With|On|To|As|How|Where|Which|When|Whose)\b")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_the_help_of_every_option_names_the_thing(name: str) -> None:
    """A noun phrase or a sentence: "Random seed of the search", not "Of everything random"."""
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    for leaf in command.commands.values() if isinstance(command, click.Group) else [command]:
        for option in leaf.params:
            if isinstance(option, click.Option):
                assert option.help, f"{leaf.name} {option.opts} has no help"
                assert not RIDDLE.match(option.help), f"{leaf.name} {option.opts}: {option.help}"


# A command that writes can be asked what it would do.
WRITES = [
    "search",
    "freeze",
    "train",
    "compile",
    "adopt",
    "serve",
    "triton",
    "web",
    "reproduce",
    "trtexec",
    "latency",
]


@pytest.mark.parametrize("name", [name for name in WRITES if name in cli.COMMANDS])
def test_commands_that_write_have_a_dry_run(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    leaves = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    options = {option for leaf in leaves for parameter in leaf.params for option in parameter.opts}
    assert "--dry-run" in options or name == "serve"


def test_an_unknown_command_is_usage_and_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["docter"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Did you mean doctor?" in captured.err


def test_an_unknown_option_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--jsno"]) == 2
    assert "--json" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command ``fail`` that raises what the test puts into the list."""
    raised: list[BaseException] = []

    @click.command()
    def command() -> None:
        raise raised[0]

    module = type(sys)("failing_command_of_a_test")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "fail", (f"{module.__name__}:command", "Fail."))
    monkeypatch.delenv("SMASH_EXPORT_DEBUG", raising=False)
    return raised


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.UsageError("flags contradict"), 2, "flags contradict"),
        (errors.MissingRuntimeError("no runtime", hint="pip install it"), 3, "pip install it"),
        (errors.VerificationError("differs", expected="1e-4", received=0.2), 4, "received 0.2"),
        (errors.GateError("too slow"), 5, "too slow"),
        (errors.InvalidInputError("bad file"), 6, "bad file"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            3,
            "pip install 'smash-export[search]'",
        ),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1, "internal error"),
        (OSError(errno.ENOSPC, "No space left on device", "weights.bin"), 1, "disk full"),
        (OSError(errno.EFBIG, "File too large"), 1, "larger than its file system or ulimit -f allows"),
        (PermissionError(errno.EACCES, "Permission denied", "/proc/x"), 6, "/proc/x cannot be used"),
        (FileExistsError(errno.EEXIST, "File exists", "a/file"), 6, "a/file cannot be used: File exists"),
        (OSError(errno.EIO, "Input/output error"), 1, "internal error"),
        (MemoryError(), 1, "out of memory"),
        (ValueError("a defect\nover two lines"), 1, "internal error, ValueError: a defect over two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_error_is_one_line_on_stderr_and_its_exit_code(
    failing: list[BaseException],
    error: BaseException,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    assert cli.run(["fail"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert "Traceback" not in captured.err
    assert code in cli.EXIT_CODES


def test_the_traceback_is_shown_with_debug_only(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(ValueError("a defect"))
    assert cli.run(["--debug", "fail"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SMASH_EXPORT_DEBUG", "1")
    assert cli.run(["fail"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_every_error_type_has_a_documented_exit_code() -> None:
    kinds = [errors.SmashError, *errors.SmashError.__subclasses__()]
    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 5, 6}
    assert {kind.exit_code for kind in kinds} <= set(cli.EXIT_CODES)


OF_OTHER_PROGRAMS = {"--onnx", "--head", "--address", "--upgrade"}  # trtexec, ray, pip


def test_what_errors_advise_are_options_that_there_are() -> None:
    there: set[str] = {"--debug", "--config"}
    waiting: list[click.Command] = [cli.cli]
    while waiting:
        command = waiting.pop()
        context = click.Context(command)
        if isinstance(command, click.Group):
            found = (command.get_command(context, name) for name in command.list_commands(context))
            waiting += [entry for entry in found if entry is not None]
        for parameter in command.params:
            there.update(parameter.opts, parameter.secondary_opts)
    advised = {}
    for package in ("smash_base", "search", "deploy_targets", "smash_export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg in ("hint", "expected"):
                    words = re.findall(r"(?<![\w-])--[a-z][a-z-]+", ast.unparse(node.value))
                    advised |= dict.fromkeys(words, f"{path.name}:{node.lineno}")
    assert "--data" in advised
    unknown = {word: place for word, place in advised.items() if word not in there | OF_OTHER_PROGRAMS}
    assert not unknown


@pytest.mark.parametrize("words", ["completion bash", "targets"])
def test_a_closed_stdout_does_not_change_how_a_command_ends(words: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m smash_export.cli {words} >&-"
    answer = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("words", ["--help", "completion bash", "targets"])
def test_a_reader_that_leaves_ends_a_command_as_it_ends_others(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "smash_export.cli", *words.split()]
        answer = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (answer.returncode, answer.stderr) == (141, "")
    assert answer.returncode in cli.EXIT_CODES


def test_a_real_full_disk_is_reported_as_such() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "smash_export.cli", "completion", "bash"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert answer.returncode == 1
    assert "disk full" in answer.stderr
    assert "Traceback" not in answer.stderr


WITHOUT_ROOM = """
mount -t tmpfs -o size=8k tmpfs "$1"
TMPDIR="$1"; export TMPDIR
code=0
"$2" -m smash_export.cli $3 || code=$?
exit $code
"""


@pytest.mark.parametrize(
    "words",
    ["bench {} --target onnxruntime", "compare {} --target onnxruntime", "bake {} --runtime torchscript"],
)
def test_a_full_disk_of_temporary_files_is_reported_as_such(
    words: str, digits_bundle_copy: Path, tmp_path: Path
) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    (tmp_path / "small").mkdir()
    arguments = [str(tmp_path / "small"), sys.executable, f"{words.format('bundle')} --quiet"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", WITHOUT_ROOM, "sh", *arguments],
        cwd=digits_bundle_copy.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr[-1000:]
    assert "disk full" in done.stderr


WITHOUT_TMPDIR = """
for folder in /tmp /var/tmp /usr/tmp; do
    [ ! -d $folder ] || { mount --rbind $folder $folder && mount -o remount,ro,bind $folder; }
done
cd /proc
code=0
"$1" -m smash_export.cli verify "$2" --quiet || code=$?
exit $code
"""


def test_no_folder_for_temporary_files_is_reported_with_the_way_out(digits_bundle: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", WITHOUT_TMPDIR, "sh", sys.executable, str(digits_bundle)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr[-1000:]
    assert "TMPDIR=" in done.stderr.splitlines()[-1]


def test_completion_completes_commands() -> None:
    environment = {
        **os.environ,
        "_SMASH_EXPORT_COMPLETE": "bash_complete",
        "COMP_WORDS": "smash-export doc",
        "COMP_CWORD": "1",
    }
    answer = subprocess.run(
        [sys.executable, "-c", "from smash_export.cli import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "doctor" in answer.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["shell"] == shell
    assert "_SMASH_EXPORT_COMPLETE" in answer["script"]
