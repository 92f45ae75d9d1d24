"""A clock of the training loop that a test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


class HandClock:
    """Stands in for the seconds that :mod:`smash_search.train.loop` reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("smash_search.train.loop.time", SimpleNamespace(monotonic=lambda: self.now))

    def spend(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
