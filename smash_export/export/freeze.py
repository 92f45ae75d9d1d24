"""An architecture becomes a network that needs none of the search: trained, folded, traced, verified.

    best.json ──> weights: generated | finetune | retrain ──> frozen weights ──> ONNX, TorchScript ──> bundle

*generated* keeps the weights that the architecture was scored with: the HyperNet's filters and the shared
ones, norms folded in. *finetune* trains on from there. *retrain* starts anew, with BatchNorm around each
1x1 convolution, as the paper trains its winner. Whatever the way, what is exported is the same interpreter
over plain arrays (:class:`smash_search.model.interpreter.FrozenNetwork`), and both files are compared with
it on real images through the runtimes that will run them before the bundle gets its name.

Training resumes: its checkpoints stand in ``.NAME.work`` beside the bundle until the bundle is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import softmax
from smash_base.sampling import spread
from smash_export import __version__
from smash_export.bundle import manifest
from smash_export.bundle.bundle import Bundle, Samples, write_bundle
from smash_export.export.calibration import FALSE_ALARM, Calibration, fit_calibration
from smash_export.export.onnx_writer import INPUT, OUTPUT, onnx_from_architecture, onnx_from_trace
from smash_export.measure.evaluate import Evaluation, score
from smash_export.measure.labelled import calibration_images
from smash_export.measure.verify import Parity, measure_parity
from smash_search.data import Dataset, load_dataset
from smash_search.model.fake_quantisation import FakeQuantisedNetwork
from smash_search.model.interpreter import FrozenNetwork, Network, fold
from smash_search.model.supernet import Supernet
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.best import BestFile, read_best
from smash_search.space.cost import Cost, cost_of
from smash_search.train.compute import DivergedError, pick_device
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import Epoch, FitResult, Recipe, evaluation_batch, fit, new_network
from smash_search.train.recipes import AUTO, recipe_for
from smash_targets.base import ModelSignature, SessionOptions, get_target

Weights = Literal["retrain", "finetune", "generated"]
Exporter = Literal["graph", "torch"]

SAMPLE_IMAGES = 512  # test images that travel in the bundle
STATISTICS_IMAGES = 1000  # training images that BatchNorm statistics are recomputed from
LARGEST_BATCH = 32
FINETUNING_RATE = 0.02  # of generated weights
ROUNDING_TIME = 1 / 6  # of a limit of time, for training with rounding after the other one


@dataclass(frozen=True)
class FreezeReport:
    """What was frozen and how good it is.

    Attributes:
        bundle: the opened bundle.
        weights: where its weights come from.
        cost: parameters, MACs, activation memory.
        test: Figures of the frozen network in eager PyTorch, on the test split.
        parity: per file ("onnx", "torchscript"), against eager PyTorch.
        fit: what training gave; None for generated weights.
    """

    bundle: Bundle
    weights: Weights
    cost: Cost
    test: Evaluation
    parity: Mapping[str, Parity]
    fit: FitResult | None

    @property
    def test_accuracy(self) -> float:
        """Share of right first answers."""
        return self.test.accuracy

    @property
    def test_images(self) -> int:
        """Number of test images."""
        return self.test.images


def default_recipe(dataset: Dataset, weights: Weights = "retrain", seed: int = 0) -> Recipe:
    """The recipe ``auto`` (:mod:`smash_search.train.recipes`), and a short one to train on with."""
    recipe = recipe_for(AUTO, dataset, seed)
    if weights == "finetune":
        return replace(gently(recipe), epochs=max(5, recipe.epochs // 4))
    return recipe


def gently(recipe: Recipe) -> Recipe:
    """The same recipe for generated weights: they are trained on, by steps that do not undo them."""
    rate = min(recipe.learning_rate, FINETUNING_RATE)
    return replace(continued(recipe), learning_rate=rate, optimiser="sgd")


def continued(recipe: Recipe) -> Recipe:
    """The same recipe for weights that are trained already: nothing of them is set anew."""
    return replace(recipe, whiten=False, identity=False)


def rounded(recipe: Recipe) -> Recipe:
    """How weights that were trained by a recipe are trained on with rounding: a tenth of the epochs at a
    hundredth of the learning rate. A teacher keeps the weight that it had at the end.
    """
    return replace(
        continued(recipe),
        epochs=max(2, recipe.epochs // 10),
        optimiser="sgd",
        first_size=1.0,
        prune=0.0,  # statistics of the last images stay in the file
        learning_rate=recipe.learning_rate / 100,
        weight_decay=0.0,
        distillation=recipe.distillation * recipe.distillation_left,
        distillation_left=1.0,
        precision="float32",  # bfloat16 would round again what is rounded to int8
        seconds=0.0,
    )


def freeze(
    best: BestFile | Path | str,
    dataset: Dataset | str,
    destination: Path | str,
    *,
    weights: Weights = "retrain",
    recipe: Recipe | None = None,
    supernet: Supernet | None = None,
    device: str = "auto",
    exporter: Exporter = "graph",
    quantisation_aware: bool = False,
    force: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[TrainingProgress], None] | None = None,
    on_rounding_step: Callable[[TrainingProgress], None] | None = None,
    teacher: np.ndarray | None = None,
    facts: JsonObject | None = None,
    false_alarm: float = FALSE_ALARM,
) -> FreezeReport:
    """Freeze an architecture into a bundle.

    Args:
        best: the architecture, its input and its labels, or the path of a ``best.json``.
        dataset: images of that input and those classes, or their name (NAME or NAME:PATH).
        destination: folder of the bundle.
        weights: see the module.
        recipe: how to train; :func:`default_recipe` without one.
        supernet: HyperNet of the search, for "generated" and "finetune".
        device: "auto", "cpu", "cuda"; of training. Export and verification run on the CPU.
        exporter: "graph" writes the ONNX file from the architecture; "torch" traces it with PyTorch.
        quantisation_aware: train on with int8 rounding in the loop, for networks that lose too much when
            they are only calibrated (:func:`rounded`). A sixth of the recipe's limit of time is for this.
        force: replace an existing bundle, once the new one is verified.
        on_epoch: called with each entry of the training history.
        on_step: called after every step of training.
        on_rounding_step: called after every step of the training with rounding.
        teacher: logits of another network for the training images (:mod:`smash_export.export.teacher`).
        facts: more for the bundle's provenance.
        false_alarm: share of images of the classes that may be called doubtful, where the network was trained
            (:mod:`smash_export.export.calibration`).

    Raises:
        InvalidInputError: the data have other classes or another input than the architecture.
        UsageError: the destination exists; no supernet where one is needed; images of several classes.
        VerificationError: an exported file does not do what the network does; it is kept in
            ``NAME.rejected`` beside the bundle, with a report.
    """
    destination = Path(destination)
    best = best if isinstance(best, BestFile) else read_best(Path(best))
    dataset = load_dataset(dataset) if isinstance(dataset, str) else dataset
    check_fit(best, dataset)
    if dataset.several:  # a network of these ends in a probability of each class, and is adopted
        raise UsageError(
            f"images of {dataset.spec} may be of several classes",
            expected="images of one class each",
            hint="smash-export freeze trains these, in Python smash_export.export.own_network.train_own.",
        )
    _check_arguments(destination, weights, exporter, supernet, force)
    recipe = recipe or default_recipe(dataset, weights)
    recipe = recipe if weights == "retrain" else continued(recipe)
    seconds = recipe.seconds
    if quantisation_aware and weights != "generated":
        seconds *= ROUNDING_TIME
        recipe = replace(recipe, seconds=recipe.seconds - seconds)
    with work_beside(destination) as work:
        frozen, fitted = _make_weights(
            best, dataset, weights, recipe, supernet, pick_device(device), work, on_epoch, on_step, teacher
        )
        recipe = recipe if fitted is None else fitted.recipe
        short: Recipe | None = None
        if quantisation_aware:
            short = replace(rounded(recipe), seconds=seconds)
            frozen = _train_quantisation_aware(
                best, dataset, short, frozen, pick_device(device), work, on_rounding_step, teacher
            )
        calibration = None
        trained = fitted is not None or quantisation_aware  # else logits stay those of the score
        if trained and not recipe.include_validation:
            calibration = calibrate(best.architecture, frozen, dataset, false_alarm)
        return _export(
            best,
            dataset,
            destination,
            weights,
            recipe,
            frozen,
            fitted,
            exporter,
            short,
            force,
            calibration,
            facts or {},
        )


_LASTING = ("teacher-", "fold-")  # beginnings of names of what another training can use


def work_of(destination: Path) -> Path:
    """Folder of what the training of a bundle keeps until the bundle is there."""
    return destination.parent / f".{destination.name}.work"


@contextlib.contextmanager
def held_work(destination: Path) -> Iterator[None]:
    """Hold the folder of :func:`work_of` exclusively; it goes at the end if nothing is kept in it."""
    work = work_of(destination)
    with files.exclusive(work, purpose="bundle"):
        try:
            yield
        finally:
            if all(path.name == files.LOCK for path in work.iterdir()):
                shutil.rmtree(work, ignore_errors=True)


def checkpoint_of(work: Path, weights: Weights, architecture: Architecture, seed: int) -> Path:
    """File of an interrupted training in the folder of work, before rounding."""
    return work / f"{weights}-{architecture.key}-{seed}.pt"


@contextlib.contextmanager
def work_beside(destination: Path) -> Iterator[Path]:
    """A folder for what a training keeps, held exclusively, which stays when the training is interrupted.

    It goes at the end. Where the training came to an end that the same command would come to again its
    checkpoints go; a teacher that was trained for it, and folds, stay.
    """
    work = work_of(destination)
    with files.exclusive(work, purpose="bundle"):
        try:
            yield work
        except (VerificationError, DivergedError):
            for path in work.iterdir():
                if path.is_file() and not path.name.startswith(_LASTING):
                    path.unlink()
            with contextlib.suppress(OSError):  # something stays
                work.rmdir()
            raise
    shutil.rmtree(work, ignore_errors=True)


def check_fit(best: BestFile, dataset: Dataset) -> None:
    """Raise InvalidInputError unless the data have the architecture's classes and input."""
    if tuple(best.classes) != tuple(dataset.classes):
        raise InvalidInputError(
            "the architecture is for other classes than the data",
            expected=f"{len(best.classes)} classes: {', '.join(best.classes[:5])} ...",
            received=f"{len(dataset.classes)} classes: {', '.join(dataset.classes[:5])} ...",
            hint="Choose the data it was searched on, or change 'classes' in the file.",
        )
    received = input_of(dataset)
    if best.input != received:
        raise InvalidInputError(
            "the architecture is for another input than the data",
            expected=best.input.to_json(),
            received=received.to_json(),
            hint="Choose the data it was searched on, or change 'input' in the file.",
        )


def input_of(dataset: Dataset) -> InputSpec:
    """Channels and size of a data set's images."""
    channels, *size = dataset.preprocessing.input_shape
    return InputSpec(channels, tuple(size))


def check_free(destination: Path, force: bool) -> None:
    """Raise UsageError where a bundle would replace something that nobody gave up; before it is trained."""
    files.refuse_existing(destination, replace=force, mark=manifest.NAME)


def _check_arguments(
    destination: Path, weights: str, exporter: str, supernet: Supernet | None, force: bool
) -> None:
    for name, value, kind in (("weights", weights, Weights), ("exporter", exporter, Exporter)):
        if value not in get_args(kind):
            raise UsageError(f"unknown {name}", expected=" or ".join(get_args(kind)), received=value)
    check_free(destination, force)
    if weights != "retrain" and supernet is None:
        raise UsageError(
            f"--weights {weights} needs the HyperNet of the search",
            expected="a run folder with a checkpoint",
            hint="Pass --run DIR, or use --weights retrain.",
        )
    for target in ("onnxruntime", "torchscript"):
        get_target(target).require()  # said before minutes of training


# --------------------------------------------------------------------------------------------- weights


def _make_weights(
    best: BestFile,
    dataset: Dataset,
    weights: Weights,
    recipe: Recipe,
    supernet: Supernet | None,
    device: torch.device,
    work: Path,
    on_epoch: Callable[[Epoch], None] | None,
    on_step: Callable[[TrainingProgress], None] | None,
    teacher: np.ndarray | None,
) -> tuple[dict[str, np.ndarray], FitResult | None]:
    network: Network
    if weights == "retrain":
        network = new_network(best.architecture, best.input, len(best.classes), recipe.seed)
    else:
        assert supernet is not None  # _check_arguments
        supernet = supernet.cpu().eval()
        statistics = supernet.statistics(best.architecture, [statistics_images(dataset)])
        if weights == "generated":
            return supernet.materialise(best.architecture, statistics), None
        network = Network(best.architecture, best.input, len(best.classes), supernet.config.norm)
        supernet.copy_to(network, statistics)
    checkpoint = checkpoint_of(work, weights, best.architecture, recipe.seed)
    fitted = fit(
        network,
        dataset,
        recipe,
        device=device,
        checkpoint=checkpoint,
        checkpoint_seconds=2.0,
        on_epoch=on_epoch,
        on_step=on_step,
        teacher=teacher,
        evaluate=not recipe.include_validation,
    )
    return fold(network.cpu()), fitted


def _train_quantisation_aware(
    best: BestFile,
    dataset: Dataset,
    recipe: Recipe,
    frozen: dict[str, np.ndarray],
    device: torch.device,
    work: Path,
    on_step: Callable[[TrainingProgress], None] | None,
    teacher: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Frozen weights trained on with rounding (smash_search.model.fake_quantisation), by :func:`rounded`."""
    network = FakeQuantisedNetwork(best.architecture, frozen)
    begun = hashlib.sha256(b"".join(frozen[name].tobytes() for name in sorted(frozen))).hexdigest()[:16]
    fit(
        network,
        dataset,
        recipe,
        device=device,
        checkpoint=work / f"rounded-{best.architecture.key}-{recipe.seed}-{begun}.pt",
        checkpoint_seconds=2.0,
        on_step=on_step,
        evaluate=False,
        teacher=teacher,
    )
    return network.frozen()


def statistics_images(dataset: Dataset) -> torch.Tensor:
    """The training images that norms are recomputed from before freezing: float32 [N, C, *S]."""
    chosen = spread(len(dataset.train), STATISTICS_IMAGES)
    images = torch.from_numpy(dataset.train.images[chosen])
    tensor: torch.Tensor = dataset.preprocessing.normalise(images)
    return tensor


def calibrate(
    architecture: Architecture, frozen: dict[str, np.ndarray], dataset: Dataset, false_alarm: float
) -> Calibration:
    """Divide the last layer by the temperature that the validation images ask for, in place.

    No label changes, and softmax of the exported logits is calibrated in every runtime, baked files and
    programs of other people included, without anybody having to know of a temperature.
    """
    logits = logits_of(FrozenNetwork(architecture, frozen).eval(), dataset, dataset.validation.images)
    calibration = fit_calibration(logits, dataset.validation.labels, false_alarm)
    for name in ("head.weight", "head.bias"):
        frozen[name] = (frozen[name] / calibration.temperature).astype(np.float32)
    return calibration


# ---------------------------------------------------------------------------------------------- export


def _export(
    best: BestFile,
    dataset: Dataset,
    destination: Path,
    weights: Weights,
    recipe: Recipe,
    frozen: dict[str, np.ndarray],
    fitted: FitResult | None,
    exporter: Exporter,
    rounding: Recipe | None,
    force: bool,
    calibration: Calibration | None,
    facts: JsonObject,
) -> FreezeReport:
    reference = FrozenNetwork(best.architecture, frozen).eval()
    signature = ModelSignature(
        INPUT, OUTPUT, dataset.preprocessing.input_shape, len(best.classes), (1, 1, LARGEST_BATCH)
    )
    chosen = spread(len(dataset.test), SAMPLE_IMAGES)
    images, labels = np.asarray(dataset.test.images[chosen]), dataset.test.labels[chosen]
    samples = Samples(images, labels, logits_of(reference, dataset, images))
    if exporter == "graph":
        onnx = onnx_from_architecture(
            best.architecture,
            frozen,
            best.input,
            labels=best.classes,
            preprocessing=dataset.preprocessing,
        )
    else:
        onnx = onnx_from_trace(
            reference, best.input, labels=best.classes, preprocessing=dataset.preprocessing
        )
    torchscript = trace(reference, best, dataset)
    parity = _verify(destination, onnx, torchscript, signature, samples, dataset)
    test = score(
        softmax(logits_of(reference, dataset, dataset.test.images)), dataset.test.labels, dataset.classes
    )
    cost = cost_of(best.architecture, best.input, len(best.classes))
    bundle = write_bundle(
        destination,
        onnx=onnx,
        torchscript=torchscript,
        architecture=best.architecture,
        weights=frozen,
        labels=best.classes,
        preprocessing=dataset.preprocessing,
        signature=signature,
        samples=samples,
        calibration=calibration_images(dataset),
        provenance={
            "weights": weights,
            "recipe": None if fitted is None else recipe.to_json(),
            "calibration": None if calibration is None else asdict(calibration),
            "exporter": exporter,
            "quantisation_aware": rounding is not None,
            "rounding": None if rounding is None else rounding.to_json(),
            "data": {"spec": dataset.spec, "seed": dataset.seed, "fingerprint": dataset.fingerprint},
            "accuracy": {"split": "test", **test.facts()},
            "cost": asdict(cost),
            "parity": {name: value.to_json() for name, value in parity.items()},
            "search": best.search.to_json(),
            "versions": {
                "smash-export": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            **facts,
        },
        force=force,
    )
    return FreezeReport(bundle, weights, cost, test, parity, fitted)


def logits_of(network: torch.nn.Module, dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """What a network on the CPU answers for uint8 images, float32 [N, K], in small batches."""
    parts = []
    size = evaluation_batch(images, 256)
    with torch.inference_mode():
        for start in range(0, len(images), size):
            batch = dataset.preprocessing.normalise(np.asarray(images[start : start + size]))
            parts.append(network(torch.from_numpy(batch)).numpy())
    return np.concatenate(parts)


def trace(network: FrozenNetwork, best: BestFile, dataset: Dataset) -> bytes:
    """The TorchScript file: traced at batch 2, labels and preprocessing in its extra files."""
    example = torch.zeros(2, *dataset.preprocessing.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since PyTorch 2.11; the target says so once
        traced = torch.jit.trace(network, example, check_trace=False)
        stream = io.BytesIO()
        extra = {
            "labels.json": json.dumps(list(best.classes)),
            "preprocessing.json": json.dumps(dataset.preprocessing.to_json()),
        }
        torch.jit.save(traced, stream, _extra_files=extra)
    return stream.getvalue()


def _verify(
    destination: Path,
    onnx: bytes,
    torchscript: bytes,
    signature: ModelSignature,
    samples: Samples,
    dataset: Dataset,
) -> dict[str, Parity]:
    """Open both files in their runtimes and compare them with eager PyTorch on real images."""
    parts = {"onnx": ("onnxruntime", "model.onnx", onnx), "torchscript": ("torchscript", "m.pt", torchscript)}
    found: dict[str, Parity] = {}
    with tempfile.TemporaryDirectory(prefix="smash-export-") as folder:
        for name, (target, file, content) in parts.items():
            path = Path(folder) / file
            path.write_bytes(content)
            options = SessionOptions(threads=torch.get_num_threads())
            with get_target(target).open(path, signature, options) as session:
                found[name] = measure_parity(session, samples, dataset.preprocessing, signature.batch)
    problems = {name: parity.problems("fp32") for name, parity in found.items() if parity.problems("fp32")}
    if not problems:
        return found
    rejected = destination.with_name(destination.name + ".rejected")
    with files.new_folder(rejected, replace=True, mark="report.json") as folder_:
        files.write_bytes(folder_ / "model.onnx", onnx)
        files.write_bytes(folder_ / "model.torchscript.pt", torchscript)
        report = {name: {**found[name].to_json(), "problems": text} for name, text in problems.items()}
        files.write_json(folder_ / "report.json", report)
    name, text = next(iter(problems.items()))
    raise VerificationError(
        f"the {name} file does not do what the network does: {'; '.join(text)}",
        hint=f"Files and measurements are in {rejected}; nothing was written to {destination}.",
    )
