"""Workers: equal results wherever they are, work of a killed one done again once, errors that come back."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_search.data import Split
from smash_search.data.arrays import read_member
from smash_search.executors import ExecutorConfig, Task, make_executor
from smash_search.executors.pool import WorkerDiedError
from smash_search.executors.process import Processes
from smash_search.executors.work import Equipment, Remote, Worker, _place
from smash_search.model.hypernet import HyperNetConfig
from smash_search.rank import proposals
from smash_search.rank.finalists import Finalist, FinalistsConfig
from smash_search.rank.pareto import Limit
from smash_search.rank.scoring import ScoringConfig
from smash_search.run import run_search
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.space import space_for
from smash_search.train.hypernet import new_supernet
from smash_search.train.recipes import Recipe
from tests.search.executors.devices import Device, InTurns
from tests.search.run_small_search import config, contents
from tests.search.several_data import several_digits
from tests.search.small_data import small_digits
from tests.threads import torch_threads

SPEC = InputSpec(1, (8, 8))
SPACE = space_for(SPEC)
TWO = ExecutorConfig("process", workers=2, threads=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As many as the workers have; sums of other lengths are rounded otherwise."""
    with torch_threads(1):
        yield


def _equipment(folder: Path, measurement: object = None) -> Equipment:
    supernet = new_supernet(SPACE, SPEC, 10, HyperNetConfig(depths=(1, 1)), seed=0)
    return Equipment(
        supernet,
        small_digits(train=64, validation=32),
        ScoringConfig(statistics_images=32, images=(0,), batch=32),
        FinalistsConfig(count=2, rungs=(1, 2), recipe=Recipe(batch=32), random=0),
        measurement,  # type: ignore[arg-type]
        folder,
    )


def _architectures(count: int) -> list[Architecture]:
    drawn = (SPACE.draw(0, slot) for slot in range(5 * count))
    return sorted(drawn, key=lambda architecture: architecture.op_count)[:count]


def _processes(equipment: Equipment) -> Processes:
    return make_executor(TWO, equipment, Worker(equipment))  # type: ignore[return-value]


def _measuring(architectures: list[Architecture]) -> list[Task]:
    return [Task("measure", (architecture,), architecture.key) for architecture in architectures]


@pytest.mark.parametrize(
    "executor",
    [
        TWO,
        pytest.param(
            ExecutorConfig("ray", workers=2, threads=1),
            marks=[
                pytest.mark.slow,  # Ray takes seconds to start
                pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
            ],
        ),
    ],
    ids=lambda executor: executor.name,
)
def test_a_search_with_two_workers_ends_with_the_bytes_of_a_search_with_none(
    executor: ExecutorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "POOL", 50)
    changed = config(
        known=2,
        measured={"target": "test"},
        latency_limits=(Limit("4ms", 4.0),),
        finalists=FinalistsConfig(
            count=3, rounds=1, per_round=2, rungs=(1, 2), random=1, recipe=Recipe(batch=32)
        ),
    )
    data = small_digits(train=64, validation=48)
    for name, settings in (("serial", ExecutorConfig()), ("workers", executor)):
        folder = tmp_path / name / "run"
        result = run_search(changed, data, folder, device="cpu", measurement=InTurns(), executor=settings)
        assert sum(entry.reason.startswith("proposed in round") for entry in result.trained) >= 2
        assert any(entry.candidate.origin == "known" for entry in result.scored)
    one, other = tmp_path / "serial" / "run", tmp_path / "workers" / "run"
    assert contents(other) == contents(one)
    for name in ("measures.jsonl", "reference.jsonl", "confirmed.jsonl", "pareto.json"):
        assert (other / name).read_bytes() == (one / name).read_bytes()


def test_a_worker_scores_several_classes_as_this_process_does(tmp_path: Path) -> None:
    supernet = new_supernet(SPACE, SPEC, 3, HyperNetConfig(depths=(1, 1)), seed=0)
    equipment = replace(
        _equipment(tmp_path), supernet=supernet, dataset=several_digits(train=64, validation=32)
    )
    tasks = [Task("score", (entry, 32, None), entry.key) for entry in _architectures(2)]
    with closing(_processes(equipment)) as workers:
        results = dict(workers.run(tasks))
    here = Worker(equipment)
    assert results == {number: here.score(*task.arguments) for number, task in enumerate(tasks)}
    assert all(score.shares for score in results.values())


def test_the_work_of_a_killed_worker_is_done_again_once(tmp_path: Path) -> None:
    architectures = _architectures(4)
    device = Device(tmp_path, fatal=(architectures[1].key,))
    with closing(_processes(_equipment(tmp_path, device))) as workers:
        results = dict(workers.run(_measuring(architectures)))
        assert sorted(results) == [0, 1, 2, 3]
        attempts = [line.split()[0] for line in (tmp_path / "attempts").read_text().splitlines()]
        assert sorted(attempts) == sorted([*(a.key for a in architectures), architectures[1].key])
        for worker in list(workers._workers.values()):  # killed while it waits
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()
        assert dict(workers.run(_measuring(architectures[2:]))) == {0: results[2], 1: results[3]}


def test_a_task_that_kills_two_workers_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    first = {a.key: a for a in _small_candidates()}
    device = Device(tmp_path, fatal=(list(first)[3],), times=2)
    folder = tmp_path / "run"
    data = small_digits(train=64, validation=48)
    changed = config(measured={"target": "test"})
    with pytest.raises(WorkerDiedError, match=f"measure {list(first)[3]}"):
        run_search(changed, data, folder, device="cpu", measurement=device, executor=TWO)
    kept = [record["key"] for record in files.read_jsonl(folder / "measures.jsonl")]
    assert kept == list(first)[:3]
    run_search(changed, data, folder, device="cpu", measurement=device, executor=TWO)
    attempts = [line.split()[0] for line in (tmp_path / "attempts").read_text().splitlines()]
    assert [attempts.count(key) for key in first] == [1, 1, 1, 3, 1, 1]


def _small_candidates() -> list[Architecture]:
    """What the small search will ask for."""
    from smash_search.space.cost import cost_of
    from smash_search.strategies import Context
    from smash_search.strategies.random import draws

    context = Context(
        SPACE, 0, 6, lambda a: config().limits.refusal(cost_of(a, SPEC, 10)), lambda a: cost_of(a, SPEC, 10)
    )
    return [candidate.architecture for _, candidate in draws(context, 6, set())]


def test_measuring_alone_uses_one_worker(tmp_path: Path) -> None:
    with closing(_processes(_equipment(tmp_path, Device(tmp_path)))) as workers:
        list(workers.run(_measuring(_architectures(4)), alone=True))
    assert len({line.split()[1] for line in (tmp_path / "attempts").read_text().splitlines()}) == 1


def test_errors_of_workers_come_back_and_leave_the_others_usable(tmp_path: Path) -> None:
    architectures = _architectures(3)
    device = Device(tmp_path, broken=(architectures[0].key,))
    equipment = _equipment(tmp_path, device)
    with closing(_processes(equipment)) as workers:
        with pytest.raises(RuntimeError, match="a defect of the device"):
            list(workers.run(_measuring(architectures)))
        untrained = Task("train", (Finalist(architectures[1], "search", "test", None, 1), 1), "second rung")
        with pytest.raises(InvalidInputError, match="weights of a finalist are missing"):
            list(workers.run([untrained]))
        assert len(dict(workers.run(_measuring(architectures[1:])))) == 2


def test_what_cannot_be_sent_is_said_before_any_work(tmp_path: Path) -> None:
    class Local:
        pass

    with pytest.raises(UsageError, match="--executor serial"):
        _processes(_equipment(tmp_path, Local()))


def test_memory_mapped_images_travel_as_the_path_of_their_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2000, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    equipment = _equipment(tmp_path)
    data = equipment.dataset
    part = Split(mapped[700:1900], np.zeros(1200, np.int64))
    packed = replace(equipment, dataset=replace(data, train=part)).packed(1)
    assert len(packed) < len(replace(equipment, dataset=data).packed(1)) + 15_000
    remote = Remote(packed, 0)
    travelled = remote._worker.equipment.dataset.train.images
    assert isinstance(travelled, np.memmap)
    assert np.array_equal(travelled, images[700:1900])
    assert _place(mapped[700:1900]) - _place(mapped) == 700 * 64
    (tmp_path / "images.npy").unlink()
    kind, error = Remote(packed, 0).do(Task("score", (_architectures(1)[0], 32, None), "a"))
    assert kind == "error"
    assert "same path" in str(error)


def test_images_that_were_written_anew_are_refused_by_a_worker(tmp_path: Path) -> None:
    images = np.zeros((2000, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = read_member(tmp_path, "images")
    np.save(tmp_path / "new.npy", images + 1)
    os.replace(tmp_path / "new.npy", tmp_path / "images.npy")
    equipment = _equipment(tmp_path)
    part = Split(mapped[700:1900], np.zeros(1200, np.int64))
    packed = replace(equipment, dataset=replace(equipment.dataset, train=part)).packed(1)
    kind, error = Remote(packed, 0).do(Task("score", (_architectures(1)[0], 32, None), "a"))
    assert kind == "error"
    assert "written anew" in str(error)
    np.save(tmp_path / "images.npy", images[:10])
    kind, error = Remote(packed, 0).do(Task("score", (_architectures(1)[0], 32, None), "a"))
    assert (kind, "written anew" in str(error)) == ("error", True)


def test_cores_are_shared_and_settings_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert ExecutorConfig("process").size(gpus=0) == (8, 1)
    assert ExecutorConfig("process", workers=3).size(gpus=0) == (3, 2)
    assert ExecutorConfig("process").size(gpus=2) == (2, 4)
    with pytest.raises(UsageError, match="serial, process, ray"):
        ExecutorConfig("threads")
    with pytest.raises(UsageError, match="--executor process"):
        ExecutorConfig(workers=2)
    with pytest.raises(UsageError, match="executor ray"):
        ExecutorConfig("process", ray_address="auto")
    with pytest.raises(InvalidInputError, match="workers"):
        ExecutorConfig("process", workers=0)


def test_a_missing_ray_is_named_with_the_command_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingRuntimeError, match="pip install"):
        _search_with_ray(tmp_path / "run")


def _search_with_ray(folder: Path, address: str | None = None) -> None:
    data = small_digits(train=64, validation=48)
    run_search(config(), data, folder, device="cpu", executor=ExecutorConfig("ray", ray_address=address))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_an_address_that_never_answers_is_refused_in_seconds_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself asks it for three minutes."""
    monkeypatch.setattr("smash_search.executors.ray.ANSWER_SECONDS", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MissingRuntimeError, match=f"{address}.*within 4 s.*ray start --head"):
            _search_with_ray(tmp_path / "run", address)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_actors_do_the_same_work_and_replace_killed_ones(tmp_path: Path) -> None:
    architectures = _architectures(3)
    device = Device(tmp_path, fatal=(architectures[1].key,))
    equipment = _equipment(tmp_path, device)
    scoring = [Task("score", (a, 32, None), a.key) for a in architectures]
    serial = make_executor(ExecutorConfig(), equipment, Worker(equipment))
    expected = dict(serial.run(scoring))
    settings = ExecutorConfig("ray", workers=2, threads=1)
    with closing(make_executor(settings, equipment, Worker(equipment))) as workers:
        assert dict(workers.run(scoring)) == expected
        assert sorted(dict(workers.run(_measuring(architectures)))) == [0, 1, 2]
    attempts = [line.split()[0] for line in (tmp_path / "attempts").read_text().splitlines()]
    assert attempts.count(architectures[1].key) == 2


def test_epochs_of_networks_that_are_trained_beside_each_other_are_told_as_they_end(tmp_path: Path) -> None:
    equipment = _equipment(tmp_path)
    architectures = _architectures(3)
    tasks = [
        Task("train", (Finalist(entry, "search", "test", None, 1), 0), entry.key) for entry in architectures
    ]
    losses: dict[str, dict[int, list[float]]] = {}
    for name, settings in (("serial", ExecutorConfig()), ("process", TWO)):
        told: dict[int, list[float]] = {}
        rungs = replace(equipment.finalists, rungs=(2, 3))
        folder = tmp_path / name
        folder.mkdir()
        own = replace(equipment, finalists=rungs, folder=folder)
        with closing(make_executor(settings, own, Worker(own))) as workers:
            results = dict(
                workers.run(
                    tasks,
                    on_epoch=lambda index, entry, told=told: told.setdefault(index, []).append(entry.loss),
                )
            )
        assert sorted(results) == [0, 1, 2]
        losses[name] = told
    assert losses["process"] == losses["serial"]
    assert [len(losses["serial"][index]) for index in range(3)] == [2, 2, 2]


PARENT = """
import sys
from pathlib import Path
from contextlib import closing
from smash_search.executors import Task
from tests.search.executors.test_executors import _architectures, _equipment, _processes

if __name__ == "__main__":
    equipment = _equipment(Path(sys.argv[1]))
    with closing(_processes(equipment)) as workers:
        tasks = [Task("seconds_per_step", (entry,), entry.key) for entry in _architectures(2)]
        list(workers.run(tasks))
        print(*(worker.process.pid for worker in workers._workers.values()), flush=True)
        list(workers.run(tasks * 100_000))
"""


def test_workers_end_with_a_search_that_is_killed(tmp_path: Path) -> None:
    """Otherwise they would train on, beside its repetition."""
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while any(_is_running(number) for number in workers):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.05)


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
