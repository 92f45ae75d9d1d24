"""Runs on the disk: what each searched, how far it got, what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_export.device_search.findings import LatencyFinding, latency_of
from smash_search.rank.ranking import RANKING, read_ranking
from smash_search.space.best import SearchRecord, read_best


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        data, space, strategy, seed: what was searched.
        state: "done", or the stage that it has reached.
        scored: architectures scored so far.
        score, error, random_search_error: Errors of the pick; see best.json.
        origin: how the pick came about.
        latency: Latency of the pick, with the limit that it was held to; None where nothing was measured.
        within, beyond: candidates that keep the latency limit, and those that do not; None without a limit,
            and until the finalists are trained.
        parameters, macs: its cost.
        seconds: all stages together.
    """

    folder: str
    data: str
    space: str
    strategy: str
    seed: int
    state: str
    scored: int
    score: float | None
    error: float | None
    random_search_error: float | None
    origin: str | None
    latency: LatencyFinding | None
    within: int | None
    beyond: int | None
    parameters: int | None
    macs: int | None
    seconds: float

    def to_json(self) -> JsonObject:
        """Plain values."""
        return asdict(self)


def runs(*folders: Path | str) -> list[Run]:
    """Every search in these folders (``runs`` unless given), the best trained network first.

    Raises:
        UsageError: no such folder.
    """
    found = [run for folder in folders or ("runs",) for run in find_runs(folder)]
    return sorted(found, key=lambda run: (run.error is None, run.error or 0.0, run.folder))


def find_runs(parent: Path | str) -> list[Run]:
    """Every run in a folder, or the run that the folder is, by name.

    Raises:
        UsageError: no such folder.
    """
    parent = Path(parent)
    if not parent.is_dir():
        raise UsageError(f"there is no folder {parent}", hint="Start one: smash-export search --data digits")
    if (parent / "config.json").is_file():
        return [read_run(parent)]
    return [read_run(path.parent) for path in sorted(parent.glob("*/config.json"))]


def read_run(folder: Path) -> Run:
    """One run; a damaged file is an InvalidInputError that names it."""
    config = files.read_json(folder / "config.json", what="search configuration")
    try:
        identity = config["identity"]
        scored = {record["key"] for record in files.read_jsonl(folder / "scores.jsonl")}
        limit = max((entry["milliseconds"] for entry in identity.get("latency_limits", [])), default=None)
        ranking = folder / RANKING
        beyond = read_ranking(ranking).refused if limit is not None and ranking.exists() else None
        done = (folder / "best.json").is_file()
        best = read_best(folder / "best.json").search if done else SearchRecord()
        timings = folder / "timings.json"
        seconds = files.read_json(timings) if timings.exists() else {}
        return Run(
            str(folder),
            config["data"],
            identity["space"],
            identity["strategy"],
            identity["seed"],
            "done" if done else _stage(folder),
            len(scored),
            best.score,
            best.error,
            best.random_search_error,
            best.origin,
            latency_of(best, limit, predicted=bool(identity.get("measured", {}).get("predicted"))),
            None if beyond is None else len(scored),  # a network beyond the limit is not scored
            beyond,
            None if best.cost is None else best.cost.parameters,
            None if best.cost is None else best.cost.macs,
            round(sum(seconds.values()), 1),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{folder} is not a run of this version", received=error) from None


def _stage(folder: Path) -> str:
    for name, stage in (("finalists.jsonl", "finalists"), ("scores.jsonl", "scoring")):
        if (folder / name).exists():
            return stage
    return "HyperNet"
