"""A load that is refused: counted, let go of, and without effect on what is served."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smash_base.errors import InvalidInputError
from smash_export.bundle import manifest as layout
from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_export.prediction.classifier import Classifier, load
from smash_export.server import models
from smash_export.server.app import reload_all
from smash_export.server.batching import ThreadRequest
from smash_export.server.metrics import Metrics
from smash_export.server.models import ModelSpec, Repository
from smash_export.server.sizing import Batching
from tests.smash_export.server.test_lifecycle import relabel

UNREADABLE = Path("/proc/self/mem")  # there, and an OSError when it is read, for root as well


class Served:
    """Versions 1 and 2 of a model, and another model that comes after it."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.metrics = Metrics()
        names = ("model:1", "model:2", "other:1")
        self.paths = {name: folder / name.replace(":", "-") for name in names}
        for path in self.paths.values():
            shutil.copytree(bundle, path)
        specs = [ModelSpec.parse(f"{name}={path}") for name, path in self.paths.items()]
        self.repository = Repository(specs, Batching(8, 64), self.metrics, 1)
        self.repository.load_all()

    def break_version_2(self) -> None:
        manifest = self.paths["model:2"] / layout.NAME
        manifest.unlink()
        manifest.symlink_to(UNREADABLE)

    def told(self, name: str) -> set[str]:
        """Lines of the metrics that begin with this name."""
        return {line for line in self.metrics.text().decode().splitlines() if line.startswith(name)}


@pytest.fixture
def served(digits_bundle: Path, tmp_path: Path) -> Iterator[Served]:
    made = Served(digits_bundle, tmp_path)
    yield made
    made.repository.close()


def workers() -> int:
    return sum(thread.name.startswith("batch-model-") for thread in threading.enumerate())


def test_what_was_opened_before_a_file_that_cannot_be_read_is_let_go(served: Served) -> None:
    assert workers() == 2
    served.break_version_2()
    with pytest.raises(InvalidInputError, match=r"model-2 cannot be read"):
        served.repository.load("model")
    deadline = time.monotonic() + 10
    while workers() > 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 'smash_export_model_loads_total{model="model",result="refused"} 1.0' in served.told("smash")


def test_a_model_that_cannot_be_read_keeps_no_other_from_its_reload(served: Served) -> None:
    served.break_version_2()
    asyncio.run(reload_all(served.repository))
    loads = served.told("smash_export_model_loads_total")
    assert 'smash_export_model_loads_total{model="other",result="done"} 2.0' in loads
    assert served.repository.versions("model") == ["1", "2"]


@pytest.mark.parametrize("name", ["model", "other"])
def test_a_model_that_is_unloaded_during_a_reload_of_all_stays_unloaded(
    served: Served, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whether the reload has come to it or not."""
    askers: list[threading.Thread] = []

    def unloaded_meanwhile(bundle: Bundle, **wishes: Any) -> Classifier:
        if not askers:
            askers.append(threading.Thread(target=served.repository.unload, args=(name,)))
            askers[0].start()
        return load(bundle, **wishes)

    monkeypatch.setattr(models, "load", unloaded_meanwhile)
    asyncio.run(reload_all(served.repository))
    askers[0].join()
    assert served.repository.versions(name) == []
    asyncio.run(reload_all(served.repository))
    assert served.repository.ready(), "the next one opens every model"


def test_the_queue_that_is_told_is_that_of_the_model_that_is_served(served: Served) -> None:
    served.break_version_2()
    with pytest.raises(InvalidInputError):
        served.repository.load("model")  # version 1 was opened anew and let go
    with served.repository.use("model", "1") as model, model.batcher._turn:  # it runs something
        for _ in range(3):
            model.batcher.submit(ThreadRequest(np.zeros((1, 1, 8, 8), np.float32)))
        told = served.told("smash_export_queue_images")
    assert 'smash_export_queue_images{model="model",version="1"} 3.0' in told


def test_a_bundle_that_is_replaced_while_it_is_opened_gives_no_labels_to_the_network_of_another(
    served: Served, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = served.paths["other:1"]
    relabel(digits_bundle, path, "old-")

    def replaced_first(bundle: Bundle, **wishes: Any) -> Classifier:
        if bundle.labels[0] == "old-0":  # its files have been compared; none is open yet
            relabel(digits_bundle, path, "new-")
        return load(bundle, **wishes)

    monkeypatch.setattr(models, "load", replaced_first)
    served.repository.load("other")
    with served.repository.use("other") as model:
        assert model.labels == Bundle.open(path).labels
        assert not model.changed_on_disk()


def test_a_server_is_ready_without_what_somebody_unloaded(served: Served) -> None:
    """One unloaded model of two made load balancers take the whole server out."""
    served.repository.unload("other")
    assert served.repository.ready()
    served.repository.unload("model")
    assert not served.repository.ready(), "nothing is served"
    served.repository.load("other")
    assert served.repository.ready()


def test_what_commands_record_in_a_bundle_is_no_change_of_it(served: Served, digits_bundle: Path) -> None:
    path = served.paths["other:1"]
    Bundle.open(path).record("latency", {"milliseconds": 1})
    with served.repository.use("other") as model:
        assert not model.changed_on_disk()
    relabel(digits_bundle, path, "new-")
    with served.repository.use("other") as model:
        assert model.changed_on_disk()


def test_a_process_that_starts_later_serves_what_the_others_do_whatever_is_recommended_since(
    served: Served, tmp_path: Path
) -> None:
    others = served.repository.identities()
    path = served.paths["other:1"]
    compile_bundle(Bundle.open(path), "torchscript", isolated=False)
    advice = {"target": "torchscript", "precision": "fp32", "reason": "a test"}
    Bundle.open(path).record("recommendation", advice)
    with load(path) as alone:
        assert alone.choice.target == "torchscript"
    specs = [ModelSpec.parse(f"{name}={place}") for name, place in served.paths.items()]
    late = Repository(specs, Batching(8, 64), Metrics(), 1)
    late.load_all(served=others)
    try:
        assert late.identities() == others
    finally:
        late.close()


def test_each_request_of_a_batch_took_the_time_of_the_batch() -> None:
    """Triton's statistics: the time of a success is what its client waited, eight times for eight of one."""
    metrics = Metrics()
    requests = [ThreadRequest(np.zeros((1, 1, 8, 8), np.float32)) for _ in range(8)]
    for request in requests:
        request.waited, request.batch, request.ran = 0.001, 8, 0.008
    metrics.observer("model", "1")(requests)  # type: ignore[arg-type]
    for told in (metrics, Metrics.together([metrics.counts()])):
        stats = told.statistics("model", "1")["inference_stats"]
        assert isinstance(stats, dict)
        assert stats["success"] == {"count": 8, "ns": 8 * 9_000_000}


def test_numbers_of_a_model_begin_at_zero_when_it_is_served(served: Served) -> None:
    labels = '{model="model",version="1"}'
    for name in ("images_total", "run_errors_total", "run_seconds_count", "queue_seconds_count"):
        assert f"smash_export_{name}{labels} 0.0" in served.told("smash"), "a rate sees the first as growth"
    assert 'smash_export_model_loads_total{model="model",result="refused"} 0.0' in served.told("smash")
