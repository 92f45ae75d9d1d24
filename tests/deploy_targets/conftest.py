"""One network in all its forms, and one compiled file per target and precision, for the whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smash_targets.base import Precision, get_target
from tests.deploy_targets.networks import Sources


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources.make(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def compiled(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Precision], Path]:
    """(target, precision) -> the main file, compiled once."""
    done: dict[tuple[str, str], Path] = {}

    def compile_once(name: str, precision: Precision = "fp32") -> Path:
        if (name, precision) not in done:
            target = get_target(name)
            folder = tmp_path_factory.mktemp(f"{name}-{precision}")
            result = target.compile(
                sources.request(precision, torch_program=target.needs_torch_program), folder
            )
            done[name, precision] = folder / result.main
        return done[name, precision]

    return compile_once
