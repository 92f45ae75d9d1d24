"""A whole search: its files, its resumption after a kill at any moment, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smash_base import files
from smash_base.errors import GateError, InvalidInputError, UsageError
from smash_search.executors.work import Equipment, Worker
from smash_search.rank import proposals
from smash_search.rank.finalists import Finalist, FinalistsConfig
from smash_search.rank.latency_model import LEAST
from smash_search.rank.measurement import LOWEST, NOW
from smash_search.rank.pareto import Limit
from smash_search.rank.proposals import ErrorModel
from smash_search.rank.scoring import Scorer
from smash_search.rank.trained import Trained
from smash_search.run import load_supernet, run_search
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import SearchRecord, read_best
from smash_search.space.cost import cost_of
from smash_search.space.limits import CostLimits
from smash_search.stages import race
from smash_search.stages.bounds import Bounds
from smash_search.stages.config import Run
from smash_search.stages.picks import Picks, SearchResult
from smash_search.stages.survey import probe_draws
from smash_search.strategies import common, random
from smash_search.train import hypernet
from smash_search.train.hypernet import TrainingConfig, new_supernet
from smash_search.train.recipes import Recipe
from tests.search.executors.devices import ByMacs
from tests.search.run_small_search import RESULTS, config, contents, search
from tests.search.small_data import small_digits, small_volumes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    search(folder)
    return folder


def test_a_search_leaves_its_documented_files_and_a_best_that_can_be_read(finished: Path) -> None:
    assert {*RESULTS, "hypernet.pt", "timings.json"} <= {path.name for path in finished.iterdir()}
    assert not (finished / "finalists").exists()
    best = read_best(finished / "best.json")
    everything = files.read_jsonl(finished / "finalists.jsonl")
    trained = [record for record in everything if record["group"] == "search"]
    last = [record for record in everything if record["rung"] == 1]
    lowest = min(last, key=lambda record: record["validation_loss"])
    assert best.architecture.key == lowest["key"], "whatever was trained may be picked, by its loss"
    assert best.search.error == lowest["error"]
    scores = files.read_jsonl(finished / "scores.jsonl")
    own = [r for r in scores if r["key"] == best.architecture.key]
    assert best.search.score == (own[-1]["error"] if own else None)
    assert all(Architecture.from_json(r["architecture"]).key == r["key"] for r in scores if r["images"] == 24)
    assert len([r for r in scores if r["images"] == 48]) == 3, "half of six candidates went on"
    random = [r for r in files.read_jsonl(finished / "finalists.jsonl") if r["group"] == "random"]
    assert len(random) == len(trained), "the baseline trains as much"
    ranking = json.loads((finished / "ranking.json").read_text())
    assert 0 <= ranking["stages"][0]["kept_best"] <= 1


def test_op_contribution_is_measured_in_a_search_and_kept_in_ranking_json(finished: Path) -> None:
    encoding = json.loads((finished / "ranking.json").read_text())["encoding"]
    scorer = Scorer(load_supernet(finished), small_digits(train=64, validation=48), config().scoring)
    records = [record for record in files.read_jsonl(finished / "scores.jsonl") if record["images"] == 24]
    scored = [Architecture.from_json(record["architecture"]) for record in records]
    with_filters = [entry for entry in scored if scorer.supernet.hypernet.layout.tiles(entry)]
    zeroed = [scorer.score(entry, 24, zeroed=True).error for entry in with_filters]
    assert encoding["architectures"] == len(zeroed) > 1
    assert encoding["error_zeroed"] == pytest.approx(np.mean(zeroed))
    assert encoding["op_contribution"] == pytest.approx(encoding["error_zeroed"] - encoding["error"])


def test_results_hold_no_times(finished: Path, tmp_path: Path) -> None:
    search(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished)


def test_a_finished_search_is_read_back_and_not_done_again(finished: Path) -> None:
    before = contents(finished)
    start = time.monotonic()
    result = search(finished)
    assert time.monotonic() - start < 20
    assert contents(finished) == before
    assert result.pick.key == read_best(finished / "best.json").architecture.key


MOMENTS = {
    "training": lambda folder: (folder / "config.json").exists(),
    "scoring": lambda folder: _lines(folder / "scores.jsonl") >= 3,
    "finalists": lambda folder: _lines(folder / "finalists.jsonl") >= 3,
}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_search_killed_in_every_stage_ends_like_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tests.search.run_small_search", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    for reached in MOMENTS.values():
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        while not reached(folder) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    search(folder)
    assert contents(folder) == contents(finished)


def test_a_torn_line_is_removed_before_the_search_goes_on(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "hypernet.pt", "scores.jsonl"):
        (folder / name).write_bytes((finished / name).read_bytes())
    whole = (folder / "scores.jsonl").read_bytes()
    (folder / "scores.jsonl").write_bytes(whole[: len(whole) // 2])
    search(folder)
    assert contents(folder) == contents(finished)


def test_changed_data_configuration_or_a_full_folder_are_refused(finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    data = small_digits(train=64, validation=48)
    with pytest.raises(UsageError, match="data fingerprint differs"):
        run_search(config(), replace(data, fingerprint="other"), finished, device="cpu")
    with pytest.raises(UsageError, match="candidates differs"):
        search(finished, candidates=7)
    with pytest.raises(UsageError, match=r"training\.\w+ differs"):
        search(finished, training=TrainingConfig(steps=5))
    with pytest.raises(UsageError, match="holds a search already"):
        run_search(config(), data, finished, device="cpu", resume=False)
    with files.exclusive(finished, purpose="search"), pytest.raises(UsageError, match="in use"):
        search(finished)
    assert contents(finished) == before
    (tmp_path / "best.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no config\.json"):
        search(tmp_path)


@pytest.mark.parametrize(
    ("left", "changes"),
    [
        (("config.json",), {"training": TrainingConfig(steps=4, batch=16, architectures=2)}),
        (
            ("config.json", "hypernet.pt", "training.json", "scores.jsonl"),
            {"finalists": FinalistsConfig(count=2, rungs=(1, 2), random=1, recipe=Recipe(batch=16))},
        ),
    ],
    ids=["before the HyperNet", "before the finalists"],
)
def test_a_training_that_met_the_end_of_memory_goes_on_with_a_smaller_batch(
    left: tuple[str, ...], changes: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    folder, afresh = tmp_path / "run", tmp_path / "afresh" / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_bytes((finished / name).read_bytes())
    search(folder, **changes)
    search(afresh, **changes)
    assert contents(folder) == contents(afresh)
    with pytest.raises(UsageError, match="batch differs"):
        search(folder)


def test_scores_hold_their_training_though_its_checkpoint_is_gone(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("hypernet.pt"))
    with pytest.raises(UsageError, match="batch differs"):
        search(folder, training=TrainingConfig(steps=4, batch=16, architectures=2))


def test_a_limit_that_nothing_can_keep_is_said_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="smallest found"):
        search(tmp_path / "run", limits=CostLimits(parameters=10))
    assert not (tmp_path / "run" / "hypernet.pt").exists()


def test_a_limit_on_cost_that_only_the_smallest_networks_keep_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "TRIES", 200)
    monkeypatch.setattr(hypernet, "ATTEMPTS", 20)
    finalists = FinalistsConfig(count=3, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32))
    result = search(tmp_path / "run", limits=CostLimits(macs=12_000), finalists=finalists)
    assert result.candidates == 6
    assert all(entry.cost.macs <= 12_000 for entry in result.scored)


@pytest.mark.parametrize("strategy", ["random", "evolution"])
def test_a_search_goes_on_with_the_networks_that_its_limits_leave(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "TRIES", 40)
    monkeypatch.setattr(common, "TRIES", 20)
    monkeypatch.setattr(hypernet, "ATTEMPTS", 20)
    drawn = [entry.candidate.architecture.key for entry in search(tmp_path / "few").scored][:4]
    within_cost = Bounds.refusal

    def refusal(bounds: Bounds, entry: Architecture) -> str | None:
        return within_cost(bounds, entry) if entry.key in drawn else "not one of the few"

    monkeypatch.setattr(Bounds, "refusal", refusal)
    finalists = FinalistsConfig(count=3, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32))
    result = search(tmp_path / "run", strategy=strategy, candidates=20, finalists=finalists)
    assert {entry.candidate.architecture.key for entry in result.scored} == set(drawn)


def test_limits_on_latency_that_nothing_measures_are_said_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing measures"):
        search(tmp_path / "run", latency_limits=(Limit("4ms", 4.0),))
    assert not (tmp_path / "run" / "hypernet.pt").exists()


def test_a_random_search_that_diverged_takes_nothing_from_the_result(finished: Path) -> None:
    result = search(finished)
    random = [entry for entry in result.trained if entry.group == "random"]
    run = Run(config(), small_digits(train=64, validation=48), finished, torch.device("cpu"))
    picks = Picks(run, result.scored, result.trained, random)
    assert picks.random == result.random
    fell = [replace(entry, diverged="NaN in 11 steps") for entry in random]
    assert replace(picks, baseline=fell).random is None
    assert replace(picks, baseline=[]).random is None


def test_a_pick_that_leaves_much_of_its_limit_says_why(finished: Path) -> None:
    result = search(finished)
    within = config(measured={"target": "test"}, latency_limits=(Limit("10ms", 10.0),))
    run = Run(within, small_digits(train=64, validation=48), finished, torch.device("cpu"))
    rival = next(entry for entry in result.trained if entry.rung == 1 and entry.key != result.pick.key)

    def use(pick: float, of_rival: float, trained: Sequence[Trained] = result.trained) -> SearchRecord:
        latencies = {result.pick.key: pick, rival.key: of_rival}
        scored = [
            replace(entry, measures={"latency_ms": latencies.get(entry.candidate.architecture.key, 1.0)})
            for entry in result.scored
        ]
        return Picks(run, scored, trained, []).best_file(result.pick).search

    alone = use(5.0, 7.0)
    assert (alone.limit_ms, alone.limit_used) == (10.0, 0.5)
    assert alone.unused == (
        "The pick uses 50% of the limit: no network that was trained uses 80% of it or more."
    )
    assert use(5.0, 9.0).unused == (
        "The pick uses 50% of the limit: the best of the trained networks that use more (1) had an error of "
        f"{rival.error:.2%} (loss {rival.validation_loss:.4f}) after 2 epochs, the pick "
        f"{result.pick.error:.2%} (loss {result.pick.validation_loss:.4f}) after 2."
    )
    assert use(5.0, 11.0).unused == alone.unused, "what is beyond the limit is no alternative"
    fell = [replace(entry, diverged="NaN") if entry == rival else entry for entry in result.trained]
    assert use(5.0, 9.0, fell).unused == alone.unused, "nor is what diverged"
    confirmed = finished / "confirmed.jsonl"
    files.append_jsonl(confirmed, {"key": rival.key, "measures": {"latency_ms": 10.2}})
    assert use(5.0, 9.9).unused == (
        "The pick uses 50% of the limit: no other trained network that uses 80% of it or more keeps it; 1 "
        "more seemed to keep it and took longer when measured again."
    )
    assert use(8.5, 9.0).unused is None
    for latency in (9.0, 12.0):  # the second for a smaller limit
        files.append_jsonl(confirmed, {"key": result.pick.key, "measures": {"latency_ms": latency}})
    assert (use(8.5, 9.0).measures["latency_ms"], use(8.5, 9.0).limit_used) == (9.0, 0.9)
    confirmed.unlink()


def test_limits_hold_for_candidates_and_for_the_baseline(finished: Path) -> None:
    costs = [record["cost"] for record in files.read_jsonl(finished / "scores.jsonl") if "cost" in record]
    assert costs
    assert all(cost["parameters"] <= 30_000 for cost in costs)


def test_the_hypernet_is_trained_on_networks_within_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counted(architecture: Architecture) -> Iterator[str]:
        trained.append(cost_of(architecture, InputSpec(1, (8, 8)), 10).macs)
        return choices_of(architecture)

    choices_of = hypernet.choices_of
    monkeypatch.setattr(hypernet, "choices_of", counted)
    finalists = FinalistsConfig(count=2, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32))
    search(tmp_path / "run", limits=CostLimits(macs=100_000), finalists=finalists)
    assert len(trained) == 8
    assert max(trained) <= 100_000


def test_the_hypernet_is_trained_on_networks_near_a_latency_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of draws without a limit one in seven takes 1.3 to 2 ms, and most take longer."""
    trained: list[float] = []

    def timed(architecture: Architecture) -> Iterator[str]:
        trained.append(_ByMacs().measure(architecture)["latency_ms"])
        return choices_of(architecture)

    choices_of = hypernet.choices_of
    monkeypatch.setattr(hypernet, "choices_of", timed)
    changed = config(
        measured={"target": "test"},
        latency_limits=(Limit("2ms", 2.0),),
        limits=CostLimits(),
        finalists=FinalistsConfig(count=2, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32)),
    )
    data = small_digits(train=64, validation=48)
    run_search(changed, data, tmp_path / "run", device="cpu", measurement=_ByMacs())
    assert len(trained) == 8
    assert all(0.6 * 2.0 <= milliseconds <= 1.1 * 2.0 for milliseconds in trained)


class _ByKey:
    """Stands for a device: a latency that is a function of the architecture."""

    def __init__(self) -> None:
        self.calls = 0

    def measure(self, architecture: Architecture) -> dict[str, float]:
        self.calls += 1
        return {"latency_ms": float(int(architecture.key, 16) % 2)}

    def refusal(self, measures: dict[str, float]) -> str | None:
        return "too slow" if measures["latency_ms"] > 0.5 else None


def test_measured_limits_exclude_candidates_and_are_measured_once(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    changed = config(measured={"target": "test"})
    data = small_digits(train=64, validation=48)
    device = _ByKey()
    result = run_search(changed, data, folder, device="cpu", measurement=device)
    measured = files.read_jsonl(folder / "measures.jsonl")
    assert device.calls == len(measured) == len({record["key"] for record in measured}) >= 6
    random = [
        record for record in files.read_jsonl(folder / "finalists.jsonl") if record["group"] == "random"
    ]
    assert random
    assert all(int(record["key"], 16) % 2 == 0 for record in random), "the baseline keeps the same limits"
    assert int(result.pick.key, 16) % 2 == 0
    assert all(entry.score is None for entry in result.scored if entry.refused)
    slow = sum(int(record["key"], 16) % 2 for record in measured)
    assert 0 < (result.ranking.refused or 0) <= slow, "those of the random search beside come later"
    run_search(changed, data, folder, device="cpu", measurement=device)
    assert device.calls == len(measured)


def test_the_trained_hypernet_can_be_loaded_to_freeze_generated_weights(
    finished: Path, tmp_path: Path
) -> None:
    supernet = load_supernet(finished)
    assert supernet.space.name == "edge-tiny"
    with pytest.raises(InvalidInputError, match="does not exist"):
        load_supernet(tmp_path)
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    with pytest.raises(UsageError, match="not trained to the end"):
        load_supernet(tmp_path)


class _Optimistic(_ByKey):
    """Says that everything is fast until it is measured longer."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": 1.0}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        self.calls += 1
        return {"latency_ms": 5.0 if self.calls == 1 else 1.0}

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        return []

    def refusal(self, measures: dict[str, float]) -> str | None:
        return None


def test_a_pick_must_keep_its_limit_when_it_is_measured_again(tmp_path: Path) -> None:
    changed = config(measured={"target": "test"}, latency_limits=(Limit("2ms", 2.0),))
    data = small_digits(train=64, validation=48)
    device = _Optimistic()
    result = run_search(changed, data, tmp_path / "run", device="cpu", measurement=device)
    confirmed = files.read_jsonl(tmp_path / "run" / "confirmed.jsonl")
    assert [record["measures"]["latency_ms"] for record in confirmed] == [5.0, 1.0]
    assert result.pick.key == confirmed[1]["key"]
    again = run_search(changed, data, tmp_path / "run", device="cpu", measurement=device)
    assert (again.pick.key, device.calls) == (result.pick.key, 2)


def test_networks_are_measured_again_before_a_last_rung_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "LONG", 0)
    changed = config(measured={"target": "test"}, latency_limits=(Limit("2ms", 2.0),))
    data = small_digits(train=64, validation=48)
    device = _Optimistic()
    result = run_search(changed, data, tmp_path / "run", device="cpu", measurement=device)
    confirmed = files.read_jsonl(tmp_path / "run" / "confirmed.jsonl")
    assert [record["measures"]["latency_ms"] for record in confirmed] == [5.0, 1.0, 1.0]
    assert result.pick.key in {record["key"] for record in confirmed[1:]}
    last = {entry.key for entry in result.trained if entry.rung == 1}
    assert confirmed[0]["key"] not in last, "the longest training is for what may be picked"
    again = run_search(changed, data, tmp_path / "run", device="cpu", measurement=device)
    assert (again.pick.key, device.calls) == (result.pick.key, 3)


class _Drifting(_ByKey):
    """A machine that is slower from the third longer measurement to one of that number.

    The first two are those of the network that others are measured in turns with.
    """

    def __init__(self, slow: int) -> None:
        super().__init__()
        self.slow, self.is_slow = slow, False

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": (1.5 if self.is_slow else 1.0) * (1 + int(architecture.key, 16) % 5 / 10)}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        self.calls += 1
        self.is_slow = 2 < self.calls <= self.slow
        return self.measure(architecture)

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        latency, *latencies = [self.measure(network)["latency_ms"] for network in (architecture, *others)]
        return [latency / other for other in latencies]

    def refusal(self, measures: dict[str, float]) -> str | None:
        return None


class _Warming(_ByKey):
    """A machine that is half as fast from the survey on; times are as those of _Drifting."""

    def __init__(self, slowness: float) -> None:
        super().__init__()
        self.later, self.slowness = slowness, 1.0

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": self.slowness * (1 + int(architecture.key, 16) % 5 / 10)}

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        measures = self.measure(architecture)
        self.slowness = self.later
        return measures

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        return [
            self.measure(architecture)["latency_ms"] / self.measure(other)["latency_ms"] for other in others
        ]

    def refusal(self, measures: dict[str, float]) -> str | None:
        return None if measures["latency_ms"] <= 1.25 else "too slow"


def test_nothing_is_refused_because_the_machine_is_slower_than_it_was_before_the_survey(
    tmp_path: Path,
) -> None:
    changed = config(measured={"target": "test"}, latency_limits=(Limit("1.25ms", 1.25),))
    data = small_digits(train=64, validation=48)
    found = {}
    for name, slowness in (("steady", 1.0), ("warm", 2.0)):
        run_search(changed, data, tmp_path / name, device="cpu", measurement=_Warming(slowness))
        records = files.read_jsonl(tmp_path / name / "measures.jsonl")
        found[name] = {record["key"]: record["measures"]["latency_ms"] for record in records}
    assert found["warm"] == pytest.approx(found["steady"], rel=1e-9)
    assert len(found["warm"]) > 80, "candidates beside the survey"
    scores = [(tmp_path / name / "scores.jsonl").read_bytes() for name in found]
    assert scores[0] == scores[1]


def test_no_network_is_dropped_from_the_last_rung_because_the_machine_has_become_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "LONG", 0)
    changed = config(measured={"target": "test"}, latency_limits=(Limit("1.45ms", 1.45),))
    changed = replace(changed, finalists=replace(changed.finalists, baseline="none"))
    data = small_digits(train=64, validation=48)

    def found(name: str, slow: int) -> tuple[SearchResult, str, list[dict[str, Any]]]:
        device, folder = _Drifting(slow), tmp_path / name
        result = run_search(changed, data, folder, device="cpu", measurement=device)
        confirmed = files.read_jsonl(folder / "confirmed.jsonl")
        return result, (folder / "finalists.jsonl").read_text(), confirmed

    usual, trained, confirmed = found("usual", slow=0)
    slower, trained_then, then = found("slower", slow=2 + len(confirmed))
    assert trained_then == trained
    references = [(tmp_path / name / "reference.jsonl").read_text() for name in ("usual", "slower")]
    assert references[0] == references[1]
    for slow, as_ever in zip(then, confirmed, strict=True):
        latency = as_ever["measures"]["latency_ms"]
        assert slow["measures"] == pytest.approx({"latency_ms": latency, LOWEST: latency, NOW: 1.5 * latency})
    assert slower.pick.key == usual.pick.key
    latency = usual.best.search.measures["latency_ms"]
    assert slower.best.search.measures == pytest.approx(
        {"latency_ms": latency, LOWEST: latency, NOW: 1.5 * latency}
    )


class _Busy(_Optimistic):
    """Measures something slow in every longer measurement, while ``busy``; then of those in ``slow``."""

    busy = True
    slow: tuple[str, ...] = ()

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": 5.0 if self.busy or architecture.key in self.slow else 1.0}


def test_a_search_whose_picks_were_measured_on_a_busy_machine_goes_on_when_it_is_idle(tmp_path: Path) -> None:
    changed = config(measured={"target": "test"}, latency_limits=(Limit("2ms", 2.0),))
    data = small_digits(train=64, validation=48)
    device = _Busy()
    with pytest.raises(GateError, match="Repeat the command"):
        run_search(changed, data, tmp_path / "run", device="cpu", measurement=device)
    device.busy = False
    result = run_search(changed, data, tmp_path / "run", device="cpu", measurement=device)
    assert result.best.search.measures["latency_ms"] == 1.0


def test_a_search_that_goes_on_after_it_had_no_pick_says_nothing_of_what_it_ranked_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "LONG", 0)
    changed = config(measured={"target": "test"}, latency_limits=(Limit("2ms", 2.0),))
    changed = replace(changed, finalists=replace(changed.finalists, count=3, baseline="none"))
    data, folder = small_digits(train=64, validation=48), tmp_path / "run"
    device = _Busy()
    with pytest.raises(GateError, match="Repeat the command"):
        run_search(changed, data, folder, device="cpu", measurement=device)
    records = files.read_jsonl(folder / "finalists.jsonl")
    device.busy, device.slow = False, tuple(record["key"] for record in records if record["rung"] == 1)
    run_search(changed, data, folder, device="cpu", measurement=device)
    run_search(changed, data, tmp_path / "new", device="cpu", measurement=device)
    assert (folder / "ranking.json").read_bytes() == (tmp_path / "new/ranking.json").read_bytes()


class _ByMacs(ByMacs):
    """The same, and somebody may press Ctrl-C."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls, self.stop = 0, stop

    def measure(self, architecture: Architecture) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return super().measure(architecture)


def test_candidates_count_within_the_limit_and_rounds_propose_more_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "POOL", 100)
    changed = {
        "measured": {"target": "test"},
        "latency_limits": (Limit("4ms", 4.0),),
        "limits": CostLimits(),
        "known": 2,
        "finalists": FinalistsConfig(
            count=3, rounds=2, per_round=2, rungs=(1, 2), random=1, recipe=Recipe(batch=32)
        ),
    }
    data = small_digits(train=64, validation=48)
    folder, other, kept = (tmp_path / name / "run" for name in ("whole", "stopped", "resumed"))
    result = run_search(config(**changed), data, folder, device="cpu", measurement=_ByMacs())
    judged = [entry for entry in result.scored if entry.candidate.origin != "random search"]
    assert all(entry.refused is None and entry.measures["latency_ms"] <= 4.0 for entry in judged)
    first = [entry for entry in result.trained if entry.rung == 0 and entry.group == "search"]
    entered = [entry.key for entry in first if entry.reason.startswith("proposed in round")]
    assert len(set(entered)) == 4
    before = {entry.candidate.architecture.key for entry in judged[:6]}  # some may be trained in a round only
    assert len(judged) == 6 + len(set(entered) - before)
    assert len({entry.candidate.architecture.key for entry in judged}) == len(judged)
    assert result.best.search.measures["latency_ms"] <= 4.0
    stages = {stage.name: stage.trained for stage in result.ranking.added}
    assert (stages["round 1"], stages["round 2"], sum(stages.values())) == (2, 2, 7)
    total = len(files.read_jsonl(folder / "measures.jsonl"))
    for stop in (total - 1, total - 3):  # interrupted while the last round is measured, and before
        with pytest.raises(KeyboardInterrupt):
            run_search(config(**changed), data, other, device="cpu", measurement=_ByMacs(stop))
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(other, kept)
        run_search(config(**changed), data, kept, device="cpu", measurement=_ByMacs())
        assert contents(kept) == contents(folder)
        shutil.rmtree(other)


def test_a_limit_that_only_the_smallest_networks_keep_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2,000 draws the smallest has 13,880 multiply-accumulates, the smallest network 5,968."""
    monkeypatch.setattr(proposals, "POOL", 50)
    monkeypatch.setattr(random, "TRIES", 200)
    monkeypatch.setattr(hypernet, "ATTEMPTS", 20)
    changed = {
        "measured": {"target": "test"},
        "latency_limits": (Limit("0.13ms", 0.13),),
        "limits": CostLimits(),
        "finalists": FinalistsConfig(count=3, rungs=(1,), random=1, recipe=Recipe(batch=32)),
    }
    data = small_digits(train=64, validation=48)
    result = run_search(config(**changed), data, tmp_path / "run", device="cpu", measurement=_ByMacs())
    assert {entry.candidate.origin for entry in result.scored} >= {"smallest", "mutation"}
    assert result.candidates == 6
    assert all(entry.measures["latency_ms"] <= 0.13 for entry in result.scored)


def test_every_limit_has_its_share_of_what_rounds_propose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where errors fall with size, what promises most keeps the largest limit alone; one model serves all."""

    def trained(worker: Worker, finalist: Finalist, rung: int) -> Trained:
        error = 1 / (1 + finalist.macs / 1e5)
        return Trained(
            "search", finalist.architecture.key, finalist.reason, 0.5, finalist.macs, 0, 1, error, 1.0
        )

    class Counted(ErrorModel):
        def __init__(self, rows: Sequence[Mapping[str, float]], judged: Sequence[float]) -> None:
            fits.append(len(judged))
            super().__init__(rows, judged)

    fits: list[int] = []
    monkeypatch.setattr(race, "ErrorModel", Counted)
    monkeypatch.setattr(Worker, "train", trained)
    monkeypatch.setattr(proposals, "POOL", 40)
    monkeypatch.setattr(hypernet, "ATTEMPTS", 20)
    changed = {
        "measured": {"target": "test"},
        "latency_limits": (Limit("1.2ms", 1.2), Limit("4ms", 4.0)),
        "limits": CostLimits(),
        "known": 2,
        "finalists": FinalistsConfig(
            count=3, rounds=1, per_round=4, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32)
        ),
    }
    data = small_digits(train=64, validation=48)
    result = run_search(config(**changed), data, tmp_path / "run", device="cpu", measurement=_ByMacs())
    latencies = {entry.candidate.architecture.key: entry.measures["latency_ms"] for entry in result.scored}
    proposed = [latencies[entry.key] for entry in result.trained if entry.reason.startswith("proposed")]
    assert len(proposed) == 4
    assert sum(latency <= 1.2 for latency in proposed) >= 2
    assert fits == [3]


def _proposed(folder: Path, monkeypatch: pytest.MonkeyPatch, error: float) -> dict[str, set[str]]:
    """Networks by how they came into the race, where all of the first round of proposals reach one error."""

    def trained(worker: Worker, finalist: Finalist, rung: int) -> Trained:
        reached = error if finalist.reason.startswith("proposed in round 1") else 0.5
        key, reason = finalist.architecture.key, finalist.reason
        return Trained("search", key, reason, 0.5, finalist.macs, 0, 1, reached + finalist.macs / 1e9, 1.0)

    monkeypatch.setattr(Worker, "train", trained)
    monkeypatch.setattr(proposals, "POOL", 60)
    finalists = FinalistsConfig(
        count=4, rounds=2, per_round=3, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32)
    )
    entered: dict[str, set[str]] = {}
    for entry in search(folder, finalists=finalists).trained:
        entered.setdefault(entry.reason.partition(":")[0], set()).add(entry.key)
    return entered


def test_what_a_round_taught_changes_what_the_next_one_proposes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (_proposed(tmp_path / str(error), monkeypatch, error) for error in (0.1, 0.9))
    assert good["proposed in round 1"] == bad["proposed in round 1"], "nothing is different before"
    assert len(good["proposed in round 2"]) == len(bad["proposed in round 2"]) == 3
    assert good["proposed in round 2"] != bad["proposed in round 2"]


def test_latency_is_predicted_though_hardly_a_draw_is_within_the_limits_on_cost(tmp_path: Path) -> None:
    """A few draws of 256 have at most 40,000 multiply-accumulates."""
    limits = CostLimits(macs=40_000)
    run = Run(
        config(limits=limits, latency_limits=(Limit("4ms", 4.0),)),
        small_digits(train=64, validation=48),
        tmp_path,
        torch.device("cpu"),
        measurement=_ByMacs(),
    )
    bounds = Bounds(run)
    drawn = probe_draws(run.space, run.config.seed)
    assert sum(bounds.within_cost(entry) for entry in drawn) < LEAST
    supernet = new_supernet(run.space, run.spec, run.classes, run.config.hypernet, seed=0)
    parts = run.dataset, run.config.scoring, run.config.finalists, run.measurement, run.folder
    bounds.survey(Worker(Equipment(supernet, *parts)))
    assert bounds.model is not None
    assert all(bounds.within_cost(entry) for entry in bounds.probes)


class _Erratic(_ByMacs):
    """Up to 1.6 times slower than its multiply-accumulates say, for reasons that no model sees."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        expected = super().measure(architecture)["latency_ms"]
        return {"latency_ms": expected * (1 + 0.6 * (int(architecture.key, 16) % 97) / 97)}


def test_rounds_are_full_where_most_that_is_proposed_at_the_limit_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "POOL", 100)
    changed = {
        "measured": {"target": "test"},
        "latency_limits": (Limit("4ms", 4.0),),
        "limits": CostLimits(),
        "finalists": FinalistsConfig(
            count=3, rounds=2, per_round=4, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32)
        ),
    }
    data = small_digits(train=64, validation=48)
    result = run_search(config(**changed), data, tmp_path / "run", device="cpu", measurement=_Erratic())
    proposed = [entry for entry in result.trained if entry.reason.startswith("proposed in round")]
    assert len(proposed) == 8


def test_rounds_leave_out_what_is_scored_far_worse_than_the_trained_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "POOL", 50)
    monkeypatch.setattr(proposals, "FENCE", 0.0)
    finalists = FinalistsConfig(
        count=6, rounds=1, per_round=3, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32)
    )
    data = small_digits(train=64, validation=48)
    result = run_search(config(finalists=finalists), data, tmp_path / "run", device="cpu")
    scores = {entry.candidate.architecture.key: entry.score.error for entry in result.scored if entry.score}
    first, proposed = (
        [scores[entry.key] for entry in result.trained if entry.reason.startswith("proposed") == late]
        for late in (False, True)
    )
    assert len(proposed) == 3
    assert max(proposed) <= np.percentile(first, 75) < max(first)


def test_a_search_over_volumes_goes_through_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "POOL", 50)
    changed = config(
        known=2,
        training=TrainingConfig(steps=2, batch=16, architectures=1),
        finalists=FinalistsConfig(
            count=2, rounds=1, per_round=2, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=16)
        ),
    )
    data = small_volumes()
    result = run_search(changed, data, tmp_path / "run", device="cpu")
    best = read_best(tmp_path / "run" / "best.json")
    assert best.input == InputSpec(1, (8, 8, 8))
    assert result.candidates >= 6
    assert {entry.candidate.architecture.dims for entry in result.scored} == {3}
    assert sum(entry.reason.startswith("proposed in round") for entry in result.trained) == 2
    supernet = load_supernet(tmp_path / "run")
    logits = supernet(best.architecture, torch.zeros(2, 1, 8, 8, 8))
    assert logits.shape == (2, len(data.classes))
