"""Stages of a run, one after the other; a run that was interrupted goes on with the first that is missing.

FOLDER/run.json      what was asked, the plan, and the result of every stage that is done
FOLDER/search/       the run folder of the search
FOLDER/bundle/       the bundle
FOLDER/compare.html  every file compared
FOLDER/report.html   the page of the whole
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_export.device_search.job.outcomes import (
    Benched,
    Compared,
    Compiled,
    Frozen,
    Rejected,
    Searched,
    Verified,
)
from smash_export.device_search.job.plan import ASKING, EXPORTING, Plan, Request, Stage, request_json
from smash_export.display import Part

Command = Callable[[Sequence[str]], JsonObject]
"""Runs a command of this program, given without ``smash-export``, and gives its JSON."""

Outcome = TypeVar("Outcome")

SCHEMA = 1
STATE = "run.json"
PATIENCE = "--device-timeout"  # of the options that name a device the one that is about time


@dataclass(frozen=True)
class Done:
    """A stage that is over.

    Attributes:
        stage: Stage whose turn it is.
        seconds: it took, those before an interruption included, unless the process was killed.
        result: JSON of its command.
    """

    stage: Stage
    seconds: float
    result: JsonObject

    def read(self, kind: type[Outcome]) -> Outcome:
        """The JSON as a type of :mod:`smash_export.device_search.job.outcomes`."""
        return read_record(kind, self.result, self.stage.name)

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {"stage": self.stage.to_json(), "seconds": round(self.seconds, 2), "result": self.result}


@dataclass
class Job:
    """A run in its folder.

    Attributes:
        folder: Folder of the run.
        request, plan: what it is.
        done: stages that are over, in order.
        images: Fingerprint of the data; "" where it is not known.
    """

    folder: Path
    request: Request
    plan: Plan
    done: list[Done]
    images: str = ""
    spent: float = 0.0
    """Seconds that were spent on the next stage before an interruption."""

    @classmethod
    def find(cls, folder: Path, request: Request, images: str = "") -> Job | None:
        """The run that a folder holds, or None. One that was moved goes on where it is now.

        Raises:
            UsageError: it is another one, its bundle is gone, or the folder holds something else.
            InvalidInputError: its run.json is damaged.
        """
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file", expected="a folder", hint="Choose another --out.")
        path = folder / STATE
        if not path.exists():
            if folder.is_dir() and any(entry.name != files.LOCK for entry in folder.iterdir()):
                raise UsageError(f"{folder} holds other files", hint="Choose another --out.")
            return None
        state = files.read_json(path, what="run")
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise InvalidInputError(f"{path} is not of this version", expected=f"schema {SCHEMA}")
        _check_same(folder, state, request, images)
        try:
            plan = Plan.from_json(state["plan"])
            done = [
                Done(Stage.from_json(entry["stage"]), entry["seconds"], entry["result"])
                for entry in state["done"]
            ]
            before, device = state.get("folder", str(folder)), tuple(state["request"].get("elsewhere") or ())
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"{path} is damaged", received=error) from None
        stages = (_moved(_trained_on(stage, request.device), before, str(folder)) for stage in plan.stages)
        plan = replace(plan, stages=tuple(_on_device(stage, device, request.elsewhere) for stage in stages))
        done = [replace(entry, stage=_moved(entry.stage, before, str(folder))) for entry in done]
        made = any(entry.stage.name == "freeze" for entry in done)
        if made and not (folder / "bundle").is_dir():
            raise UsageError(
                f"{folder} has lost its bundle",
                expected=f"{folder / 'bundle'}",
                hint="Put it back, or choose another --out.",
            )
        return cls(folder, request, plan, done, images, float(state.get("spent", 0.0)))

    def save(self) -> None:
        """Write run.json."""
        document = {
            "schema": SCHEMA,
            "folder": str(self.folder),
            "images": self.images,
            "request": request_json(self.request),
            "plan": self.plan.to_json(),
            "done": [entry.to_json() for entry in self.done],
            "spent": round(self.spent, 2),
        }
        files.write_json(self.folder / STATE, document)

    @property
    def missing(self) -> tuple[Stage, ...]:
        """Stages that are not done."""
        return self.plan.stages[len(self.done) :]

    @property
    def parts(self) -> list[Part]:
        """Expected seconds of what is missing."""
        return [part for stage in self.missing for part in stage.parts]

    def stages(self, command: Command) -> Iterator[Done]:
        """Do what is missing, stage by stage; each is in run.json before it is given.

        Args:
            command: runs the words of one; its errors pass through. A file that does not do what the network
                does ends no run that has another one: why it was rejected is the stage's result, as it is
                where ``verify`` rejects some of several on the device.
        """
        for planned in self.missing:
            stage = self._in_time(planned)
            begin = time.monotonic()
            try:
                result = command(stage.words)
            except VerificationError as error:
                if not self._may_go_on(stage):
                    raise
                result = {"rejected": str(error)}
            except BaseException:
                self.spent += time.monotonic() - begin
                self.save()
                raise
            # Rounded as run.json has it: what is computed from it is the same after an interruption.
            self.done.append(Done(stage, round(self.spent + time.monotonic() - begin, 2), result))
            self.spent = 0.0
            self.save()
            yield self.done[-1]

    @property
    def rejected(self) -> list[Done]:
        """Stages that a file was rejected in, since it does not do what the network does."""
        return [entry for entry in self.done if _is_rejected(entry)]

    def _may_go_on(self, stage: Stage) -> bool:
        """Whether there is a file beside the one that a stage compiles, or there are several of which
        ``verify`` rejects some; which are good is then for ``compare`` to say, which measures it again.
        """
        compiled = [entry for entry in self.done if _compiles(entry.stage)]
        files = len(compiled) - sum(map(_is_rejected, compiled))
        return files > 0 if _compiles(stage) else stage.name == "verify" and files > 1

    def _in_time(self, stage: Stage) -> Stage:
        """The last training of a run of given time gets what the search left of it, at least half of its own.

        A function of run.json, so that a training that was interrupted goes on with the same time.
        """
        if self.request.seconds is None or "--time" not in stage.words:
            return stage
        number = self.plan.stages.index(stage)
        timed = [part for part in stage.parts if part.label not in (ASKING, EXPORTING)]
        planned = sum(part.seconds for part in timed)
        rest = stage.seconds - planned + sum(it.seconds for it in self.plan.stages[number + 1 :])
        left = self.request.seconds - self.plan.before - sum(done.seconds for done in self.done) - rest
        seconds = max(left, planned / 2, 1.0)
        words = list(stage.words)
        words[words.index("--time") + 1] = f"{seconds:.0f}s"
        parts = [
            replace(part, seconds=part.seconds * seconds / planned) if part in timed else part
            for part in stage.parts
        ]
        return replace(stage, words=tuple(words), parts=tuple(parts))

    def outcome(self, name: str, kind: type[Outcome]) -> Outcome:
        """What the stage of that name gave."""
        return next(entry for entry in self.done if entry.stage.name == name).read(kind)


def _check_same(folder: Path, state: Mapping[str, Any], request: Request, images: str) -> None:
    """Raise UsageError where a folder's run is not the one that is asked for. Patience is no difference, nor
    is where to train: what a GPU has no memory for goes on on the CPU.
    """
    held, wanted = state.get("request", {}), request_json(request)
    for name, value in wanted.items():
        if name == "device":
            continue
        if name == "elsewhere" and _patient(held.get(name) or []) == _patient(request.elsewhere):
            continue
        if held.get(name) != value:
            raise UsageError(
                f"{folder} holds a run with another {name}",
                expected=f"{name} {held.get(name)}",
                received=value,
                hint="Repeat the command as it was, or choose another --out.",
            )
    if images and (state.get("images") or images) != images:
        raise UsageError(
            f"the images have changed since the run in {folder} began",
            expected=f"fingerprint {state['images'][:16]}",
            received=images[:16],
            hint="Choose another --out, or put them back as they were.",
        )


def _patient(words: Sequence[str]) -> list[str]:
    """Options that name a device, without how long it may take."""
    at = words.index(PATIENCE) if PATIENCE in words else len(words)
    return [*words[:at], *words[at + 2 :]]


def _trained_on(stage: Stage, device: str) -> Stage:
    """The stage with today's ``--device``, where it has one."""
    words = list(stage.words)
    if "--device" in words:
        words[words.index("--device") + 1] = device
    return replace(stage, words=tuple(words))


def _moved(stage: Stage, before: str, now: str) -> Stage:
    """The stage of a run whose folder was another one when it was planned."""

    def here(word: str) -> str:
        is_inside = word == before or word.startswith(f"{before}/")
        return f"{now}{word[len(before) :]}" if is_inside else word

    return replace(stage, words=tuple(map(here, stage.words)))


def _on_device(stage: Stage, before: tuple[str, ...], now: tuple[str, ...]) -> Stage:
    """The stage with the options of today that name the device; they stand last."""
    if not before or stage.words[-len(before) :] != before:
        return stage
    return replace(stage, words=(*stage.words[: -len(before)], *now))


def _compiles(stage: Stage) -> bool:
    return stage.name.startswith("compile ")


def _is_rejected(done: Done) -> bool:
    return isinstance(done.result.get("rejected"), str)  # a list where a command lists what was rejected


def command_line(stage: Stage) -> str:
    """What a person would type."""
    return shlex.join(["smash-export", *stage.words])


def told(done: Done) -> str:
    """The outcome of a stage in one line."""
    tellers: dict[str, Callable[[Done], str]] = {
        "search": _search_told,
        "freeze": _freeze_told,
        "compile": _compile_told,
        "verify": lambda stage: f"{len(stage.read(Verified).files)} files do what the network does",
        "bench": _bench_told,
        "compare": _compare_told,
    }
    if _is_rejected(done):
        words = f"rejected: {done.read(Rejected).rejected}"
    else:
        words = tellers[done.stage.name.partition(" ")[0]](done)
    return f"{done.stage.name}: {words} ({done.seconds:.0f} s, expected {done.stage.seconds:.0f} s)"


def _search_told(done: Done) -> str:
    found = done.read(Searched)
    words = f"{found.architecture} ({found.origin}), validation error {found.error:.2%}"
    return words + (f", {found.latency.milliseconds:.3g} ms" if found.latency else "")


def _freeze_told(done: Done) -> str:
    found = done.read(Frozen)
    words = f"test accuracy {found.test_accuracy:.2%} on {found.test_images:,} images"
    if found.folds is None:
        return words
    low, high = found.folds.interval
    return words + (
        f"; {found.folds.folds} folds {found.folds.top1:.2%} ({low:.2%} to {high:.2%}) on "
        f"{found.folds.images:,} images"
    )


def _compile_told(done: Done) -> str:
    found = done.read(Compiled)
    return f"{found.bytes:,} bytes, same label on {found.evidence.parity.agreement:.2%} of the images"


def _bench_told(done: Done) -> str:
    medians = [
        f"{row.target} {row.precision} {row.latency['1'].p50_ms:.3g} ms"
        for row in done.read(Benched).files
        if row.latency
    ]
    return ", ".join(medians)


def _compare_told(done: Done) -> str:
    advice = done.read(Compared).recommendation
    return f"use {advice.target} {advice.precision}" if advice else "no file qualifies"
