"""The process that one measured file has to itself: ``python -m smash_export.measure.bench_child NAME``.

Packages are imported where they are used: what that takes is part of the cold start.

Peak memory is VmHWM, which starts anew with the process image. ru_maxrss would not do: across exec it
keeps the peak of the process that forked, which had numpy and perhaps torch loaded.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base.errors import VerificationError

if TYPE_CHECKING:
    from smash_base.json_values import JsonObject


def main() -> None:
    """Answer requests until stdin closes; the first one opens the file."""
    begin = time.perf_counter()
    from smash_targets.isolation.answers import answer_all

    opened: list[_File] = []

    def answer(message: dict[str, Any], array: Any, send: Any) -> tuple[JsonObject, Any]:
        if not opened:
            opened.append(_File(message, begin))
            return opened[0].opened, None
        if message["do"] == "logits":
            return {}, opened[0].logits()
        return opened[0].answer(message), None

    answer_all(sys.argv[1], answer)


class _File:
    """One opened file with the images that it is measured on."""

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
        self.opened: JsonObject = {
            "runtime": asdict(self.session.info),
            "cold_start": {
                "import_s": round(imported - begin, 4),
                "open_s": round(opened - imported, 4),
                "first_s": round(first - opened, 4),
            },
        }

    def answer(self, request: dict[str, Any]) -> JsonObject:
        """JSON values for everything but logits."""
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

    def logits(self) -> Any:
        """Logits of all images, float32 [N, K]."""
        from smash_export.prediction.batches import run_images

        return run_images(self.session, self.images, self.preprocessing, self.signature.batch)


def _peak_memory() -> int:
    """Largest resident size of this process image so far, in bytes; 0 where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
