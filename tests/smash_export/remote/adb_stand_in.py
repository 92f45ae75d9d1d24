"""A stand-in for ``adb``: its command line over folders of this machine. Labelled so; no phone is behind it.

Knows ``-s SERIAL push|pull|shell`` with adb's exit codes and words, and keeps the device's files below
$ADB_STAND_IN, which stands for its root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    root = Path(os.environ["ADB_STAND_IN"])
    assert words[0] == "-s"
    if words[1] != "SERIAL":
        print(f"adb: device '{words[1]}' not found", file=sys.stderr)
        return 1
    verb, rest = words[2], words[3:]
    if verb == "shell":
        inside = re.compile(f"(?<!{re.escape(str(root))})/data/local/tmp")
        script = inside.sub(str(root / "data/local/tmp"), " ".join(rest))
        (root / "data/local/tmp").mkdir(parents=True, exist_ok=True)
        return subprocess.run(["sh", "-c", script]).returncode
    source, destination = (Path(path) for path in rest)
    if not source.exists():
        print(f"adb: error: cannot stat '{source}': No such file or directory", file=sys.stderr)
        return 1
    if source.is_dir():
        shutil.copytree(source, destination)
    else:
        shutil.copy(source, destination)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
