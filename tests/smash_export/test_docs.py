"""The commands of docs/how-to run as they are written, on a small bundle and with small settings."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_export import cli

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted(path.name for path in (ROOT / "docs" / "how-to").glob("*.md") if path.name != "README.md")
ENDLESS = {"serve"}  # its own tests start and stop it

# The environment stands before the defaults: what takes minutes by default takes seconds here.
SMALL = {
    "SMASH_EXPORT_SEARCH_SPACE": "tiny",
    "SMASH_EXPORT_SEARCH_STEPS": "4",
    "SMASH_EXPORT_SEARCH_CANDIDATES": "4",
    "SMASH_EXPORT_SEARCH_FINALISTS": "2",
    "SMASH_EXPORT_SEARCH_RUNGS": "1",
    "SMASH_EXPORT_SEARCH_BASELINE": "none",
    "SMASH_EXPORT_LATENCY_KIT_NETWORKS": "10",
    "SMASH_EXPORT_LATENCY_BUILD_SECONDS": "0.02",
    "SMASH_EXPORT_FREEZE_EPOCHS": "1",
    "SMASH_EXPORT_BENCH_SECONDS": "0.1",
    "SMASH_EXPORT_COMPARE_SECONDS": "0.1",
}

pytestmark = pytest.mark.slow


def blocks(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks of these languages; those in a list are indented."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [
        re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        for indent, language, body in found
        if language in languages
    ]


def commands(text: str) -> list[list[str]]:
    """Command lines of this program, in order."""
    lines = "\n".join(blocks(text, "sh", "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["smash-export"]]


def module_name(script: str) -> str:
    """Name of the file that a block of Python is, which its first line says; empty for a script."""
    named = re.match(r"# (\w+\.py)\n", script)
    return named[1] if named else ""


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_does_what_it_says(
    guide: str,
    digits_bundle_copy: Path,
    digits_images: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "how-to" / guide).read_text()
    lines = commands(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a module of the guide's is looked for here
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    Image.fromarray(digits_images[0][0, :, :, 0]).save("image.png")
    for settings in blocks(text, "toml"):
        Path("smash.toml").write_text(settings)
    scripts = blocks(text, "python")
    for module in filter(module_name, scripts):
        Path(module_name(module)).write_text(module)
    if not any(words[0] == "freeze" for words in lines):  # else the guide makes it
        digits_bundle_copy.rename("digits-bundle")
    for words in lines:
        if words[0] in ENDLESS:
            continue
        code = cli.run(words)
        captured = capsys.readouterr()
        assert code == 0, f"smash-export {shlex.join(words)}\n{captured.err}"
    for script in itertools.filterfalse(module_name, scripts):
        exec(compile(script, f"{guide} (python block)", "exec"), {})


def test_the_site_has_every_page_and_every_function_of_the_package() -> None:
    import smash_export

    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(pages | {"index.md"})
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    wanted = {
        place.replace(":", ".")
        for name, place in smash_export._PLACES.items()
        if name in smash_export.__all__
    }
    assert sorted(named) == sorted(wanted)
