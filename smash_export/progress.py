"""What is said while something runs, and where: results on stdout, everything else on stderr.

With ``json`` stdout holds one JSON value and nothing else. Tables and progress use rich, which is
imported when the first of them is drawn; colour is off without a terminal or with NO_COLOR. The command
line makes an :class:`Output` of its options; a library function takes one, silent by default.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

import click

from smash_base.json_values import in_words
from smash_base.progress import Advance
from smash_export.display import Part, bar, board, console_with_bars, is_open

_PLAIN_WIDTH = 160


@dataclass(frozen=True)
class Output:
    """Where a command's words go.

    Attributes:
        json: stdout takes exactly one JSON value, through :meth:`result`.
        quiet: no notes and no progress; warnings, errors and results stay.
        dry_run: the command must say what it would do and write nothing.
    """

    json: bool = False
    quiet: bool = False
    dry_run: bool = False

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Draw a table on stdout; columns of numbers stand right. Nothing with ``--json``."""
        if self.json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=title or None, title_justify="left", min_width=len(title))  # on one line
        for index, name in enumerate(columns):
            cells = [row[index] for row in rows]
            numeric = bool(cells) and all(isinstance(cell, int | float) or cell is None for cell in cells)
            drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(_cell(value)) for value in row))  # Text: square brackets are not markup
        console = console_with_bars(sys.stdout)
        (console or Console(width=None if sys.stdout.isatty() else _plain_width())).print(drawn)

    def plan(self, steps: Mapping[str, Any], title: str = "Would do") -> None:
        """A table of what a dry run would do, nested values as prose."""
        self.table(title, ["what", "value"], [[name, in_words(value)] for name, value in steps.items()])

    def text(self, line: str) -> None:
        """A line of the result for people, on stdout. Nothing with ``--json``."""
        if not self.json:
            _say(line, sys.stdout)

    def result(self, value: Any) -> None:
        """The result for programs, on stdout. Nothing without ``--json``."""
        if self.json:
            click.echo(to_json(value))

    def note(self, line: str) -> None:
        """A line for people, on stderr. Nothing with ``--json`` inside a larger job, which says it itself."""
        if self.tells:
            _say(line, sys.stderr)

    @property
    def tells(self) -> bool:
        """Whether :meth:`note` says anything."""
        return not (self.quiet or (self.json and is_open()))

    def warn(self, line: str) -> None:
        """A line that people must see, on stderr, even with ``--quiet``."""
        _say(f"warning: {line}", sys.stderr)

    @contextlib.contextmanager
    def progress(self, label: str, total: float | None) -> Iterator[Advance]:
        """Show progress and the time left on stderr while the block runs.

        Args:
            label: what is being done.
            total: number of steps, or None when it is not known (elapsed time is shown).
        """
        if self.quiet:
            yield _silent
        else:
            with bar(label, total) as advance:
                yield advance

    @contextlib.contextmanager
    def job(self, title: str, parts: Sequence[Part] = ()) -> Iterator[None]:
        """One display for all progress that is shown while the block runs; never still on a terminal.

        Args:
            title: Title of the job.
            parts: Parts of the job and their expected seconds, where they are known.
        """
        with contextlib.nullcontext() if self.quiet else board(title, parts):
            yield


SILENT = Output(quiet=True)
"""For library callers that want no words."""


def to_json(value: Any) -> str:
    """JSON text of a result: numpy numbers and arrays, paths and dataclasses included; NaN becomes null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and numbers
        return _plain(value.tolist())
    if hasattr(value, "to_json"):
        return _plain(value.to_json())
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    raise TypeError(f"a result holds {type(value).__name__}, which has no JSON form")


def _say(line: str, stream: IO[str]) -> None:
    console = console_with_bars(stream)
    if console is None:
        click.echo(line, file=stream)
    else:
        console.out(line, highlight=False)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    return str(value)


def _plain_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) >= 40 else _PLAIN_WIDTH


def _silent(n: float = 1, **fields: object) -> None:
    pass
