"""Settings: command line before environment before file before default; unknown keys are refused."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from smash_export import cli
from smash_export.cli.console import Output, common_options


@click.command()
@click.option("--steps", type=int, default=1)
@click.option("--max-latency", type=float, default=None)
@click.option("--tag", "tags", multiple=True)
@click.option("--name", default='a "quoted" name')
@common_options(writes=True)
def command(steps: int, max_latency: float | None, tags: tuple[str, ...], name: str, output: Output) -> None:
    """Print the settings that arrived."""
    output.result({"steps": steps, "max_latency": max_latency, "tags": tags, "dry_run": output.dry_run})


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "probe_command_of_a_test", sys.modules[__name__])
    monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_command_of_a_test:command", "Print settings."))


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "smash.toml"
    path.write_text('[probe]\nsteps = 3\nmax-latency = 2.5\ntag = ["a", "b"]\n')
    return str(path)


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert cli.run(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_precedence_is_command_line_then_environment_then_file_then_default(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(["probe", "--json"], capsys)["steps"] == 1
    assert answer(["probe", "--json", "--config", config], capsys)["steps"] == 3
    monkeypatch.setenv("SMASH_EXPORT_PROBE_STEPS", "5")
    assert answer(["probe", "--json", "--config", config], capsys)["steps"] == 5
    assert answer(["probe", "--json", "--config", config, "--steps", "7"], capsys)["steps"] == 7


def test_the_file_can_be_named_before_the_command_or_in_the_environment(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {"steps": 3, "max_latency": 2.5, "tags": ["a", "b"], "dry_run": False}
    assert answer(["--config", config, "probe", "--json"], capsys) == expected
    monkeypatch.setenv("SMASH_EXPORT_CONFIG", config)
    assert answer(["probe", "--json"], capsys) == expected


def test_switches_can_be_set_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smash.toml"
    path.write_text("[probe]\njson = true\ndry-run = true\n")
    assert answer(["probe", "--config", str(path)], capsys)["dry_run"] is True


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("steps = 1979-05-27", "dates in quotation marks"),
        ("max-latency = 07:32:00", "dates in quotation marks"),
        ("name = 1979-05-27T07:32:00Z", "dates in quotation marks"),
        ("dry-run = 1979-05-27", "dates in quotation marks"),
        ("tag = [1979-05-27]", "dates in quotation marks"),
        ("steps = 1.9", "a whole number; received 1.9"),
        ("steps = true", "a whole number; received true"),
        ("max-latency = true", "a number; received true"),
    ],
)
def test_a_value_of_a_type_that_the_option_does_not_take_is_refused(
    line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "smash.toml"
    path.write_text(f"[probe]\n{line}\n")
    assert cli.run(["probe", "--json", "--config", str(path)]) == 2
    assert expected in capsys.readouterr().err


def test_a_whole_number_may_be_written_with_an_exponent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "smash.toml"
    path.write_text("[probe]\nsteps = 2e3\n")
    assert answer(["probe", "--json", "--config", str(path)], capsys)["steps"] == 2000


def test_print_config_shows_values_and_sources_and_reads_back(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMASH_EXPORT_PROBE_STEPS", "5")
    arguments = ["probe", "--config", config, "--print-config"]
    assert cli.run(arguments) == 0
    text = capsys.readouterr().out
    table = tomllib.loads(text)["probe"]
    assert table == {
        "steps": 5,
        "max_latency": 2.5,
        "tag": ["a", "b"],
        "name": 'a "quoted" name',
        "quiet": False,
    }
    assert "steps = 5  # environment" in text
    assert "# config file" in text
    assert "# default" in text

    again = tmp_path / "again.toml"
    again.write_text(text)
    monkeypatch.delenv("SMASH_EXPORT_PROBE_STEPS")
    assert answer(["probe", "--json", "--config", str(again)], capsys)["steps"] == 5
    settings = answer([*arguments, "--json"], capsys)["settings"]
    assert settings["max_latency"] == {"value": 2.5, "source": "config file"}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[probe]\nstpes = 3\n", 2, "Did you mean steps?"),
        ("[prob]\nsteps = 3\n", 2, "Did you mean [probe]?"),
        ("steps = 3\n", 2, "one table per command"),
        ("[probe]\nsteps = 'many'\n", 2, "many"),
        ("[probe\n", 6, "not valid TOML"),
        ("[probe]\nconfig = 'other.toml'\n", 2, "does not have"),
        ("[probe]\ntag = 'a'\n", 2, "sets 'tag' of [probe] to what it does not take; expected a list"),
        ("[probe]\nsteps = [3]\n", 2, "'steps' of [probe] to what it does not take; expected one value; rec"),
        ("[probe]\nname = ['a', 'b']\n", 2, "received ['a', 'b']"),
        ("[probe.name]\na = 1\n", 2, "expected one value; received {'a': 1}"),
    ],
)
def test_a_wrong_file_is_refused_with_what_was_meant(
    tmp_path: Path, text: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "smash.toml"
    path.write_text(text)
    for arguments in (["probe", "--config", str(path)], ["--config", str(path), "probe"]):
        assert cli.run(arguments) == code
        captured = capsys.readouterr()
        assert words in captured.err
        assert "many" in words or str(path) in captured.err
        assert captured.out == ""


def test_a_command_of_a_group_has_a_table_inside_that_of_the_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = tmp_path / "smash.toml", ["latency", "build", "kit.json", "table.json", "--print-config"]
    named = (["--config", str(path), *words], [*words, "--config", str(path)])
    path.write_text("[latency.build]\nseconds = 2\ndevice-host = 'pi'\n")
    for arguments in named:
        settings = answer([*arguments, "--json"], capsys)["settings"]
        assert settings["seconds"] == {"value": 2.0, "source": "config file"}
        assert settings["device_host"] == {"value": "pi", "source": "config file"}
    assert cli.run([*named[0]]) == 0
    printed = tomllib.loads(capsys.readouterr().out)["latency"]["build"]
    assert (printed["seconds"], printed["device_host"]) == (2.0, "pi")
    for wrong in ("seconds = 2", "build = 2", "[latency.biuld]\nseconds = 2"):
        path.write_text(f"[latency]\n{wrong}\n")
        for arguments in named:
            assert cli.run(arguments) == 2
            assert "[latency.build]" in capsys.readouterr().err


def test_a_missing_file_is_invalid_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["probe", "--config", str(tmp_path / "none.toml")]) == 6
    assert cli.run(["probe", "--config", str(tmp_path)]) == 6
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert cli.run(["probe", "--config", str(tmp_path / "binary.toml")]) == 6
    (tmp_path / "large.toml").write_text("#" * (2**20 + 1))
    assert cli.run(["probe", "--config", str(tmp_path / "large.toml")]) == 6
    assert "at most 1048576 bytes" in capsys.readouterr().err


def test_what_is_no_number_is_refused_as_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["probe", "--json", "--max-latency", "nan"]) == 2
    assert "option --max-latency; expected a number; received nan" in capsys.readouterr().err
