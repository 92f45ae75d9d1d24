"""What a worker holds and can do, and how it travels to another process or machine."""

from __future__ import annotations

import copy
import io
import mmap
import os
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_search.data import maps
from smash_search.executors.task import Task
from smash_search.model.interpreter import Network
from smash_search.model.supernet import Supernet
from smash_search.rank.finalists import Finalist, FinalistsConfig, train_rung
from smash_search.rank.scoring import Score, Scorer, ScoringConfig
from smash_search.rank.trained import Trained
from smash_search.space.architecture import Architecture
from smash_search.train.answers import read_answers
from smash_search.train.network import Epoch, new_network, seconds_per_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from smash_search.data import Dataset
    from smash_search.rank.measurement import Measurement


@dataclass(frozen=True)
class Equipment:
    """Everything that work depends on beside the task.

    Attributes:
        supernet: trained.
        dataset: training and validation images.
        scoring, finalists: Settings of the search.
        measurement: Measurement of candidates on a device, or None.
        folder: Folder of the run; its ``finalists`` holds weights between rungs. Workers on other machines
            need it under the same path.
        device: where PyTorch computes, "cuda" for any GPU.
        threads: PyTorch threads; None leaves them alone.
    """

    supernet: Supernet
    dataset: Dataset
    scoring: ScoringConfig
    finalists: FinalistsConfig
    measurement: Measurement | None
    folder: Path
    device: str = "cpu"
    threads: int | None = None

    def packed(self, threads: int) -> bytes:
        """As bytes; memory-mapped images go as the path of their file.

        Raises:
            UsageError: the measurement cannot be sent to another process.
        """
        stream = io.BytesIO()
        supernet = copy.deepcopy(self.supernet).cpu()  # other machines number their GPUs themselves
        travelling = replace(self, supernet=supernet, threads=threads, folder=self.folder.resolve())
        try:
            _Packer(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(travelling)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(
                "the work cannot be sent to other processes",
                received=error,
                hint="Pass --executor serial, or define data and measurement at the top of a module.",
            ) from None
        return stream.getvalue()


class Worker:
    """Does tasks with its equipment; HyperNet and images are set up when they are first needed.

    Args:
        equipment: see there.
        number: Number of this worker; spreads workers over the GPUs of a machine.
    """

    def __init__(self, equipment: Equipment, number: int = 0) -> None:
        self.equipment = equipment
        self.on_epoch: Callable[[Epoch], None] | None = None  # of training, for who waits
        if equipment.threads is not None:
            torch.set_num_threads(equipment.threads)
        device = equipment.device
        if device == "cuda" and torch.cuda.device_count() > 1:
            device = f"cuda:{number % torch.cuda.device_count()}"
        self._device = torch.device(device)

    @cached_property
    def scorer(self) -> Scorer:
        """Holds HyperNet and images on the device."""
        equipment = self.equipment
        return Scorer(equipment.supernet, equipment.dataset, equipment.scoring, self._device)

    def score(self, architecture: Architecture, images: int, known: Score | None) -> Score:
        """See :meth:`Scorer.score`."""
        return self.scorer.score(architecture, images, known)

    def measure(self, architecture: Architecture) -> dict[str, float]:
        """Measure on the device that the search is for."""
        assert self.equipment.measurement is not None  # nobody asks otherwise
        return self.equipment.measurement.measure(architecture)

    def confirm(self, architecture: Architecture) -> dict[str, float]:
        """Measure longer."""
        assert self.equipment.measurement is not None
        return self.equipment.measurement.confirm(architecture)

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        """Measure in turns with others."""
        assert self.equipment.measurement is not None
        return self.equipment.measurement.times_over(architecture, others, briefly)

    def train(self, finalist: Finalist, rung: int) -> Trained:
        """Train a finalist through one rung.

        Raises:
            UsageError: the folder of the run is not there (a machine without the shared file system).
        """
        equipment = self.equipment
        if not equipment.folder.is_dir():
            raise UsageError(
                f"the folder of the run is not there for a worker: {equipment.folder}",
                hint="Put --run on a file system that all machines share.",
            )
        return train_rung(
            finalist,
            rung,
            equipment.dataset,
            equipment.finalists,
            weights=equipment.folder / "finalists",
            device=self._device,
            start=self._start if equipment.finalists.start == "generated" else None,
            on_epoch=self.on_epoch,
            teacher=self._teacher,
        )

    @cached_property
    def _teacher(self) -> np.ndarray | None:
        """Answers of the network that finalists learn from; None without one."""
        name = self.equipment.finalists.teacher
        if not name:
            return None
        return read_answers(self.equipment.folder / name, self.equipment.dataset).training

    def seconds_per_step(self, architecture: Architecture) -> float:
        """Wall seconds of a training step of a finalist, with whatever else this machine does."""
        equipment, spec = self.equipment, self.equipment.supernet.input_spec
        classes = len(equipment.dataset.classes)
        network = new_network(architecture, spec, classes, equipment.finalists.seed)
        return seconds_per_step(network, equipment.dataset, equipment.finalists.recipe, self._device)

    def _start(self, architecture: Architecture) -> Network:
        supernet = self.scorer.supernet
        network = Network(architecture, supernet.input_spec, supernet.classes, supernet.config.norm)
        supernet.copy_to(network, self.scorer.statistics(architecture))
        return network


Answer = tuple[str, Any]
"""("done", result), ("error", SmashError) or ("defect", traceback as text); before them any number of
("epoch", Epoch), from workers that can tell while they train."""


class Remote:
    """A worker far from whoever asks: it is set up by its first task, and errors travel back as values.

    Args:
        packed: Result of :meth:`Equipment.packed`, from the process that started this one.
        number: Number of the worker.
    """

    def __init__(self, packed: bytes, number: int) -> None:
        self._packed, self._number = packed, number

    @cached_property
    def _worker(self) -> Worker:
        return Worker(pickle.loads(self._packed), self._number)

    def do(self, task: Task, tell: Callable[[Answer], None] | None = None) -> Answer:
        """Do a task; ``tell`` is given the epochs of a training meanwhile."""
        try:
            self._worker.on_epoch = tell and (lambda epoch: tell(("epoch", epoch)))
            return "done", getattr(self._worker, task.method)(*task.arguments)
        except SmashError as error:
            return "error", error
        except Exception:  # noqa: BLE001  whatever it is belongs to the one who asked
            return "defect", traceback.format_exc()


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap) and value.flags.c_contiguous and value.filename is not None:
            where = (str(value.filename), value.dtype.str, value.shape, _place(value))
            return _mapped, (*where, maps.state_of(value))
        return NotImplemented


def _place(value: np.memmap) -> int:
    """Where a map, or a part of one, begins in its file. A part keeps the offset of the whole."""
    start = value.offset - value.offset % mmap.ALLOCATIONGRANULARITY
    first = np.frombuffer(value._mmap, np.uint8).__array_interface__["data"][0]  # type: ignore[attr-defined]
    return int(start + value.__array_interface__["data"][0] - first)


def _mapped(path: str, kind: str, shape: tuple[int, ...], place: int, state: maps.State | None) -> np.memmap:
    """The part of a file that was mapped elsewhere, if it still is the same file."""
    try:
        with open(path, "rb") as stream:
            found = maps.state(os.fstat(stream.fileno()))
            if found != (state or found):
                raise InvalidInputError(
                    f"images were written anew since the search read them: {path}",
                    expected=maps.told(state or found),
                    received=maps.told(found),
                    hint="Begin again, and leave the data alone until the search has ended.",
                )
            return np.memmap(stream, np.dtype(kind), "r", place, shape)
    except OSError as error:
        raise InvalidInputError(
            f"images are not there for a worker: {path}",
            received=error,
            hint="Put the data on a file system that all machines share, under the same path.",
        ) from None
