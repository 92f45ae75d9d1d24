"""The models of a server: opened bundles by name and version, exchanged while requests run.

An exchange opens the new bundle beside the old one, lets it answer the bundle's own samples, and then
swaps one reference. Whoever holds the old model keeps it until its answer is there; it closes when the
last one lets go. A bundle that does not open, or does not answer as it should, changes nothing.

What is served lies in memory: a file that changes on the disk has no effect until a load, which checks
every hash again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import math
import re
import shlex
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, SmashError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import NO_CLASS, first_answers
from smash_export.bundle import manifest as layout
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.manifest import Manifest
from smash_export.prediction.classifier import Classifier, load
from smash_export.server.batching import Batcher
from smash_export.server.logs import log
from smash_export.server.metrics import Metrics
from smash_export.server.protocol import IMAGES, SLOW_BYTES, json_limit
from smash_export.server.sizing import Batching, Sizes, choose_sizes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_MESSAGE_BYTES = 2**16  # of a request beside its tensor
_IMAGE_BYTES = 2**20  # of images that the server makes smaller: 640 x 480 in colour
_WARM_SAMPLES = 32
EXAMPLES = 8
_WARM_AGREEMENT = 0.9
_TRIES = 3  # to open a bundle that is replaced meanwhile


class UnknownModelError(SmashError):
    """No model of that name or version is served; HTTP 404, gRPC NOT_FOUND."""


@dataclass(frozen=True)
class ModelSpec:
    """What is to be served under which name.

    Attributes:
        name, version: how clients call it; versions are positive whole numbers.
        path: the bundle.
        target, precision: which file of it; None leaves the choice to the manifest and this machine.
        group: name shared by the files of one bundle, for people who choose between them.
    """

    name: str
    version: str
    path: Path
    target: str | None = None
    precision: str | None = None
    group: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read ``[NAME[:VERSION]=]PATH``; the name is that of the folder, the version 1.

        Raises:
            UsageError: a name or version that cannot stand in an address.
        """
        head, mark, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        name, _, version = head.partition(":")
        if not mark:
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).resolve().name).lstrip("._-") or "model"
        version = version or "1"
        if not _NAME.fullmatch(name):
            raise UsageError(
                "name of a model", expected="letters, digits and . _ -, at most 100", received=name
            )
        if not _VERSION.fullmatch(version):
            raise UsageError("version of a model", expected="a positive whole number", received=version)
        return cls(name, version, Path(path), group=name)


def specs_of(bundles: ModelSpec | Path | str | Sequence[ModelSpec | Path | str]) -> list[ModelSpec]:
    """What is to be served, of one bundle or several; text as :meth:`ModelSpec.parse` reads it."""
    several = [bundles] if isinstance(bundles, ModelSpec | Path | str) else bundles
    return [each if isinstance(each, ModelSpec) else ModelSpec.parse(str(each)) for each in several]


class Model:
    """One opened file of a bundle with its queue.

    Attributes:
        spec: what it was opened for.
        classifier: runs it.
        identity: see :func:`identity_of`.
        batcher: queue and worker.
        sizes: Sizes of its batches and its queue.
    """

    def __init__(
        self,
        spec: ModelSpec,
        classifier: Classifier,
        batcher: Batcher,
        sizes: Sizes,
        digest: str,
        card: str,
        examples: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        self.spec = spec
        self.classifier = classifier
        self.identity = identity_of(classifier)
        self.batcher = batcher
        self.sizes = sizes
        self.digest = digest
        self.card = card
        self.examples = examples
        self.signature = classifier.bundle.signature
        self.labels = classifier.labels
        self.preprocessing = classifier.preprocessing
        self.doubt_below = classifier.bundle.doubt_below
        self.max_images = batcher.settings.queue_size
        self.json_limit = json_limit(self.signature, self.max_images)
        self._users = 1  # the repository
        self._lock = threading.Lock()

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.spec.name, self.spec.version

    @property
    def platform(self) -> str:
        """The name that the protocol has for the runtime."""
        target = self.classifier.choice.target
        return {
            "onnxruntime": "onnx_onnxv1",
            "tensorrt": "tensorrt_plan",
            "torchscript": "pytorch_torchscript",
        }.get(target, target)

    def is_quick(self, images: np.ndarray) -> bool:
        """Whether preprocessing is so little that an event loop can do it: few bytes, nothing to resize."""
        return images.nbytes <= SLOW_BYTES and images.shape[1:] == self.preprocessing.sample_shape

    def tensor_bytes(self, images: int) -> int:
        """Bytes of the tensor of so many images, however few they took when they came."""
        return 4 * images * math.prod(self.signature.input_shape)

    def converted(self, images: np.ndarray) -> np.ndarray:
        """The one preprocessing: uint8 [B, H, W, C] -> float32 [B, *input_shape].

        Raises:
            InvalidInputError: a strip that would be too long when resized.
        """
        if images.shape[1:] != self.preprocessing.sample_shape:
            images = np.stack([self.preprocessing.decode(image) for image in images])
        tensor: np.ndarray = self.preprocessing.normalise(images)
        return tensor

    @property
    def image_input(self) -> JsonObject:
        """The other form of the input: images for which the server does the preprocessing."""
        channels, *sides = self.signature.input_shape
        free = channels in (1, 3) and len(sides) == 2
        inner = [-1, -1] if free else sides
        return {
            "datatype": IMAGES,
            "shape": [-1, *inner, channels],
            "channels_first": [-1, channels, *inner],
        }

    def metadata(self, versions: list[str]) -> JsonObject:
        """The metadata answer of the protocol."""
        signature = self.signature
        return {
            "name": self.spec.name,
            "versions": versions,
            "platform": self.platform,
            "inputs": [
                {"name": signature.input_name, "datatype": "FP32", "shape": [-1, *signature.input_shape]}
            ],
            "outputs": [
                {"name": signature.output_name, "datatype": "FP32", "shape": [-1, signature.classes]}
            ],
        }

    def config(self) -> JsonObject:
        """What Triton's model configuration says of it; perf_analyzer and Triton's clients read it."""
        signature, settings = self.signature, self.sizes.settings
        image = len(signature.input_shape) == 3
        on_gpu = "cuda" in self.classifier.info.device.lower()
        parameters: JsonObject = {
            "image_input": {"string_value": json.dumps(self.image_input)},
            "outputs": {"string_value": signature.outputs},
        }
        if self.doubt_below is not None:
            parameters["doubt_below"] = {"string_value": json.dumps(self.doubt_below)}
        return {
            "name": self.spec.name,
            "platform": self.platform,
            "backend": self.classifier.choice.target,
            "max_batch_size": self.max_images,
            "input": [
                {
                    "name": signature.input_name,
                    "data_type": "TYPE_FP32",
                    "format": "FORMAT_NCHW" if image else "FORMAT_NONE",
                    "dims": list(signature.input_shape),
                }
            ],
            "output": [
                {
                    "name": signature.output_name,
                    "data_type": "TYPE_FP32",
                    "dims": [signature.classes],
                    "label_filename": "",
                }
            ],
            "instance_group": [
                {"name": self.spec.name, "kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": 1}
            ],
            "dynamic_batching": {
                "preferred_batch_size": [settings.max_batch],
                "max_queue_delay_microseconds": round(settings.delay * 1e6),
            },
            "parameters": parameters,
        }

    def describe(self) -> JsonObject:
        """What the page and ``GET /v1/models`` show."""
        choice, info = self.classifier.choice, self.classifier.info
        preprocessing = self.preprocessing
        return {
            "name": self.spec.name,
            "version": self.spec.version,
            "group": self.spec.group or self.spec.name,
            "target": choice.target,
            "precision": choice.precision,
            "reason": str(choice),
            "runtime": f"{info.target} {info.version}, {info.provider}, {info.device}",
            "threads": info.threads,
            "labels": list(self.labels),
            "takes_files": preprocessing.depth is None and preprocessing.channels in (1, 3),
            "preprocessing": preprocessing.to_json(),
            "max_images": self.max_images,
            "doubt_below": self.doubt_below,
            "examples": [label for label, _ in self.examples],
            "batching": self.sizes.describe(),
            "changed_on_disk": self.changed_on_disk(),
        }

    def changed_on_disk(self) -> bool:
        """Whether the bundle on the disk would answer otherwise than the one that was opened; what commands
        record in it changes nothing.
        """
        try:
            if files.sha256(self.spec.path / layout.NAME) == self.digest:
                return False
            return identity_of(self.classifier, Bundle.open(self.spec.path).manifest) != self.identity
        except (OSError, SmashError):
            return True

    def take(self) -> bool:
        """Count one more user; False when the last one has left already."""
        with self._lock:
            if self._users == 0:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """Count one user less; the last one closes, in a thread of its own as a close may wait."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            threading.Thread(target=self._close, name=f"close-{self.spec.name}").start()

    def _close(self) -> None:
        self.batcher.close()
        self.classifier.close()


def open_model(
    spec: ModelSpec,
    batching: Batching,
    metrics: Metrics,
    threads: int | None,
    device: str | None,
    identity: str | None = None,
) -> Model:
    """Open a bundle, run its samples, measure its batches, start its queue.

    Args:
        identity: what :func:`identity_of` must give for it; None for any.

    Raises:
        InvalidInputError: the bundle is damaged, its files cannot be read, they are replaced all the time, or
            they are others than wanted.
        MissingRuntimeError, UsageError: as :func:`smash_export.prediction.classifier.load`.
        VerificationError: the file does not answer the bundle's own samples as the network did.
    """
    try:
        for _ in range(_TRIES):
            digest = _digest(spec.path)
            model = _open(spec, batching, metrics, threads, device, digest, identity)
            if _digest(spec.path) == digest:
                return model
            model.leave()  # labels of one bundle and a network of another, where the folder was replaced
    except OSError as error:
        raise InvalidInputError(f"{spec.path} cannot be read", expected="a bundle", received=error) from None
    raise InvalidInputError(
        f"{spec.path} was replaced or written to while it was opened", hint="Load it again."
    )


def _digest(path: Path) -> str:
    """SHA-256 of a bundle's manifest; "" where there is none."""
    return files.sha256(path / layout.NAME) if (path / layout.NAME).is_file() else ""


def _open(
    spec: ModelSpec,
    batching: Batching,
    metrics: Metrics,
    threads: int | None,
    device: str | None,
    digest: str,
    identity: str | None,
) -> Model:
    bundle, wanted = Bundle.open(spec.path), (spec.target, spec.precision)
    if identity is not None:  # what is recommended may have changed since the others opened it
        wanted = _choice_of(identity)
    classifier = load(bundle, target=wanted[0], precision=wanted[1], threads=threads, device=device)
    try:
        if identity not in (None, identity_of(classifier)):
            raise InvalidInputError(
                f"{spec.path} is not what the other processes of this server opened there",
                hint="Exchange it in all of them: send SIGHUP, or "
                f"POST /v2/repository/models/{spec.name}/load; or put back what was there.",
            )
        image = _warm_up(classifier)
        sizes = choose_sizes(classifier.logits, image, bundle.signature.batch[2], batching)
        card = (bundle.path / layout.CARD).read_text(encoding="utf-8")
        examples = examples_of(bundle)
    except BaseException:
        classifier.close()
        raise
    batcher = Batcher(
        classifier.logits,
        sizes.settings,
        name=f"{spec.name}-{spec.version}",
        observe=metrics.observer(spec.name, spec.version),
    )
    log(20, "model opened", model=spec.name, version=spec.version, **sizes.describe())
    return Model(spec, classifier, batcher, sizes, digest, card, examples)


def identity_of(classifier: Classifier, of: Manifest | None = None) -> str:
    """Target, precision, and SHA-256 of all that is served of a bundle: the file that runs and what the
    manifest says, but not what commands record in it, nor files of other targets.

    Args:
        classifier: runs the file.
        of: Manifest of the bundle; that which the classifier was opened with if None.
    """
    choice, manifest = classifier.choice, of or classifier.bundle.manifest
    beside = {*layout.RECORDED, "compiled", "pending"}
    compiled = [
        entry.model_dump(mode="json", include={"main", "files"})
        for entry in manifest.compiled
        if (entry.target, entry.precision) == (choice.target, choice.precision)
    ]
    served = [compiled, manifest.model_dump(mode="json", exclude=beside)]
    digest = hashlib.sha256(json.dumps(served, sort_keys=True).encode()).hexdigest()
    return f"{choice.target} {choice.precision} {digest}"


def _choice_of(identity: str) -> tuple[str, str]:
    """Target and precision in :func:`identity_of`."""
    target, precision, _ = identity.split(" ")
    return target, precision


def examples_of(bundle: Bundle) -> tuple[tuple[str, bytes], ...]:
    """Label and PNG of one sample of each of the first classes, which is answered as the sample is; none of
    networks that take no image files.
    """
    preprocessing = bundle.preprocessing
    if preprocessing.depth is not None or preprocessing.channels not in (1, 3):
        return ()
    samples = bundle.samples()
    _, first = np.unique(samples.labels, return_index=True)
    found = []
    for place in first[:EXAMPLES]:
        stream = io.BytesIO()
        preprocessing.picture_of(samples.images[place]).save(stream, "PNG")
        found.append(((*bundle.labels, NO_CLASS)[int(samples.labels[place])], stream.getvalue()))
    return tuple(found)


def _warm_up(classifier: Classifier) -> np.ndarray:
    """The first run of a runtime is slow; let it be one whose answer is known. Returns one image,
    float32 [1, *input_shape]."""
    samples = classifier.bundle.samples()
    count = min(len(samples), _WARM_SAMPLES)
    tensor = classifier.preprocessing.normalise(samples.images[:count])
    classifier.logits(tensor[:1])
    logits = classifier.logits(tensor)
    labels = samples.labels[:count]
    same = first_answers(logits, labels) == first_answers(samples.logits[:count], labels)
    agreement = float(same.mean())
    if not np.isfinite(logits).all() or agreement < _WARM_AGREEMENT:
        raise VerificationError(
            f"{classifier.choice.target} {classifier.choice.precision} does not answer as the network does",
            expected=f"the same class for {_WARM_AGREEMENT:.0%} of {count} samples",
            received=f"{agreement:.0%}",
            hint=f"Check it: smash-export verify {shlex.quote(str(classifier.bundle.path))}",
        )
    first: np.ndarray = tensor[:1]
    return first


class Repository:
    """Models by name and version.

    Args:
        specs: what to serve. All are opened by :meth:`load_all`.
        batching: Settings of every queue; ``max_batch`` is limited to what the file takes.
        metrics: where runs and loads are counted.
        threads, device: as :func:`smash_export.prediction.classifier.load`.

    Attributes:
        on_load: called after each load with the bytes of the largest message.
    """

    def __init__(
        self,
        specs: list[ModelSpec],
        batching: Batching,
        metrics: Metrics,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        self._specs: dict[str, dict[str, ModelSpec]] = {}
        for spec in specs:
            versions = self._specs.setdefault(spec.name, {})
            if spec.version in versions:
                raise UsageError(
                    f"two bundles are called {spec.name} version {spec.version}",
                    received=f"{versions[spec.version].path} and {spec.path}",
                    hint=f"Name them: {spec.name}:1=PATH {spec.name}:2=PATH, or other names.",
                )
            versions[spec.version] = spec
        self._batching = batching
        self._metrics = metrics
        self._threads, self._device = threads, device
        self._models: dict[str, dict[str, Model]] = {}  # versions newest first
        self._prepared: dict[str, dict[str, Model]] = {}  # opened, not served yet
        self._due: set[str] = set()  # models that a reload of all has not come to yet
        self._lock = threading.Lock()
        self.on_load: Callable[[int], None] | None = None
        self._loading = threading.Lock()  # one load at a time: each needs memory and cores

    def load_all(
        self, unloaded: Collection[str] = (), served: Mapping[tuple[str, str], str] | None = None
    ) -> None:
        """Open everything at start, where any failure ends the program.

        Args:
            unloaded: Names of models that are not opened.
            served: :meth:`identities` of another process, which are opened or none.
        """
        for name in self._specs:
            if name in unloaded:
                self._exchange(name, {})
                continue
            with self._loading:
                self._serve(name, self._open(name, served))

    def identities(self) -> dict[tuple[str, str], str]:
        """:func:`identity_of` every open model by name and version."""
        with self._lock:
            models = [model for versions in self._models.values() for model in versions.values()]
        return {model.key: model.identity for model in models}

    def load(self, name: str) -> None:
        """Open every version of a model anew from its path and exchange them.

        Raises:
            UnknownModelError: the server was not started with it.
            SmashError: a bundle cannot be opened; what was served goes on.
        """
        self._known(name)
        with self._loading:
            self._serve(name, self._open(name))

    def prepare(self, name: str) -> dict[str, str]:
        """The first half of :meth:`load`: open every version; what is served goes on.

        Returns:
            :func:`identity_of` each by version.

        Raises:
            UnknownModelError, SmashError: as :meth:`load`.
        """
        self._known(name)
        with self._loading:
            self._let_go(self._prepared.pop(name, {}))
            self._prepared[name] = opened = self._open(name)
        return {version: model.identity for version, model in opened.items()}

    def exchange(self, name: str) -> None:
        """The second half of :meth:`load`: serve what was prepared; nothing where nothing was."""
        with self._loading:
            if (opened := self._prepared.pop(name, None)) is not None:
                self._serve(name, opened)

    def discard(self, name: str) -> None:
        """Let go of what was prepared, because another process could not open it."""
        with self._loading:
            if (opened := self._prepared.pop(name, None)) is not None:
                self._metrics.loaded(name, "refused")
                self._let_go(opened)

    def plan_reload(self) -> None:
        """Make every model due for :meth:`load_due`."""
        with self._lock:
            self._due.update(self._specs)

    def load_due(self, name: str) -> bool:
        """:meth:`load`; False without it where the model was unloaded since the reload was planned."""
        with self._loading:
            with self._lock:
                if name not in self._due:
                    return False
                self._due.discard(name)
            self._serve(name, self._open(name))
            return True

    def _open(self, name: str, served: Mapping[tuple[str, str], str] | None = None) -> dict[str, Model]:
        opened: dict[str, Model] = {}
        try:
            for version, spec in self._specs[name].items():
                identity = served.get((name, version)) if served else None
                opened[version] = open_model(
                    spec, self._batching, self._metrics, self._threads, self._device, identity
                )
        except BaseException:
            self._metrics.loaded(name, "refused")
            self._let_go(opened)
            raise
        return opened

    def _serve(self, name: str, opened: dict[str, Model]) -> None:
        self._metrics.loaded(name, "done")
        self._exchange(name, opened)
        if self.on_load is not None:
            self.on_load(self.largest_message())

    def unload(self, name: str) -> None:
        """Stop serving a model; requests that run are answered. A reload that comes to it later leaves it."""
        self._known(name)
        with self._loading:
            with self._lock:
                self._due.discard(name)
            self._exchange(name, {})

    def close(self) -> None:
        """Let go of every model; each closes when its last answer is there."""
        for name in list(self._specs):
            self._exchange(name, {})
            self._let_go(self._prepared.pop(name, {}))

    def _exchange(self, name: str, opened: dict[str, Model]) -> None:
        with self._lock:
            old = self._models.get(name, {})
            newest_first = sorted(opened, key=int, reverse=True)
            self._models[name] = {version: opened[version] for version in newest_first}
        for version, model in opened.items():
            self._metrics.watch_queue(name, version, functools.partial(_waiting, model.batcher))
        self._let_go(old)

    @staticmethod
    def _let_go(models: Mapping[str, Model]) -> None:
        for model in models.values():
            model.leave()

    @contextlib.contextmanager
    def use(self, name: str, version: str | None = None) -> Iterator[Model]:
        """A model that stays open for the length of the block; the newest version unless one is named.

        Raises:
            UnknownModelError: not served.
        """
        model = self.take(name, version)
        try:
            yield model
        finally:
            model.leave()

    def take(self, name: str, version: str | None = None) -> Model:
        """A model counted as used; the caller must call its ``leave``."""
        with self._lock:  # under the lock no exchange can close it between the look-up and the count
            versions = self._models.get(name)
            if versions:
                model = versions.get(version) if version else next(iter(versions.values()))
                if model is not None and model.take():
                    return model
        raise self._unknown(name, version)

    def batcher(self, name: str, version: str | None) -> Batcher | None:
        """The queue of a model, to look at; the model may be closed at any time."""
        versions = self._models.get(name)  # exchanged as a whole: no lock
        if not versions:
            return None
        model = versions.get(version) if version else next(iter(versions.values()))
        return None if model is None else model.batcher

    def versions(self, name: str) -> list[str]:
        """Versions of a model that are served, oldest first."""
        with self._lock:
            return sorted(self._models.get(name, {}), key=int)

    def default_name(self) -> str:
        """The first model that the server was started with."""
        return next(iter(self._specs))

    def open_models(self) -> list[tuple[str, str]]:
        """Name and version of every open model."""
        with self._lock:
            return [(name, version) for name, versions in self._models.items() for version in versions]

    def largest_message(self) -> int:
        """Bytes of the largest binary request that is taken for a served model."""
        with self._lock:
            models = [model for versions in self._models.values() for model in versions.values()]
        return _MESSAGE_BYTES + max(
            [_IMAGE_BYTES, *(model.tensor_bytes(model.max_images) for model in models)]
        )

    def ready(self) -> bool:
        """Whether every model is open but those that somebody unloaded, and one at least."""
        with self._lock:
            return all(name in self._models for name in self._specs) and any(self._models.values())

    def names(self) -> list[str]:
        """Every model that the server was started with."""
        return list(self._specs)

    def index(self) -> list[dict[str, str]]:
        """The answer of the repository index."""
        rows = []
        for name, specs in self._specs.items():
            for version in specs:
                model = self._models.get(name, {}).get(version)
                reason = "unloaded"
                if model is not None:
                    changed = model.changed_on_disk()
                    reason = "the bundle on the disk has changed; load to exchange it" if changed else ""
                state = "UNAVAILABLE" if model is None else "READY"
                rows.append({"name": name, "version": version, "state": state, "reason": reason})
        return rows

    def describe(self) -> list[JsonObject]:
        """Every open model for the page, the newest version of each first."""
        with self._lock:
            models = [model for versions in self._models.values() for model in versions.values()]
        return [model.describe() for model in models]

    def _known(self, name: str) -> None:
        if name not in self._specs:
            raise self._unknown(name, None)

    def _unknown(self, name: str, version: str | None) -> UnknownModelError:
        served = [f"{item} ({', '.join(self.versions(item)) or 'unloaded'})" for item in self._specs]
        return UnknownModelError(
            f"no model {name[:100]!r}" + (f" version {version[:20]}" if version else "") + " is served here",
            expected=", ".join(served),
        )


def _waiting(batcher: Batcher) -> int:
    return batcher.waiting


def variants(spec: ModelSpec) -> list[ModelSpec]:
    """The specs that serve every compiled file of a bundle that this machine can run.

    The first keeps the name and the free choice of file; the others are ``NAME.TARGET-PRECISION``.
    """
    from smash_targets.base import get_target

    found = [spec]
    for file in Bundle.open(spec.path).compiled:
        if get_target(file.target).availability().available:
            name = f"{spec.name}.{file.target}-{file.precision}"
            found.append(ModelSpec(name, spec.version, spec.path, file.target, file.precision, spec.name))
    return found


def require_files(model: Model) -> None:
    """Refuse image files for a network that takes volumes or unusual channels."""
    if model.preprocessing.depth is not None or model.preprocessing.channels not in (1, 3):
        raise InvalidInputError(
            f"model {model.spec.name} takes arrays, not image files",
            expected=f"a tensor through /v2/models/{model.spec.name}/infer",
        )
