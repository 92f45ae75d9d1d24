"""Trackers of experiments, off unless asked for: TensorBoard and a local MLflow.

What a tracker gets is what the bars show: every number beside a bar (``loss``, ``best``, ``error``) is a
curve named after it, for example ``HyperNet/loss``, over the steps of that bar. Nothing leaves this machine.

    --track tensorboard[:FOLDER]    event files; look at them with: tensorboard --logdir FOLDER
    --track mlflow[:FOLDER]         a database: mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from smash_base.errors import MissingRuntimeError, UsageError
from smash_base.progress import Advance, ShowProgress

TRACKERS = ("tensorboard", "mlflow")
DATABASE = "mlflow.db"


class Tracker(Protocol):
    """Where curves go."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """What was asked for: options by name."""
        ...

    def log(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


def check_tracker(text: str) -> None:
    """Raise what :func:`make_tracker` would, and write nothing."""
    kind = text.partition(":")[0]
    if kind not in TRACKERS:
        raise UsageError("--track", expected=" or ".join(TRACKERS), received=text)
    if importlib.util.find_spec(kind) is None:
        raise _missing(kind, kind)


def _missing(kind: str, package: str | None) -> MissingRuntimeError:
    return MissingRuntimeError(
        f"--track {kind} needs the package {package}", hint=f"Install it: pip install 'smash-export[{kind}]'"
    )


def make_tracker(text: str, folder: Path, name: str) -> Tracker:
    """The tracker that ``--track`` names.

    Args:
        text: ``tensorboard``, ``mlflow``, either with ``:FOLDER``.
        folder: where its files go unless the text says so.
        name: Name of the run.

    Raises:
        UsageError: another name.
        MissingRuntimeError: its package is not installed.
    """
    check_tracker(text)
    kind, _, place = text.partition(":")
    destination = Path(place) if place else folder / kind
    try:
        if kind == "tensorboard":
            return _TensorBoard(destination / name if place else destination)
        return _MLflow(destination, name)
    except ModuleNotFoundError as error:
        raise _missing(kind, error.name) from None


@contextlib.contextmanager
def tracked(text: str | None, folder: Path, settings: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """The tracker that was asked for, if any, closed at the end."""
    if text is None:
        yield None
        return
    tracker = make_tracker(text, folder, folder.name)
    try:
        tracker.settings(settings)
        yield tracker
    finally:
        tracker.close()


def following(progress: ShowProgress, tracker: Tracker | None) -> ShowProgress:
    """The same progress, whose numbers the tracker gets as well."""
    if tracker is None:
        return progress

    @contextlib.contextmanager
    def shown(label: str, total: float | None) -> Iterator[Advance]:
        done = 0.0

        def advance(
            n: float = 1, *, before: float = 0.0, left: float | None = None, **fields: object
        ) -> None:
            nonlocal done
            done += n
            inner(n, before=before, left=left, **fields)
            for name, value in fields.items():
                number = as_number(value)
                if number is not None:
                    tracker.log(f"{label}/{name}", number, round(done))

        with progress(label, total) as inner:
            yield advance

    return shown


def as_number(value: object) -> float | None:
    """A finite number, also of a text such as "12.5%"; None for anything else."""
    if isinstance(value, bool):
        return None
    with contextlib.suppress(TypeError, ValueError):
        text = str(value)
        number = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        return number if math.isfinite(number) else None
    return None


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        import tensorboard  # noqa: F401 - torch names another package when this one is missing
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def settings(self, values: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, folder: Path, name: str) -> None:
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder.resolve() / DATABASE}")
        held = self._client.get_experiment_by_name("smash-export")
        experiment = held.experiment_id if held else self._client.create_experiment("smash-export")
        self._run = self._client.create_run(experiment, run_name=name).info.run_id

    def settings(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._client.log_param(self._run, name.replace(" ", "_"), str(value)[:500])

    def log(self, name: str, value: float, step: int) -> None:
        allowed = "".join(letter if letter.isalnum() or letter in "/_-. " else "-" for letter in name)
        self._client.log_metric(self._run, allowed, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)
