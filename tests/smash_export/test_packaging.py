"""What the repository promises about itself: floors for safety, links and commands that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import smash_export
from smash_export import cli

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_floors_for_safety() -> None:
    search = PROJECT["project"]["optional-dependencies"]["search"]
    assert "torch>=2.10" in search
    assert "onnx>=1.21" in search
    assert "pillow>=12.3" in PROJECT["project"]["dependencies"]


def test_torch_is_pinned_in_the_constraints_and_not_in_the_metadata() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", CONSTRAINTS["torch"]), (
        "a plain version: the index decides the build"
    )
    every = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        every += extra
    assert not [requirement for requirement in every if "==" in requirement]


def test_what_make_installs_is_pinned() -> None:
    makefile = (ROOT / "Makefile").read_text()
    match = re.search(r"^EXTRAS := (.+)$", makefile, re.MULTILINE)
    assert match
    extras = PROJECT["project"]["optional-dependencies"]
    names = {normal(name) for name in CONSTRAINTS}
    for extra in [*match[1].split(","), "test"]:
        for requirement in extras[extra]:
            name = normal(re.split(r"[\[><=;\s]", requirement)[0])
            assert name in names | {"smash-export"}, f"{name} of [{extra}] is not in constraints.txt"


def test_the_readme_has_every_extra_that_a_user_may_want() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"test", "dev"}
    (table,) = re.findall(r"\| extra \| brings \|\n(.+?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    named = [name for line in table.splitlines()[1:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert sorted(named) == sorted(extras)


def test_every_pattern_of_package_data_finds_a_file_and_every_data_file_is_shipped() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    files = {
        path
        for root in ("smash_base", "smash_search", "smash_targets", "smash_export")
        for path in (ROOT / root).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    for pattern in patterns:
        assert any(path.match(pattern) for path in files), f"{pattern} matches nothing"
    assert not [path for path in files if not any(map(path.match, patterns))], (
        "files that no wheel would hold"
    )


def test_every_package_says_that_it_is_typed_and_every_import_root_is_shipped() -> None:
    for name in PROJECT["tool"]["importlinter"]["root_packages"]:
        assert (ROOT / name / "py.typed").exists()
        assert f"{name}*" in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]


def test_the_changelog_knows_this_version() -> None:
    assert f"## {smash_export.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link) or link.startswith("#"):
            continue
        assert ((ROOT / document).parent / link.partition("#")[0]).exists(), f"{document} links to {link}"


def commands_in(document: str) -> list[list[str]]:
    """Lines of fenced shell blocks that call this program."""
    found = []
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").split(" #")[0].split()
            if words[:1] == ["smash-export"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_and_options_exist(document: str) -> None:
    import click

    context = click.Context(cli.cli)
    for words in commands_in(document):
        if words[0].startswith("-"):
            continue
        command = cli.cli.get_command(context, words[0])
        assert command is not None, f"{document}: no command {words[0]}"
        rest = words[1:]
        if isinstance(command, click.Group):
            assert rest[0] in command.commands, f"{document}: no command {' '.join(words[:2])}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{document}: {words[0]} has no option {word}"


def test_the_readme_names_every_command_and_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    for name in cli.COMMANDS:
        assert f"`smash-export {name}" in text, name
    for code, meaning in cli.EXIT_CODES.items():
        assert f"| {code} | {meaning}" in text


def test_the_readmes_two_commands_are_make_targets() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "check"):
        assert f"make {target}" in text
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
