"""What the experiments share in one folder: HyperNet, scores, trained networks, each made once.

    config.json     size and data; another experiment in the folder must have the same
    hypernet*.pt    checkpoints
    scores.jsonl    one line per HyperNet, architecture and variant of scoring
    trained.jsonl   one line per architecture, training seed and data set

Everything is appended when it is known and never computed twice, so that an experiment may be stopped at
any time. With a time limit no further network is trained after it, and results say how many there are.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from smash_base import files
from smash_base.errors import GateError
from smash_base.progress import ShowProgress, by_step
from smash_base.records import read_record
from smash_search.data import Dataset, Split, load_dataset
from smash_search.experiments.config import ExperimentConfig
from smash_search.model.hypernet import HyperNetConfig
from smash_search.model.interpreter import forward, norm_places
from smash_search.model.supernet import Moments, Supernet
from smash_search.rank.finalists import input_spec_of
from smash_search.rank.scoring import Corruption, Score, Scorer, Tally
from smash_search.space.architecture import Architecture
from smash_search.space.cost import Cost, cost_of
from smash_search.space.encoding import Layout
from smash_search.train.compute import DivergedError, Feed, check_identity, seed_of
from smash_search.train.hypernet import new_supernet, train
from smash_search.train.network import Epoch, accuracy, fit, new_network

TEST_STREAM = 0xE4B  # seed of the architectures that are judged: none of the HyperNet's training
MOST_DRAWS = 10_000  # for one network inside a band of cost
GRADIENT_IMAGES = 250  # validation images that dE/dc is taken over


@dataclass(frozen=True)
class TestErrors:
    """Errors of one trained network, on the test images but for one: a line of trained.jsonl.

    Attributes:
        data: Fingerprint of the images.
        key: Key of the architecture.
        seed: Number of the training, which has a seed of its own.
        one_epoch: Error after the first epoch.
        error: Error after the last one.
        validation: Error on the validation images after the last epoch, which networks may be chosen by; None
            in lines of earlier versions.
    """

    data: str
    key: str
    seed: int
    one_epoch: float
    error: float
    validation: float | None = None


class Workbench:
    """HyperNets, scores and trained networks of one folder.

    Args:
        config: size of the experiments.
        dataset: Data set of all experiments.
        folder: created if missing.
        progress: shows how far long stages are.
        device: where to compute.
        minutes: no further network is trained after so much time; None for no limit.

    Attributes:
        left_out: whether the time limit left something out that was asked for.

    Raises:
        UsageError: the folder belongs to another size or other data.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        folder: Path,
        progress: ShowProgress,
        *,
        device: torch.device | str = "cpu",
        minutes: float | None = None,
    ) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.device = torch.device(device)
        self.dataset = cut(dataset, config)
        self.input_spec = input_spec_of(dataset)
        self.space = config.space_of(self.input_spec)
        self.classes = len(dataset.classes)
        self.left_out = False
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        identity = {"config": config.to_json(), "data": self.dataset.fingerprint}
        path = folder / "config.json"
        if path.exists():
            held = files.read_json(path)
            with contextlib.suppress(
                KeyError, TypeError
            ):  # another data set to transfer to changes nothing else
                held["config"]["transfer_to"] = list(config.transfer_to)
            check_identity(path, held, files.parse_json(json.dumps(identity)))
        else:
            files.write_json(path, identity)
        lines: list[TestErrors] = [
            read_record(TestErrors, line, "trained") for line in files.read_jsonl(folder / "trained.jsonl")
        ]
        self._trained = {(record.data, record.key, record.seed): record for record in lines}
        self._scores = {
            (record["hypernet"], record["key"], record["variant"]): Score.from_json(record)
            for record in files.read_jsonl(folder / "scores.jsonl")
        }
        self._scorers: dict[str, Scorer] = {}
        self._drawn: list[Architecture] = []  # those that are judged
        self._slot = 0  # of the next draw

    @property
    def time_is_up(self) -> bool:
        """Whether the time limit has passed."""
        return self._ends is not None and time.monotonic() > self._ends

    def architecture(self, number: int) -> Architecture:
        """The number-th of the random architectures that every experiment judges."""
        while len(self._drawn) <= number:
            self._drawn.append(self._next_judged())
        return self._drawn[number]

    def _next_judged(self) -> Architecture:
        """The next draw inside the band.

        Raises:
            GateError: so many draws are outside that the band cannot be met with these images.
        """
        for _ in range(MOST_DRAWS):
            drawn = self.space.draw(seed_of(self.config.seed, TEST_STREAM), self._slot)
            self._slot += 1
            if self._is_judged(drawn):
                return drawn
        raise GateError(
            f"size {self.config.size} compares networks of one cost, and images of this size give none",
            expected=f"one of {MOST_DRAWS} draws with multiply-accumulates in {self.config.macs}",
            received="none",
            hint="Choose another --size, or images of about 32 pixels.",
        )

    def _is_judged(self, architecture: Architecture) -> bool:
        """Whether an architecture lies inside the band of the experiments, if they have one."""
        if self.config.macs is None:
            return True
        low, high = self.config.macs
        return low <= self.cost(architecture).macs <= high

    def cost(self, architecture: Architecture) -> Cost:
        """Exact cost for this data set."""
        return cost_of(architecture, self.input_spec, self.classes)

    # ------------------------------------------------------------------------------ HyperNet, scores

    def supernet(self, name: str = "", config: HyperNetConfig | None = None) -> Supernet:
        """The trained HyperNet, or another of the configuration given under a name of its own."""
        return self._scorer(name, config).supernet

    def _scorer(self, name: str = "", config: HyperNetConfig | None = None) -> Scorer:
        if name not in self._scorers:
            supernet = new_supernet(
                self.space,
                self.input_spec,
                self.classes,
                config or self.config.hypernet,
                seed=self.config.seed,
            )
            file = f"hypernet-{name.replace(' ', '-')}" if name else "hypernet"
            training = self.config.training
            with self.progress(f"HyperNet {name}".strip(), training.steps) as advance:
                result = train(
                    supernet,
                    self.dataset,
                    training,
                    device=self.device,
                    checkpoint=self.folder / f"{file}.pt",
                    checkpoint_seconds=30.0,
                    on_step=by_step(advance),
                    accept=None if self.config.macs is None else self._is_judged,
                )
            files.write_json(self.folder / f"{file}.json", result.to_json())
            self._scorers[name] = Scorer(supernet, self.dataset, self.config.scoring, self.device)
        return self._scorers[name]

    def training_loss(self, name: str = "") -> float:
        """Loss of a HyperNet over the last hundredth of its training."""
        file = f"hypernet-{name.replace(' ', '-')}" if name else "hypernet"
        return float(files.read_json(self.folder / f"{file}.json")["history"][-1]["loss"])

    def score(
        self,
        architecture: Architecture,
        variant: str = "right",
        corrupt: Corruption | None = None,
        *,
        zeroed: bool = False,
        hypernet: str = "",
        config: HyperNetConfig | None = None,
    ) -> Score:
        """SMASH score; ``corrupt`` changes the encoding first, ``zeroed`` sets all generated filters to zero.

        Both belong to a variant of their own.
        """
        key = (hypernet, architecture.key, variant)
        if key not in self._scores:
            scorer = self._scorer(hypernet, config)
            images = scorer.stages[-1]
            self._keep(key, scorer.score(architecture, images, corrupt=corrupt, zeroed=zeroed))
        return self._scores[key]

    def encoding_gradient(self, architecture: Architecture) -> tuple[Layout, np.ndarray]:
        """Layout of c, and dE/dc [channels, H, W] over some validation images."""
        return self._scorer().encoding_gradient(architecture, GRADIENT_IMAGES)

    def score_with_running_statistics(self, architecture: Architecture) -> Score:
        """SMASH score as the original program gives it: BatchNorm statistics averaged over architectures."""
        key = ("", architecture.key, "running statistics")
        if key not in self._scores:
            supernet = self.supernet()
            source = supernet.source(architecture)
            source.fixed = {
                place.name: Moments(mean[: place.channels], variance[: place.channels])
                for place in norm_places(architecture, "none")
                for mean, variance in [self._running[place.name]]
            }
            split = self.dataset.validation
            order = np.random.default_rng(seed_of(self.config.scoring.seed, 2)).permutation(len(split))
            order = order[: self._scorer().stages[-1]]
            tally = Tally(several=split.targets is not None)
            for start in range(0, len(order), self.config.scoring.batch):
                chosen = order[start : start + self.config.scoring.batch]
                images, targets = self._batch(split, chosen)
                with torch.no_grad():
                    logits = forward(architecture, source, images).float()
                tally.add(logits, targets)
            self._keep(key, tally.score(architecture.key))
        return self._scores[key]

    @cached_property
    def _running(self) -> dict[str, Moments]:
        """Moments per channel averaged over random architectures that have the channel."""
        supernet, count = self.supernet(), self.config.statistics_networks
        order = np.random.default_rng(seed_of(self.config.seed, 3)).permutation(len(self.dataset.train))
        size = min(len(order), self.config.scoring.batch)
        sums: dict[str, list[Moments]] = {}
        with self.progress("running statistics", count) as advance:
            for slot in range(count):
                architecture = self.space.draw(seed_of(self.config.seed, 0x5A7), slot)
                images, _ = self._batch(self.dataset.train, np.roll(order, slot * size)[:size])
                for name, moments in supernet.statistics(architecture, [images]).items():
                    sums.setdefault(name, []).append(moments)
                advance(1)
        widest = self.space.max_banks * max(self.space.bank_units) * self.space.unit
        return {name: _average(parts, widest) for name, parts in sums.items()}

    def _batch(self, split: Split, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return Feed(split, self.dataset.preprocessing, self.device)(indices)

    def _keep(self, key: tuple[str, str, str], score: Score) -> None:
        record = {"hypernet": key[0], "variant": key[2], **score.to_json()}
        files.append_jsonl(self.folder / "scores.jsonl", record)
        self._scores[key] = score

    # ------------------------------------------------------------------------------ trained networks

    def trained(self, architecture: Architecture, seed: int = 0) -> TestErrors | None:
        """Errors of a network that is trained with the recipe.

        None when the time is up and the network was not trained before.
        """
        return self._train(self.dataset, architecture, seed)

    def was_trained(self, architecture: Architecture) -> bool:
        """Whether that is done already, by an earlier experiment or process."""
        return (self.dataset.fingerprint, architecture.key, 0) in self._trained

    def trained_on(self, spec: str, architecture: Architecture, seed: int = 0) -> TestErrors | None:
        """The same on another data set."""
        return self._train(self._other(spec), architecture, seed)

    def _other(self, spec: str) -> Dataset:
        return cut(load_dataset(spec, seed=self.config.seed), self.config)

    def _train(self, dataset: Dataset, architecture: Architecture, seed: int) -> TestErrors | None:
        key = (dataset.fingerprint, architecture.key, seed)
        if key in self._trained:
            return self._trained[key]
        if self.time_is_up:
            self.left_out = True
            return None
        spec = input_spec_of(dataset)
        start = seed_of(self.config.seed, int(architecture.key, 16), seed)
        network = new_network(architecture, spec, len(dataset.classes), start)
        recipe = replace(self.config.recipe, seed=start, keep_best=False)
        one_epoch = error = validation = 1.0

        def tested() -> float:
            """What is compared. Nothing is chosen by it."""
            return 1 - accuracy(network, dataset.test, dataset.preprocessing, self.device)

        def on_epoch(entry: Epoch) -> None:
            nonlocal one_epoch
            if entry.epoch == 1:
                one_epoch = tested()

        try:
            result = fit(network, dataset, recipe, device=self.device, on_epoch=on_epoch, evaluate=False)
            error, validation = tested(), 1 - result.accuracy
        except DivergedError:
            pass  # nothing it says is right
        record = TestErrors(*key, *(round(value, 9) for value in (one_epoch, error, validation)))
        files.append_jsonl(self.folder / "trained.jsonl", asdict(record))
        self._trained[key] = record
        return record

    def population(self) -> list[tuple[Architecture, TestErrors]]:
        """The random architectures and what training them gave.

        Those of ``correlation`` where it has run in this folder; otherwise all are trained now, as far as
        time allows.
        """
        done = self.folder / "correlation.json"
        count = files.read_json(done)["networks"] if done.exists() else self.config.networks
        found = []
        with self.progress("networks", count) as advance:
            for number in range(count):
                architecture = self.architecture(number)
                before = self.was_trained(architecture)
                if (record := self.trained(architecture)) is not None:
                    found.append((architecture, record))
                advance(1, before=float(before))
        return found

    def scores_of(self, architectures: Iterable[Architecture]) -> list[Score]:
        """The SMASH score of each."""
        wanted = list(architectures)
        scores = []
        with self.progress("scores", len(wanted)) as advance:
            for architecture in wanted:
                before = ("", architecture.key, "right") in self._scores
                scores.append(self.score(architecture))
                advance(1, before=float(before))
        return scores


def cut(dataset: Dataset, config: ExperimentConfig) -> Dataset:
    """Images of each split by lot, as many as the size asks for; views of one object stay together."""
    random = np.random.default_rng(0)

    def some(split: Split, count: int) -> Split:
        if not count or count >= len(split):
            return split
        return split.some(count, random, dataset.views)

    counts = (config.train_images, config.validation_images, config.test_images)
    return replace(
        dataset,
        train=some(dataset.train, counts[0]),
        validation=some(dataset.validation, counts[1]),
        test=some(dataset.test, counts[2]),
        fingerprint="-".join([dataset.fingerprint, "lot", *map(str, counts)]),
    )


def _average(parts: list[Moments], widest: int) -> Moments:
    mean, variance = torch.zeros(widest), torch.ones(widest)
    for channel in range(widest):
        having = [part for part in parts if len(part.mean) > channel]
        if having:
            mean[channel] = torch.stack([part.mean[channel] for part in having]).mean()
            variance[channel] = torch.stack([part.variance[channel] for part in having]).mean()
    device = parts[0].mean.device
    return Moments(mean.to(device), variance.to(device))
