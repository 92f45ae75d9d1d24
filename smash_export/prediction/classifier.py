"""The exported model answers: ``load(bundle).predict(image)``, the same class whatever the runtime.

Needs numpy, Pillow, pydantic and the chosen runtime; torch only when a TorchScript file is chosen.

Many images are streamed: a few threads read and decode ahead while the runtime works on the last batch,
and nothing but those few batches is ever in memory.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import operator
import os
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from PIL import Image

from smash_base.errors import (
    InvalidInputError,
    MissingRuntimeError,
    SmashError,
    UsageError,
    VerificationError,
)
from smash_base.images import LeftOut
from smash_base.preprocess import Preprocessing, present_classes, probabilities_of
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.runnable import RunnableFile, runnable_files
from smash_export.prediction.answers import ClassScore as ClassScore
from smash_export.prediction.answers import Failure as Failure
from smash_export.prediction.answers import Prediction as Prediction
from smash_export.prediction.batches import run_tensors
from smash_export.prediction.sources import (
    Channels,
    Source,
    is_single,
    is_stream,
    plain_arrays,
    read_stream,
    sources,
)
from smash_targets.base import TARGETS, Session, SessionInfo, SessionOptions, Target, get_target

MAX_STREAM_BATCH = 64
_ARRAYS_ONLY = (str, os.PathLike, bytes, Image.Image, np.ndarray)


@dataclass(frozen=True)
class Choice:
    """Which file a classifier runs, and why.

    Attributes:
        target, precision: Target and precision of the file.
        path: the file.
        reason: One sentence, why this one.
        passed_over: files that would have come first, each with the reason why it could not be used.
    """

    target: str
    precision: str
    path: Path
    reason: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = f"{self.target} {self.precision}: {self.reason}"
        return "; ".join([words, *(f"not {item}" for item in self.passed_over)])


def load(
    bundle: Bundle | Path | str,
    target: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> Classifier:
    """Open a bundle for prediction.

    Without ``target`` the file that the manifest recommends is used if its runtime is here, else
    model.onnx in ONNX Runtime, else any other file that can be opened; :attr:`Classifier.choice` says
    which and why. A named target is used or refused, never replaced.

    Args:
        bundle: path, or an opened bundle. Every file is checked against the manifest.
        target: name of a runtime.
        threads: for one inference; the runtime's default if None.
        device: "cpu", "cuda:0", ... as the target names it.
        precision: Precision of the file; the recommended one, else fp32.

    Raises:
        InvalidInputError: the bundle is damaged.
        UsageError: no such target or device, or no such file in the bundle.
        MissingRuntimeError: no runtime is here that can open a file of the bundle.

    Example:
        >>> with load("bundle") as classifier:
        ...     print(classifier.predict("image.png").label)
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    options = SessionOptions(threads=threads, device=device)
    passed_over: list[str] = []
    hint: str | None = None  # of the first runtime that is here: its device is not
    for file, reason in _candidates(bundle, target, precision):
        runtime, is_here = get_target(file.target), False
        try:
            runtime.require()
            is_here = True
            session = runtime.open(file.path, bundle.signature, options)
        except MissingRuntimeError as error:
            if target is not None:
                raise
            passed_over.append(f"{file.target} {file.precision}: {error.what}")
            hint = hint or (error.hint if is_here else None)
            continue
        except UsageError as error:
            if hint is None:
                raise
            passed_over.append(f"{file.target} {file.precision}: {error.what}")  # a name of an earlier one's
            continue
        choice = Choice(file.target, file.precision, file.path, reason, tuple(passed_over))
        return Classifier(bundle, runtime, session, choice, options)
    raise MissingRuntimeError(
        f"no runtime is here that opens a file of {bundle.path}",
        received="; ".join(passed_over),
        hint=hint or "Install one: pip install 'smash-export[cpu]'",
    )


class Classifier:
    """An opened model. Made by :func:`load`; safe to use from several threads; a context manager; callable.

    Pickled it is the path of its bundle and the file that it runs: whoever unpickles it opens them anew.

    Attributes:
        bundle: where it comes from.
        choice: which file is run, and why.
    """

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        session: Session,
        choice: Choice,
        options: SessionOptions | None = None,
    ) -> None:
        self.bundle = bundle
        self._path = bundle.path.absolute()  # now: the process may go to another folder later
        self._options = options or SessionOptions()
        self.choice = choice
        self._session = session
        self._batch = bundle.signature.batch
        self._doubt_below = bundle.doubt_below
        self._lock = threading.Lock()
        self._closed = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.bundle.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """From image to input tensor."""
        return self.bundle.preprocessing

    @property
    def info(self) -> SessionInfo:
        """What is really used: version, provider, device, threads, precision."""
        return self._session.info

    def predict(self, images: Any, top_k: int = 5, channels: Channels = "rgb") -> Any:
        """Classify one image or many.

        Args:
            images: one image (a path, bytes, an open file, a PIL image, a uint8 array [H, W] or
                [H, W, C], or a uint8 torch tensor [C, H, W]); or many: a folder, a pattern such as
                ``"photos/*.png"``, a list, an array [N, H, W, C], a tensor [N, C, H, W], or a generator.
            top_k: how many classes to name for each image.
            channels: "bgr" for arrays and tensors as OpenCV gives them; files say themselves what they hold.

        Returns:
            :class:`Prediction` for one image; a list of them for many; for a generator (or any other
            iterator) a generator, which reads ahead by a few batches only.

        Raises:
            InvalidInputError: an image that cannot be read, or ``top_k`` below 1.
        """
        images = plain_arrays(images, self.preprocessing)
        if is_single(images, self.preprocessing):
            source = next(sources(images, self.preprocessing, channels=channels))
            tensor = self.preprocessing.normalise(self._decode(source)[np.newaxis])
            return self._answer([source.name], tensor, self._checked_top(top_k))[0]
        results = self.stream(images, top_k, channels=channels)
        return results if isinstance(images, Iterator) else list(results)

    __call__ = predict

    async def apredict(self, images: Any, top_k: int = 5, channels: Channels = "rgb") -> Any:
        """:meth:`predict` in a thread, for event loops; a list for a generator.

        Example:
            >>> answer = await classifier.apredict(upload)
        """

        def work() -> Any:
            answer = self.predict(images, top_k, channels)
            return list(answer) if isinstance(answer, Iterator) else answer

        return await asyncio.to_thread(work)

    def stream(
        self,
        images: Any,
        top_k: int = 5,
        *,
        batch: int | None = None,
        on_error: Literal["raise", "yield"] = "raise",
        workers: int | None = None,
        left_out: LeftOut | None = None,
        channels: Channels = "rgb",
    ) -> Iterator[Any]:
        """Classify any number of images in bounded memory, in order.

        Args:
            images, channels: as for :meth:`predict`.
            batch: images per run, by default the largest that the file takes (64 at most). With 1 nothing
                is read ahead, which suits a live source.
            on_error: "yield" gives a :class:`Failure` in place of an image that cannot be read, and goes on.
            workers: threads that read and decode; by default one less than the cores, 1 to 4.
            left_out: collects what of the folders is no image file or cannot be read.

        Yields:
            :class:`Prediction`, or :class:`Failure`.
        """
        count = self._checked_top(top_k)
        size = max(1, min(batch or MAX_STREAM_BATCH, self._batch[2]))
        workers = workers or max(1, min(4, len(os.sched_getaffinity(0)) - 1))
        found = sources(images, self.preprocessing, left_out, channels)
        return self._stream(found, count, size, on_error == "yield", workers)

    def logits(self, tensor: np.ndarray) -> np.ndarray:
        """Logits of tensors that are normalised already (:meth:`Preprocessing.normalise`).

        Args:
            tensor: float32 [B, *input_shape], or one [*input_shape].

        Returns:
            float32 [B, K], or [K] for one.

        Raises:
            InvalidInputError: another type or shape.
        """
        shape = self.preprocessing.input_shape
        if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32:
            raise InvalidInputError(
                "logits takes normalised tensors",
                expected="a float32 array",
                received=getattr(tensor, "dtype", type(tensor).__name__),
                hint="For images use predict, or preprocessing.batch to make a tensor.",
            )
        if tensor.shape == shape:
            first: np.ndarray = self._run(tensor[np.newaxis])[0]
            return first
        if tensor.shape[1:] != shape or not len(tensor):
            raise InvalidInputError(
                "the tensor has the wrong shape",
                expected=f"[B, {', '.join(map(str, shape))}]",
                received=list(tensor.shape),
            )
        return self._run(tensor)

    def check_finite(self, logits: np.ndarray, names: Sequence[str]) -> None:
        """Refuse answers that are no numbers, as a file gives whose values overflow at its precision.

        Args:
            logits: float32 [B, K].
            names: Names of the B images.

        Raises:
            VerificationError: NaN or infinity in a row.
        """
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(wrong):
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise VerificationError(
                f"{self.choice.target} {self.choice.precision} answers with NaN or infinity to "
                f"{names[wrong[0]]}{others}",
                hint=f"Check the file: smash-export verify {shlex.quote(str(self.bundle.path))}",
            )

    def close(self) -> None:
        """Free the runtime's memory; waits for a run in progress."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        choice, options = self.choice, self._options
        arguments = (self._path, choice.target, options.threads, options.device)
        return load, (*arguments, choice.precision)

    def __repr__(self) -> str:
        return f"<Classifier of {self.bundle.path}, {len(self.labels)} classes, {self.choice}>"

    def _run(self, tensor: np.ndarray) -> np.ndarray:
        # One run at a time for every runtime: two at once would share the same cores, and close() can wait.
        return self._timed_run(tensor)[0]

    def _timed_run(self, tensor: np.ndarray) -> tuple[np.ndarray, float]:
        """Answers, and seconds in the runtime, without what other threads kept this one waiting."""
        with self._lock:
            if self._closed:
                raise UsageError("this classifier is closed", hint="Open it again: load(bundle)")
            started = time.perf_counter()
            return run_tensors(self._session, tensor, self._batch), time.perf_counter() - started

    def _decode(self, source: Source) -> np.ndarray:
        image = read_stream(source.image, source.name) if is_stream(source.image) else source.image
        if not isinstance(image, _ARRAYS_ONLY):
            raise InvalidInputError(
                f"{source.name} is not an image",
                expected="a path, bytes, an open file, a PIL image, a uint8 array or a uint8 torch tensor",
                received=type(image).__name__,
            )
        return self.preprocessing.decode(image)

    def _checked_top(self, top_k: int) -> int:
        if not hasattr(top_k, "__index__") or operator.index(top_k) < 1:
            raise InvalidInputError("top_k", expected="a whole number, 1 or more", received=top_k)
        return min(operator.index(top_k), len(self.labels))

    def _answer(self, names: list[str], tensor: np.ndarray, count: int) -> list[Prediction]:
        logits, seconds = self._timed_run(tensor)
        milliseconds = 1e3 * seconds / len(names)
        self.check_finite(logits, names)
        labels, outputs = self.labels, self.bundle.signature.outputs
        probabilities = probabilities_of(logits, outputs)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        values = probabilities[np.arange(len(best))[:, np.newaxis], best].tolist()
        answers = []
        for name, indices, scores, row in zip(names, best.tolist(), values, probabilities, strict=True):
            top = tuple(
                ClassScore(labels[index], index, score) for index, score in zip(indices, scores, strict=True)
            )
            first = top[0]
            present = self._present(row) if outputs == "sigmoid" else None
            doubtful = None if self._doubt_below is None else first.probability < self._doubt_below
            answers.append(
                Prediction(
                    name, first.label, first.index, first.probability, top, milliseconds, present, doubtful
                )
            )
        return answers

    def _present(self, probabilities: np.ndarray) -> tuple[ClassScore, ...]:
        """Classes that are more likely there than not, best first."""
        return tuple(
            ClassScore(self.labels[index], index, float(probabilities[index]))
            for index in present_classes(probabilities)
        )

    def _prepare(self, chunk: list[Source]) -> _Prepared:
        """Read and decode a batch; runs in a worker thread."""
        images = np.empty((len(chunk), *self.preprocessing.sample_shape), dtype=np.uint8)
        failures: dict[int, SmashError] = {}
        good: list[str] = []
        for position, source in enumerate(chunk):
            try:
                images[len(good)] = self._decode(source)
                good.append(source.name)
            except SmashError as error:
                failures[position] = error
        tensor = self.preprocessing.normalise(images[: len(good)]) if good else None
        return _Prepared(chunk, good, tensor, failures)

    def _stream(
        self, found: Iterator[Source], count: int, size: int, keep_failures: bool, workers: int
    ) -> Iterator[Any]:
        if size == 1:
            prepared: Iterator[_Prepared] = (self._prepare([source]) for source in found)
        else:
            prepared = self._ahead(found, size, workers)
        for part in prepared:
            answers = iter(() if part.tensor is None else self._answer(part.good, part.tensor, count))
            for position, source in enumerate(part.chunk):
                error = part.failures.get(position)
                if error is None:
                    yield next(answers)
                elif keep_failures:
                    yield Failure(source.name, error)
                else:
                    raise error

    def _ahead(self, found: Iterator[Source], size: int, workers: int) -> Iterator[_Prepared]:
        """Batches in order, decoded by ``workers`` threads that are at most one batch each ahead."""
        waiting: collections.deque[Future[_Prepared]] = collections.deque()
        broken: Exception | None = None
        exhausted = False
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                while True:
                    while not exhausted and len(waiting) <= workers:
                        chunk, broken = _pull(found, size)
                        exhausted = broken is not None or len(chunk) < size
                        if chunk:
                            waiting.append(pool.submit(self._prepare, chunk))
                    if not waiting:
                        break
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        if broken is not None:  # what the source gave before it failed has been answered
            raise broken


class _Prepared(NamedTuple):
    chunk: list[Source]
    good: list[str]
    tensor: np.ndarray | None
    failures: dict[int, SmashError]


class _Candidate(NamedTuple):
    file: RunnableFile
    reason: str


def _pull(found: Iterator[Source], size: int) -> tuple[list[Source], Exception | None]:
    """Up to ``size`` sources, and the error that the source ended with, if it did."""
    chunk: list[Source] = []
    try:
        chunk.extend(itertools.islice(found, size))
    except Exception as error:  # noqa: BLE001 - the user's generator may raise anything; raised again later
        return chunk, error
    return chunk, None


def _candidates(bundle: Bundle, target: str | None, precision: str | None) -> Iterator[_Candidate]:
    """Files that fit the wishes, best first, each with the reason for it."""
    wanted = bundle.recommendation
    recommended = None if wanted is None else f"{wanted.target}:{wanted.precision}"

    def rank(file: RunnableFile) -> tuple[bool, bool, bool, bool, bool]:
        # Torch takes seconds to load and int8 has lost something: both only when nothing else is here.
        return (
            file.name != recommended or file.source,
            file.name != "onnxruntime:fp32",
            file.source,
            _is_torch(file.target),
            file.precision != "fp32",
        )

    for file in sorted(runnable_files(bundle, target, precision), key=rank):
        reason = "as asked" if target else "the first file whose runtime is here"
        if wanted is not None and file.name == recommended and not file.source:
            reason = f"recommended by the manifest ({wanted.reason})"
        elif file.source:
            reason = f"{reason}; {file.path.name} directly"
        yield _Candidate(file, reason)


def _is_torch(target: str) -> bool:
    return target in TARGETS and get_target(target).imports_torch
