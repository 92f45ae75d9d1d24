"""Bars of a command: one display for all of them, with a time left that forgets nothing.

rich estimates the time left from the ticks of the last half minute, so that a bar whose steps take a minute
shows none at all. Here a bar's pace is that of all its steps (:class:`Pace`), and a command that knows its
parts beforehand shows the time left of the whole (:class:`Schedule`) above the bar of the present one.

On a terminal a display redraws itself several times a second, whether or not the work reports anything: as
long as one is open, nothing is silent. In a log the same is a line at most every ten seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

import click

from smash_base.progress import Advance

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 10.0  # in a log: one line of progress at most this often
READ_BACK_SECONDS = 1.0  # steps that arrive at once in the first moment were done by an earlier process
_FACTOR = (0.5, 3.0)  # how far the parts that are over may stretch the estimate of those to come

Clock = Callable[[], float]


class Pace:
    """Seconds per step of one bar, from all of its steps, and what that leaves.

    Args:
        total: steps in all, or None when nobody knows.
        expected: seconds in all as estimated before, for the time before the first step.
        clock: seconds of a steady clock.
    """

    def __init__(
        self, total: float | None, expected: float | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.total, self.done = total, 0.0
        self._expected, self._clock = expected, clock
        self.start = self._from = self._last = clock()
        self._before = 0.0
        self._end: float | None = None  # on the clock, where the work tells it

    def step(self, n: float = 1, before: float = 0.0, left: float | None = None) -> None:
        """Count ``n`` steps that have just ended.

        Args:
            n: Number of steps.
            before: those of them that an earlier process did.
            left: seconds to the end, where the work knows them.
        """
        now = self._clock()
        if before:
            self._before += before
        elif not self.done and n > 1 and now - self.start < READ_BACK_SECONDS:
            self._before, self._from = n, now
        self.done += n
        self._last = now
        if n:
            self._end = None if left is None else now + left

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self.start

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.total is not None and self.done >= self.total

    def left(self) -> float | None:
        """Seconds to the end, counting down between two steps; None before anything can be said."""
        now, steps = self._clock(), self.done - self._before
        if self._end is not None:
            return max(0.0, self._end - now)
        if self.total is None or steps <= 0:
            return None if self._expected is None else max(0.0, self._expected - (now - self.start))
        waited = now - self._last
        each = (self._last - self._from) / steps
        if waited > each:  # the present step is a slow one
            each, waited = (now - self._from) / (steps + 1), 0.0
            return each * max(0.0, self.total - self.done - 1)
        return max(0.0, each * (self.total - self.done) - waited)


@dataclass(frozen=True)
class Part:
    """A part of the work ahead.

    Attributes:
        label: the first words of its bar.
        seconds: Seconds that it should take.
    """

    label: str
    seconds: float


class Schedule:
    """Time left of a job whose parts were estimated beforehand, corrected by those that are over.

    Args:
        parts: in the order in which their bars appear; a bar that belongs to none of them counts nothing.
        clock: seconds of a steady clock.
    """

    def __init__(self, parts: Sequence[Part], clock: Clock = time.monotonic) -> None:
        self._parts, self._clock = list(parts), clock
        self._start = self._began = clock()
        self._next = 0  # the first part that has not begun
        self._current: tuple[Part, Pace] | None = None
        self._expected = self._spent = 0.0  # of the parts that are over
        self._share = 0.0

    def begin(self, label: str, total: float | None) -> Pace:
        """A bar appears."""
        for index in range(self._next, len(self._parts)):
            part = self._parts[index]
            if label.startswith(part.label):
                pace = Pace(total, part.seconds * self.factor, self._clock)
                self._next, self._current, self._began = index + 1, (part, pace), self._clock()
                return pace
        return Pace(total, clock=self._clock)

    def end(self, pace: Pace) -> None:
        """A bar is over."""
        if self._current is not None and self._current[1] is pace:
            self._expected += self._current[0].seconds
            self._spent += self._clock() - self._began
            self._current = None

    @property
    def factor(self) -> float:
        """Seconds that parts took over those expected, within bounds."""
        if self._expected <= 0:
            return 1.0
        return min(_FACTOR[1], max(_FACTOR[0], self._spent / self._expected))

    def left(self) -> float:
        """Seconds to the end of the last part."""
        coming = self.factor * sum(part.seconds for part in self._parts[self._next :])
        if self._current is None:
            return coming
        return coming + (self._current[1].left() or 0.0)

    def share(self) -> float:
        """What is done of the whole time, 0 to 1; never falls."""
        elapsed, left = self._clock() - self._start, self.left()
        self._share = max(self._share, elapsed / max(1e-9, elapsed + left))
        return min(1.0, self._share)


# ------------------------------------------------------------------------------------------ displays


class Board(Protocol):
    """Where bars are shown."""

    def bar(self, label: str, total: float | None) -> contextlib.AbstractContextManager[Advance]:
        """A bar while the block runs."""
        ...


_OPEN: list[Board] = []  # the display that is open, if any: bars join it
_DRAWN: list[Console] = []  # consoles that bars stand on


def is_open() -> bool:
    """Whether a job shows its display."""
    return bool(_OPEN)


def console_with_bars(stream: IO[str]) -> Console | None:
    """What has to write whatever goes to a terminal on which bars stand: it moves them down. Anything else
    writes into their lines."""
    return _DRAWN[-1] if _DRAWN and stream.isatty() else None


@contextlib.contextmanager
def board(title: str, parts: Sequence[Part] = ()) -> Iterator[None]:
    """One display for all bars that are shown while the block runs.

    Args:
        title: Title of the job, for its own line.
        parts: Parts of the job, where they were estimated.
    """
    if _OPEN:  # a part of a larger job that shows one already
        yield
        return
    schedule = Schedule(parts)
    made: Any = _terminal(title, schedule) if sys.stderr.isatty() else contextlib.nullcontext(_Log(schedule))
    with made as opened:
        _OPEN.append(opened)
        try:
            yield
        finally:
            _OPEN.remove(opened)


@contextlib.contextmanager
def bar(label: str, total: float | None) -> Iterator[Advance]:
    """A bar in the open display, or in one of its own."""
    if _OPEN:
        with _OPEN[-1].bar(label, total) as advance:
            yield advance
    elif sys.stderr.isatty():
        opened_alone = _terminal("", Schedule(()), leaves=total is not None)
        with opened_alone as opened, opened.bar(label, total) as advance:
            yield advance
    else:
        with _Log(Schedule(())).bar(label, total) as advance:
            yield advance


class _Log:
    """Lines for logs: one at most every ten seconds, and one at the end."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    @contextlib.contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Advance]:
        pace = self._schedule.begin(label, total)
        shown = time.monotonic()
        if total is None:  # nothing will be shown before the end otherwise
            click.echo(f"{label} ...", err=True)

        def advance(
            n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
        ) -> None:
            nonlocal shown
            finished_before, now = pace.finished, time.monotonic()
            pace.step(n, before, left)
            last = pace.finished and not finished_before
            if not last and now - shown < PLAIN_SECONDS:
                return
            shown = now
            click.echo(" ".join([*self._words(label, pace), *shown_fields(fields)]), err=True)

        try:
            yield advance
        finally:
            self._schedule.end(pace)

    def _words(self, label: str, pace: Pace) -> list[str]:
        words = [f"{label}:"]
        if pace.total:
            words.append(_steps(pace.done, pace.total))
        words.append(f"{clock(pace.elapsed)} elapsed")
        left, whole = pace.left(), self._schedule.left()
        if left is not None and not pace.finished:
            words.append(f"{clock(left)} left")
        if whole > (left or 0.0):
            words.append(f"({clock(whole)} of all)")
        return words


@contextlib.contextmanager
def _terminal(title: str, schedule: Schedule, *, leaves: bool = True) -> Iterator[Board]:
    """A rich display.

    Args:
        title: Title of the line of the whole, if there is one.
        schedule: Times of the whole.
        leaves: Whether the bars stay where they are at the end; after an error none does.
    """
    progress = _progress(schedule, leaves)
    try:
        with progress:
            whole = _whole(progress, title, schedule) if title else None
            _DRAWN.append(progress.console)
            try:
                yield _Terminal(progress, schedule)
            except BaseException:
                progress.live.transient = True  # nothing goes on: bars that stand still would say it does
                raise
            finally:
                _DRAWN.remove(progress.console)
            if whole is not None:
                progress.update(whole, total=1.0, completed=1.0)
    finally:
        progress.console.show_cursor()  # rich has hidden it where Ctrl-C comes while it begins


def _progress(schedule: Schedule, leaves: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    class Times(ProgressColumn):
        """Elapsed, and left as far as it is known."""

        def render(self, task: Task) -> Text:
            elapsed, left = task.fields["times"]()
            words = clock(elapsed)
            if left is not None and not task.finished:
                words += f", {clock(left)} left"
            return Text(words)

    class Line(BarColumn):
        """The bar; that of the whole is as long as its share of the time."""

        def render(self, task: Task) -> ProgressBar:
            if task.fields["whole"] and task.total is not None:
                return ProgressBar(total=1.0, completed=schedule.share(), width=self.bar_width)
            return super().render(task)

    class Count(ProgressColumn):
        """Steps of a bar, percents of the whole."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            if task.fields["whole"]:
                return Text(f"{schedule.share():.0%}")
            return Text(_steps(task.completed, task.total))

    class Bars(Progress):
        """Bars that rich's own thread draws, eight times a second."""

        def refresh(self) -> None:
            """Nothing: Ctrl-C within a drawing by the main thread would leave what is drawn twice."""

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        Line(bar_width=24),
        Count(),
        Times(),
        TextColumn("{task.fields[shown]}"),
    )
    # What a program reads from stdout does not go to the terminal with the bars.
    to_terminal = sys.stdout.isatty()
    return Bars(
        *columns,
        console=Console(stderr=True),
        refresh_per_second=8,
        redirect_stdout=to_terminal,
        transient=not leaves,
    )


def _whole(progress: Progress, title: str, schedule: Schedule) -> TaskID:
    from rich.markup import escape

    pace, planned = Pace(None), schedule.left() > 0
    return progress.add_task(
        f"[bold]{escape(title)}[/bold]",
        total=1.0 if planned else None,
        shown="",
        whole=True,
        times=lambda: (pace.elapsed, schedule.left() if planned else None),
    )


class _Terminal:
    """Bars of one rich display; each disappears when it is over, where another line stays."""

    def __init__(self, progress: Progress, schedule: Schedule) -> None:
        self._progress, self._schedule = progress, schedule

    @contextlib.contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Advance]:
        from rich.markup import escape

        pace = self._schedule.begin(label, total)
        progress = self._progress
        task = progress.add_task(
            escape(label), total=total, shown="", whole=False, times=lambda: (pace.elapsed, pace.left())
        )

        def advance(
            n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
        ) -> None:
            pace.step(n, before, left)
            progress.update(task, advance=n)
            if fields:
                progress.update(task, shown=escape(" ".join(shown_fields(fields))))

        try:
            yield advance
        finally:
            self._schedule.end(pace)
            progress.stop_task(task)
            elapsed, left = pace.elapsed, pace.left()
            progress.update(task, times=lambda: (elapsed, left if left else None))
            if any(other.fields["whole"] for other in progress.tasks):
                progress.remove_task(task)


def _steps(done: float, total: float) -> str:
    """``3.2/10``: a training counts parts of its epochs."""
    shown = round(done, 1)
    return f"{shown:g}/{max(total, shown):g}"  # a total may be an estimate


def shown_fields(fields: dict[str, object]) -> list[str]:
    """``name=value`` of what a bar shows beside itself."""
    return [f"{name}={_number(value)}" for name, value in fields.items()]


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """``1:02`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
