"""An environment as an edge device has it: this program, its base and ONNX Runtime, no PyTorch and no onnx.

The packages are links to those of the environment that runs the tests, so that it is made in a moment.
"""

from __future__ import annotations

import importlib.metadata
import re
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
WANTED = ("numpy", "pillow", "click", "rich", "pydantic", "onnxruntime")
OWN = {
    "smash_export": "smash_export",
    "smash_base": "smash_base",
    "smash_search": "search",
    "smash_targets": "deploy_targets",
}


def make_edge_environment(folder: Path) -> Path:
    """The program ``smash-export`` of a new environment in ``folder``."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in _with_requirements(WANTED):
        distribution = importlib.metadata.distribution(name)
        tops = {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    for name, source in OWN.items():
        (site / name).symlink_to(ROOT / source)
    program = folder / "bin" / "smash-export"
    program.write_text(
        f"#!{folder / 'bin' / 'python'}\nimport sys\nfrom smash_export.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return program


def _with_requirements(names: tuple[str, ...]) -> set[str]:
    """Names of these distributions and of all that they need without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found
