"""What a GPU makes of the search: HyperNet steps, networks scored, images trained, and where the time goes.

    python -m benchmarks.gpu [--seconds 20] [--out gpu.json]    on a machine with a GPU, under 5 minutes
    python -m benchmarks.gpu --size toy --device cpu             the same at toy size, in seconds
    python -m benchmarks.gpu --from gpu.json                     record what another machine measured
    python -m benchmarks.gpu --plan                              record that nothing was measured

Measuring needs PyTorch, numpy and Pillow and a copy of this repository, nothing else: images are noise.
Recording needs the project itself. Every figure is of whole steps, from the drawn architecture on, each
waited for.

- HyperNet step: draw, encode, generate, forward, backward, update; one architecture, 50 images.
- Score: generate weights, classify 500 images in batches of 250 whose own statistics normalise them.
- Training: one network of the space, batches of 128 images, as ``freeze --weights retrain`` trains it.
- Share of time in convolutions: of all operators' own time on the device, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType

from smash_base.files import write_json
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.interpreter import forward
from smash_search.space.architecture import InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for
from smash_search.train.compute import autocast, memory_format
from smash_search.train.hypernet import new_supernet
from smash_search.train.network import new_network

NOT_HERE = "no machine with a GPU was at hand"
CLASSES = 10


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        space: name of the space.
        spec: Shape of the images.
        step_images: Images of one HyperNet step.
        score_images, score_batch: Images and batch size of one score.
        training_batch: Images of one training step.
    """

    space: str
    spec: InputSpec
    step_images: int
    score_images: int
    score_batch: int
    training_batch: int


SIZES = {
    "paper": Size("paper", InputSpec(3, (32, 32)), 50, 500, 250, 128),
    "toy": Size("tiny", InputSpec(1, (8, 8)), 8, 16, 8, 8),
}
GOALS = {
    "step_ms": "HyperNet step at the paper's size",
    "networks_per_second": "networks scored a second, 500 images each",
    "images_per_second": "training images a second",
    "share_of_convolutions": "share of a HyperNet step's time in convolutions",
}


class Bench:
    """One device, one size; every method measures one thing for about ``seconds``."""

    def __init__(self, size: Size, device: str, seconds: float) -> None:
        self.size, self.device, self.seconds = size, torch.device(device), seconds
        self.space = space_for(size.spec, size.space)
        self.format = memory_format(size.spec.dims, self.device)
        self.supernet = new_supernet(self.space, size.spec, CLASSES, HyperNetConfig(), seed=0).to(self.device)
        self.optimiser = torch.optim.Adam(self.supernet.parameters(), lr=1e-3, betas=(0.5, 0.999), eps=1e-4)
        self.slot = 0

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Noise on the device, float32 [count, C, H, W], and labels."""
        shape = (count, self.size.spec.channels, *self.size.spec.size)
        images = torch.randn(shape, device=self.device).contiguous(memory_format=self.format)
        return images, torch.randint(CLASSES, (count,), device=self.device)

    def hypernet_step(self) -> dict[str, float]:
        """Milliseconds of a step."""
        images, labels = self.images(self.size.step_images)
        seconds = self._repeat(lambda: self._step(images, labels))
        return {**_spread(seconds, "step_ms", 1000), "steps": len(seconds)}

    def scoring(self) -> dict[str, float]:
        """Networks a second."""
        images, _ = self.images(self.size.score_images)
        seconds = self._repeat(lambda: self._score(images.split(self.size.score_batch)))
        return {"networks_per_second": 1 / statistics.median(seconds), "networks": len(seconds)}

    def training(self) -> dict[str, float]:
        """Images a second of one network."""
        architecture = self.space.draw(1, 0)
        network = new_network(architecture, self.size.spec, CLASSES, seed=0).to(self.device).train()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        images, labels = self.images(self.size.training_batch)

        def step() -> None:
            with autocast(self.device):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

        seconds = self._repeat(step)
        return {
            "images_per_second": self.size.training_batch / statistics.median(seconds),
            "macs": cost_of(architecture, self.size.spec, CLASSES).macs,
            "steps": len(seconds),
        }

    def share_of_convolutions(self) -> dict[str, float]:
        """Of a few HyperNet steps, by PyTorch's profiler."""
        from torch.profiler import ProfilerActivity, profile

        images, labels = self.images(self.size.step_images)
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            for _ in range(3):
                self._step(images, labels)
            self._wait()
        spent = {event.key: self._own_time(event) for event in profiler.key_averages() if _is_operator(event)}
        whole = sum(spent.values())
        inside = sum(value for name, value in spent.items() if "conv" in name)
        return {"share_of_convolutions": inside / whole if whole else float("nan")}

    def _own_time(self, event: Any) -> float:
        """Microseconds of an operator itself, on the GPU where there is one."""
        if self.device.type != "cuda":
            return float(event.self_cpu_time_total)
        return float(getattr(event, "self_device_time_total", 0))

    def _step(self, images: Tensor, labels: Tensor) -> None:
        architecture = self._next()
        with autocast(self.device, on_cpu=True):
            source = self.supernet.source(architecture, noise_seed=self.slot)
            loss = F.cross_entropy(forward(architecture, source, images).float(), labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    @torch.no_grad()
    def _score(self, parts: tuple[Tensor, ...]) -> None:
        architecture = self._next()
        with autocast(self.device, on_cpu=True):
            source = self.supernet.source(architecture, noise_seed=self.slot)
            for part in parts:
                forward(architecture, source, part)

    def _next(self) -> Any:
        """A new architecture for every call, as in a search."""
        self.slot += 1
        return self.space.draw(0, self.slot)

    def _repeat(self, work: Callable[[], None]) -> list[float]:
        """Seconds of each call, after a few that are not counted."""
        for _ in range(3):
            work()
        self._wait()
        seconds: list[float] = []
        end = time.monotonic() + self.seconds
        while len(seconds) < 3 or time.monotonic() < end:
            begin = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(size: str, device: str, seconds: float) -> dict[str, Any]:
    """Every part, and what it was measured on."""
    bench = Bench(SIZES[size], device, seconds)
    results: dict[str, Any] = {"size": size, **asdict(SIZES[size]), "device": device}
    results["torch"] = torch.__version__
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        results |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for part in (bench.hypernet_step, bench.scoring, bench.training, bench.share_of_convolutions):
        results[part.__name__] = part()
    if bench.device.type == "cuda":
        results["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return results


def goals_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that are wanted, without limits as yet; only those of a GPU at full size count."""
    counts = results.get("size") == "paper" and str(results.get("device", "")).startswith("cuda")
    parts = [part for part in results.values() if isinstance(part, dict)]
    figures = {key: value for part in parts for key, value in part.items()}
    return [
        {
            "what": what,
            "goal": "a figure",
            "value": round(figures[name], 4) if counts else "",
            "met": True if counts else None,
            "note": f"on {results['gpu']}" if counts else NOT_HERE,
        }
        for name, what in GOALS.items()
    ]


def _spread(seconds: list[float], name: str, factor: float) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        name: factor * statistics.median(ordered),
        f"{name}_p90": factor * ordered[int(0.9 * (len(ordered) - 1))],
    }


def _is_operator(event: Any) -> bool:
    """Operators of PyTorch; the kernels that they launch stand in their own time already."""
    return str(event.key).startswith("aten::") and event.device_type == DeviceType.CPU


def main() -> int:
    """Measure or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="paper")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON; else they are printed")
    parser.add_argument("--from", dest="source", type=Path, help="record these figures")
    parser.add_argument("--plan", action="store_true", help="record that nothing was measured")
    arguments = parser.parse_args()
    if arguments.plan or arguments.source:
        from benchmarks.record import record

        results = json.loads(arguments.source.read_text()) if arguments.source else {"why": NOT_HERE}
        record("gpu", results, goals_of(results))
        return 0
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("PyTorch finds no CUDA device; at toy size: --size toy --device cpu", file=sys.stderr)
        return 3
    results = measure(arguments.size, arguments.device, arguments.seconds)
    if arguments.out:
        write_json(arguments.out, results)
    else:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
