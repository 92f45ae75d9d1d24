"""Runtimes that cannot share an environment with the others: where theirs is, and targets that use it.

``smash-export doctor --environment NAME`` prints the commands that create ``.venv-NAME`` from the pins in
``deploy_targets/environments/NAME.txt``, which is part of the package. It is looked for, in this order: the
interpreter named by SMASH_EXPORT_NAME_PYTHON; this interpreter, if it has the packages; ``.venv-NAME`` in the
current folder; ``.venv-NAME`` beside this source tree.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smash_base.errors import MissingRuntimeError, UsageError
from smash_targets.base import (
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Precision,
    Session,
    SessionOptions,
    Target,
)
from smash_targets.common import fixed_batch, has_module

PINS = Path(__file__).resolve().parents[1] / "environments"
_PROBE = (
    "import importlib.metadata, importlib.util, sys;"
    "sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[2].split(','))"
    " or print(importlib.metadata.version(sys.argv[1])))"
)


class EnvironmentTarget(Target):
    """A target that works in this process where its packages are, and in a child elsewhere.

    Class attributes:
        modules: Modules that :meth:`open_here` imports; the first one's version is the runtime's.
        compiler: modules that :meth:`compile_here` imports.
        install: the command for the runtime alone, where that shares an environment with the others.
    """

    compiler: tuple[str, ...]
    options = ("batch",)
    install: str = ""

    @property
    def runtime(self) -> tuple[str, ...]:
        """Names of the modules that opening a file imports."""
        return tuple(self.modules)

    @property
    def distribution(self) -> str:
        """The distribution whose version is the runtime's."""
        return next(iter(self.modules.values()))[0]

    def compile_here(self, request: CompileRequest, destination: Path) -> CompileResult:
        """:meth:`Target.compile` with the packages at hand."""
        raise NotImplementedError

    def open_here(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        """:meth:`Target.open` with the packages at hand."""
        raise NotImplementedError

    def availability(self) -> Availability:
        """Whether files can be opened; compiling may need more, which it says itself."""
        if _has(self.runtime):
            return Availability(
                True, version=importlib.metadata.version(self.distribution), reason=self._compiling()
            )
        found = self._elsewhere(self.runtime)
        if found:
            return Availability(True, version=found[1], reason=self._compiling())
        return Availability(
            False,
            reason=f"neither this environment nor one of its own has {self.distribution}",
            install=self.install or command_for(self.environment),
        )

    def _compiling(self) -> str:
        """What compiling lacks where files can be opened; "" when nothing."""
        if _has(self.compiler) or self._elsewhere(self.compiler):
            return ""
        return f"runs files; compiling needs an environment: {command_for(self.environment)}"

    def check_options(
        self, options: Mapping[str, Any], signature: ModelSignature, precision: Precision
    ) -> None:
        super().check_options(options, signature, precision)
        fixed_batch(options, signature)

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        self.check_request(request)
        if _has(self.compiler):
            return self.compile_here(request, destination)
        from smash_targets.isolation.parent import compile_isolated

        return compile_isolated(self.name, request, destination, python=self._python(self.compiler))

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        if _has(self.runtime):
            return self.open_here(path, signature, options)
        from smash_targets.isolation.parent import open_isolated

        python = self._python(self.runtime)
        return open_isolated(self.name, path, signature, options, python=python, lasting=True)

    def _python(self, modules: tuple[str, ...]) -> Path:
        found = self._elsewhere(modules)
        if found is None:
            raise MissingRuntimeError(
                f"target {self.name} cannot be used here: no environment has {', '.join(modules)}",
                hint=f"Make it: {command_for(self.environment)} prints the commands.",
            )
        return found[0]

    def _elsewhere(self, modules: tuple[str, ...]) -> tuple[Path, str] | None:
        """The interpreter that has these modules, and the version of the runtime there."""
        named = os.environ.get(f"SMASH_EXPORT_{self.name.upper()}_PYTHON")
        folder = f".venv-{self.name}"
        source = Path(__file__).resolve().parents[2]
        for python in (
            [Path(named)] if named else [root / folder / "bin" / "python" for root in (Path.cwd(), source)]
        ):
            if python.is_file():
                version = _version_in(python, self.distribution, modules)
                if version:
                    return python, version
        return None


def command_for(environment: str) -> str:
    """What prints the commands for an environment."""
    return f"smash-export doctor --environment {environment}"


def environments() -> tuple[str, ...]:
    """Names of the environments whose pins are part of this package."""
    return tuple(sorted(path.stem for path in PINS.glob("*.txt")))


def commands(environment: str) -> tuple[str, ...]:
    """The exact commands that make an environment in the current folder, where it is then found.

    Raises:
        UsageError: no such environment.
    """
    if environment not in environments():
        raise UsageError("no such environment", expected=", ".join(environments()), received=environment)
    folder = f".venv-{environment}"
    pip = shlex.join([f"{folder}/bin/python", "-m", "pip", "install", "-r", str(PINS / f"{environment}.txt")])
    return shlex.join([sys.executable, "-m", "venv", folder]), pip


def _has(modules: tuple[str, ...]) -> bool:
    return all(has_module(name) for name in modules)


@functools.cache
def _version_in(python: Path, distribution: str, modules: tuple[str, ...]) -> str:
    """The version of a distribution in another interpreter; "" when a module is missing there."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _PROBE, distribution, ",".join(modules)],
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode().strip() if done.returncode == 0 else ""
