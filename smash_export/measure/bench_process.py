"""One measured file in one process: the handle to it. The process is :mod:`smash_export.measure.bench_child`.

They speak as every child of this project does (:mod:`smash_targets.isolation.process`). A child that crashes
or stays silent is an error of its file and of nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_export.measure.loadgen import LoadGenResult
from smash_targets.base import SessionInfo
from smash_targets.isolation.process import ChildProcess

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.runnable import RunnableFile


class BenchProcess:
    """A process that holds one opened file and measures it when asked.

    Attributes:
        runtime: what the session says it uses.
        cold_start: seconds; see :class:`smash_export.measure.bench.FileMeasurement`.
    """

    def __init__(self, child: ChildProcess, timeout: float) -> None:
        self._child, self._timeout = child, timeout
        self.runtime = SessionInfo("", "", "", "", 0, "")  # until it has opened the file
        self.cold_start: dict[str, float] = {}

    @classmethod
    def start(
        cls,
        bundle: Bundle,
        file: RunnableFile,
        images: Path,
        *,
        threads: int | None = 1,
        timeout: float = 120.0,
    ) -> BenchProcess:
        """Start the process, open the file and classify a first image.

        Args:
            images: .npy file, uint8 [N, *sample_shape].
            threads: Threads of one inference; None leaves it to the runtime.
            timeout: seconds that any answer may take beyond the time it was asked to measure.

        Raises:
            SmashError: the file cannot be opened or run, or the process crashed or hung.
        """
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        environment["OMP_WAIT_POLICY"] = "PASSIVE"  # idle pools must not take the core from the next file
        here = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        begin = time.monotonic()
        words = [sys.executable, "-P", "-m", "smash_export.measure.bench_child", file.name]
        worker = cls(ChildProcess(file.name, words, environment), timeout)
        try:
            answer = worker._ask(
                {
                    "do": "open",
                    "target": file.target,
                    "path": str(file.path),
                    "signature": asdict(bundle.signature),
                    "preprocessing": bundle.preprocessing.to_json(),
                    "labels": list(bundle.labels),
                    "images": str(images),
                    "threads": threads,
                }
            )
        except BaseException:
            worker.stop()
            raise
        worker.runtime = SessionInfo(**answer["runtime"])
        worker.cold_start = {"total_s": round(time.monotonic() - begin, 4), **answer["cold_start"]}
        return worker

    def time(self, batch: int, seconds: float) -> list[int]:
        """Nanoseconds of single inferences."""
        times: list[int] = self._ask({"do": "time", "batch": batch, "seconds": seconds}, seconds)["times"]
        return times

    def stages(self, seconds: float) -> dict[str, float]:
        """Median milliseconds of pre-processing, inference, post-processing and the whole."""
        stages: dict[str, float] = self._ask({"do": "stages", "seconds": seconds}, seconds)["stages"]
        return stages

    def memory(self) -> dict[str, int]:
        """Peak resident bytes so far, and bytes before the runtime was imported."""
        memory: dict[str, int] = self._ask({"do": "memory"})["memory"]
        return memory

    def logits(self) -> np.ndarray:
        """Logits of all images, float32 [N, K]."""
        _, logits = self._child.ask({"do": "logits"}, seconds=self._timeout)
        assert logits is not None
        return logits

    def scenario(self, name: str, seconds: float) -> LoadGenResult:
        """Run one LoadGen scenario; see :func:`smash_export.measure.loadgen.run_scenario`."""
        answer = self._ask({"do": "scenario", "name": name, "seconds": seconds}, 10 * seconds)
        return read_record(LoadGenResult, answer["result"], name)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._child.close()

    def _ask(self, message: JsonObject, extra: float = 0.0) -> dict[str, Any]:
        answer, _ = self._child.ask(message, seconds=self._timeout + extra)
        return answer
