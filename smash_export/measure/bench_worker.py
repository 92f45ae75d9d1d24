"""One measured file in one process: ``python -m smash_export.measure.bench_worker`` and the handle to it.

The parent writes one JSON request per line to the child's stdin and reads one JSON answer per line.
Runtimes print to stdout as they like, so the child keeps the answers on a descriptor of its own and
sends stdout to stderr. A child that crashes or stays silent is an error of its file and of nothing else.

Peak memory is VmHWM, which starts anew with the process image. ru_maxrss would not do: across exec it
keeps the peak of the process that forked, which had numpy and perhaps torch loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from smash_base.errors import (
    InvalidInputError,
    MissingRuntimeError,
    SmashError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.runnable import RunnableFile

_KINDS = {
    kind.__name__: kind for kind in (InvalidInputError, MissingRuntimeError, UsageError, VerificationError)
}


class Worker:
    """A process that holds one opened file and measures it when asked.

    Attributes:
        runtime: what the session says it uses.
        cold_start: seconds; see :class:`smash_export.measure.bench.Measurement`.
    """

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], errors: IO[bytes], timeout: float
    ) -> None:
        self._name, self._process, self._errors, self._timeout = name, process, errors, timeout
        self._pending = b""
        self.runtime: dict[str, Any] = {}
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
    ) -> Worker:
        """Start the process, open the file and classify a first image.

        Args:
            images: .npy file, uint8 [N, *sample_shape].
            threads: for one inference; None leaves it to the runtime.
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
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "smash_export.measure.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        worker = cls(file.name, process, errors, timeout)
        try:
            answer = worker._ask(
                {
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
        worker.runtime = answer["runtime"]
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

    def logits(self, destination: Path) -> None:
        """Write the logits of all images to a .npy file, float32 [N, K]."""
        self._ask({"do": "logits", "destination": str(destination)})

    def scenario(self, name: str, seconds: float) -> dict[str, Any]:
        """Run one LoadGen scenario; see :func:`smash_export.measure.loadgen.run_scenario`."""
        result: dict[str, Any] = self._ask(
            {"do": "scenario", "name": name, "seconds": seconds}, 10 * seconds
        )["result"]
        return result

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # a closed stdin ends it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def _ask(self, request: dict[str, Any], extra: float = 0.0) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._crash() from None
        answer: dict[str, Any] = json.loads(self._line(time.monotonic() + self._timeout + extra))
        if "error" in answer:
            error = answer["error"]
            raise _KINDS.get(error["kind"], SmashError)(
                error["what"], expected=error["expected"], received=error["received"], hint=error["hint"]
            )
        return answer

    def _line(self, deadline: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise VerificationError(
                        f"{self._name} did not answer", expected=f"an answer within {self._timeout:g} s"
                    )
                data = os.read(stdout.fileno(), 1 << 20)
                if not data:
                    raise self._crash()
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _crash(self) -> VerificationError:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        return VerificationError(
            f"the process of {self._name} ended with {how}", received=words[-1] if words else None
        )


# --- the child -------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    begin = time.perf_counter()
    child: _Child | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if child is None:
                child = _Child(request, begin)
                answer: dict[str, Any] = child.opened
            else:
                answer = child.answer(request)
        except SmashError as error:
            answer = {
                "error": {
                    "kind": type(error).__name__,
                    "what": error.what,
                    "expected": error.expected,
                    "received": error.received,
                    "hint": error.hint,
                }
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Child:
    def __init__(self, request: dict[str, Any], begin: float) -> None:
        import numpy as np

        from smash_base.preprocess import Preprocessing
        from smash_targets.base import ModelSignature, SessionOptions, get_target

        signature = dict(request["signature"])
        signature["input_shape"] = tuple(signature["input_shape"])
        signature["batch"] = tuple(signature["batch"])
        self.signature = ModelSignature(**signature)
        self.preprocessing = Preprocessing.from_json(request["preprocessing"])
        self.labels: list[str] = request["labels"]
        self.images = np.load(request["images"], mmap_mode="r", allow_pickle=False)
        self.base = _peak_memory()
        target = get_target(request["target"])
        target.require()  # imports the runtime
        imported = time.perf_counter()
        options = SessionOptions(threads=request["threads"])
        self.session = target.open(Path(request["path"]), self.signature, options)
        opened = time.perf_counter()
        self._run(1)
        first = time.perf_counter()
        self.opened = {
            "runtime": asdict(self.session.info),
            "cold_start": {
                "import_s": round(imported - begin, 4),
                "open_s": round(opened - imported, 4),
                "first_s": round(first - opened, 4),
            },
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        from smash_export.measure.timing import time_runs

        kind = request["do"]
        if kind == "time":
            batch = self._batch(request["batch"])
            time_runs(self.session, batch, 0.02, least=3)  # caches were used by other processes meanwhile
            return {"times": time_runs(self.session, batch, request["seconds"], least=5).tolist()}
        if kind == "stages":
            return {"stages": self._stages(request["seconds"])}
        if kind == "memory":
            return {"memory": {"peak_bytes": _peak_memory(), "base_bytes": self.base}}
        if kind == "logits":
            return self._logits(Path(request["destination"]))
        from smash_export.measure.loadgen import run_scenario

        result = run_scenario(
            self.session,
            self.preprocessing.normalise(self.images[:1024]),
            request["name"],
            seconds=request["seconds"],
            largest_batch=self.signature.batch[2],
        )
        return {"result": result.to_json()}

    def _batch(self, size: int) -> Any:
        """The first images of the data, float32 [size, *input_shape]; repeated when there are fewer."""
        import numpy as np

        return self.preprocessing.normalise(np.take(self.images, range(size), axis=0, mode="wrap"))

    def _run(self, size: int) -> None:
        import numpy as np

        # A static file takes its own batch only.
        logits = self.session.run(self._batch(max(size, self.signature.batch[0])))
        if not np.isfinite(logits).all():
            raise VerificationError(
                "the file answers with numbers that are none", expected="finite logits", received="NaN or inf"
            )

    def _stages(self, seconds: float) -> dict[str, float]:
        """Each step of one prediction, timed apart on the same images."""
        import io

        import numpy as np
        from PIL import Image

        from smash_base.preprocess import probabilities_of

        smallest = self.signature.batch[0]
        pictures: list[Any] = [np.array(image) for image in self.images[:16]]
        if self.preprocessing.depth is None and self.preprocessing.channels in (1, 3):
            for index, image in enumerate(pictures):
                stream = io.BytesIO()
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
                pictures[index] = stream.getvalue()
        clock = time.perf_counter_ns
        times: list[tuple[int, ...]] = []
        end = clock() + int(seconds * 1e9)
        while clock() < end or len(times) < 20:
            image = pictures[len(times) % len(pictures)]
            t0 = clock()
            batch = self.preprocessing.batch([image] * smallest)
            t1 = clock()
            logits = self.session.run(batch)
            t2 = clock()
            chances = probabilities_of(logits, self.signature.outputs)[0]
            _ = [(self.labels[i], float(chances[i])) for i in np.argsort(-chances, kind="stable")[:5]]
            times.append((t1 - t0, t2 - t1, clock() - t2, clock() - t0))
        medians = np.median(np.asarray(times, dtype=np.float64), axis=0) / 1e6
        names = ("preprocess", "inference", "postprocess", "end_to_end")
        return {name: round(float(value), 6) for name, value in zip(names, medians, strict=True)}

    def _logits(self, destination: Path) -> dict[str, Any]:
        import numpy as np

        from smash_export.prediction.batches import run_images

        logits = run_images(self.session, self.images, self.preprocessing, self.signature.batch)
        np.save(destination, logits.astype(np.float32), allow_pickle=False)
        return {}


def _peak_memory() -> int:
    """Largest resident size of this process image so far, in bytes; 0 where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
