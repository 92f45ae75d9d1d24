"""What a student learns from beside the labels: another network's answers for its training images, made once.

The teacher is a bundle, an ONNX or TorchScript file (adopted first, with all checks of ``smash-export
adopt``), a network of timm with weights from a file, or ``auto``: a larger network of the student's own
space, trained first and from scratch by the same recipe, or the best finalists of the search where their
answers were kept.
Its answers are logits; they are kept beside the student's checkpoints, so that a training that goes on asks
nobody again, and in the user's cache folder for other students of the same images. It answers for the
validation images too, which tells how much it knows: of its training images a network that has learned them
by heart knows everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Outputs, Preprocessing
from smash_export.bundle.inspection import stored_facts
from smash_export.export.adopt import Images, adopt, read_preprocessing
from smash_export.export.foreign_onnx import external_files
from smash_export.export.timm_networks import PREFIX, network_with_weights, weights_file
from smash_export.export.torch_program import save_whole
from smash_export.export.torchscript import traced
from smash_export.measure.labelled import as_files
from smash_search.data.spec import Spec, parse_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from smash_export.bundle.bundle import Bundle
    from smash_search.data import Dataset
    from smash_search.space.architecture import Architecture
    from smash_search.train.answers import Answers
    from smash_search.train.loop import TrainingProgress
    from smash_search.train.network import Epoch
    from smash_search.train.recipes import Recipe

AUTO = "auto"
FORMS = "auto, a bundle, an ONNX or TorchScript file, or timm:NAME?weights=FILE"
TIMES_LARGER = 4.0  # multiply-accumulates of an automatic teacher over those of its student
TIME_SHARE = 0.5  # of --time, for an automatic teacher
LEAST_RIGHT = 0.8  # of the images; teachers of less held their students back (docs/recipes.md)
TOLD_TEMPERING = 1.5  # less is not worth a word
CACHE_BYTES = 2**30  # of all answers in the user's cache folder
CHECKED = 512  # test images that an adopted teacher is checked on
LEAST = 1e-7  # probability whose logarithm is taken
_BATCH = 256
_ANSWERS = 1  # changes with what a teacher is asked, and how
_MAKE_A_BUNDLE = (
    "A teacher of another image size or preprocessing is made a bundle first, which is named then: "
    "smash-export adopt {} --size N --channels C --mean M --std S ..."
)


def teacher_logits(
    teacher: Path | str,
    dataset: Dataset,
    cache: Path | None = None,
    *,
    include_validation: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """What a teacher answers for the training images, float32 [N, K]; through its own preprocessing.

    Args:
        teacher: see :data:`FORMS`, all but "auto". TorchScript is code: name only files of people you trust.
        dataset: its images are shown in their order, its classes are the columns.
        cache: file that the answers are kept in; its name gets a suffix.
        include_validation: answers for the validation images too, after those for the training images.
        warn: told what ``smash-export adopt`` would warn of.

    Raises:
        InvalidInputError: not a classifier of these classes.
        MissingRuntimeError: what opens the teacher is not installed.
        UsageError: none of the forms.
    """
    if cache is None:
        answers = _asked(teacher, dataset, warn)
    else:
        answers = np.load(answers_file(teacher, dataset, cache, warn=warn), allow_pickle=False)
    return answers if include_validation else answers[: len(dataset.train)]


def answers_file(
    teacher: Path | str,
    dataset: Dataset,
    cache: Path,
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> Path:
    """The file that holds the answers for training and validation images, made unless it is there.

    See :func:`teacher_logits`. Its name is that of ``cache`` with a suffix, which says whose answers they are
    and for which images; :func:`smash_search.train.answers.read_answers` reads it.
    """
    name = f"{_fingerprint(teacher)[:16]}-{dataset.fingerprint[:16]}.npy"
    held = cache.with_name(f"{cache.name}-{name}")
    if not _is_whole(held, dataset):
        known = _in_cache(name)
        if known is not None and _is_whole(known, dataset):
            content = known.read_bytes()
            with contextlib.suppress(OSError):  # one that may only be read
                os.utime(known)
        else:
            content = _as_bytes(_asked(teacher, dataset, warn))
            if known is not None and len(content) <= CACHE_BYTES:
                with contextlib.suppress(OSError):
                    _write(known, content)
                    _make_room(known.parent)
        _write(held, content)
    return held


def _is_whole(path: Path, dataset: Dataset) -> bool:
    """Whether a file has answers for training images, and for validation images, which earlier versions did
    not ask for.
    """
    try:
        rows: int = np.load(path, mmap_mode="r", allow_pickle=False).shape[0]
    except (OSError, ValueError, EOFError):
        return False
    return rows == len(dataset.train) + len(dataset.validation)


def _in_cache(name: str) -> Path | None:
    """Where answers are kept for other students of the same images; None for a user without a home."""
    try:
        return files.user_cache(f"answers-{_ANSWERS}") / name
    except RuntimeError:
        return None


def _make_room(folder: Path) -> None:
    """Remove the answers that were not used for longest when all are too many, and what was cut off."""
    files.remove_left(folder)
    room = CACHE_BYTES
    for path in sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        room -= path.stat().st_size
        if room < 0:
            path.unlink(missing_ok=True)


def _asked(teacher: Path | str, dataset: Dataset, warn: Callable[[str], None]) -> np.ndarray:
    with tempfile.TemporaryDirectory(prefix="smash-export-teacher-") as folder:
        bundle = _as_bundle(teacher, dataset, Path(folder), warn)
        return _answers(bundle, teacher, dataset)


@dataclass(frozen=True)
class Knowledge:
    """How much a teacher knows.

    Attributes:
        words: for people.
        little: it is right on so few images that its answers may harm; never for images of several classes,
            for which no share was measured.
        validation: What the recipe measures on the validation images, 0 to 1; None where none are left.
    """

    words: str
    little: bool
    validation: float | None


def knowledge(answers: Answers, dataset: Dataset, recipe: Recipe) -> Knowledge:
    """What a teacher's answers tell of it: on validation images, or on training images where none are left.

    Args:
        answers: for the images of the data set.
        dataset: the images.
        recipe: Recipe of the student; it says what is measured, and whether validation images are trained on.
    """
    from smash_search.train.answers import measured
    from smash_search.train.network import tempering

    logits, split, which = answers.training, dataset.train, "training"
    held_out = answers.validation is not None and not recipe.include_validation
    if answers.validation is not None and held_out:
        logits, split, which = answers.validation, dataset.validation, "validation"
    figure = measured(logits, split, recipe)
    validation = figure if held_out else None
    if split.targets is not None:
        return Knowledge(f"mean average precision {figure:.1%} on the {which} images", False, validation)
    right = float((logits.argmax(1) == split.labels).mean())
    words = f"right on {right:.1%} of the {which} images"
    if recipe.balance != "none":
        words += f", mean recall of the classes {figure:.1%}"
        right = min(right, figure)
    divided = tempering(answers.training, recipe.teacher_confidence)
    if divided > TOLD_TEMPERING:
        words += f"; its answers are divided by {divided:.1f}, surer ones tell little beside the labels"
    return Knowledge(words, right < LEAST_RIGHT, validation)


def identity(teacher: Path | str) -> JsonObject:
    """Which teacher, for the provenance of its students: its name, and what tells it from others."""
    name = str(teacher) if _timm(teacher) is None else str(teacher).partition("?")[0]
    return {"name": Path(name).name or name, "fingerprint": _fingerprint(teacher)}


def check_there(teacher: Path | str) -> None:
    """Raise UsageError where there is no such teacher."""
    _fingerprint(teacher)


def _fingerprint(teacher: Path | str) -> str:
    """SHA-256 of the file that holds the teacher's weights, and of what else decides its answers."""
    if str(teacher) == AUTO and not Path(teacher).exists():
        raise UsageError(
            "no teacher is trained for the finalists of a search",
            expected=FORMS.removeprefix(f"{AUTO}, "),
            received=AUTO,
            hint="freeze and train take --teacher auto.",
        )
    if spec := _timm(teacher):
        told = (files.sha256(weights_file(spec, "size")), spec.path, spec.options.get("size"))
        return hashlib.sha256(repr(told).encode()).hexdigest()
    path = Path(teacher)
    if path.is_dir():
        from smash_export.bundle.bundle import Bundle

        if not (path / "manifest.json").exists():
            raise UsageError(f"the teacher {path} is a folder without a bundle", expected=FORMS)
        return files.sha256(Bundle.open(path).onnx)
    digest = files.sha256(_there(path))
    others = external_files(path) if path.suffix == ".onnx" else []
    if others:
        digest = hashlib.sha256("".join([digest, *map(files.sha256, others)]).encode()).hexdigest()
    return digest


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UsageError("there is no such teacher", expected=FORMS, received=path)
    return path


def _as_bundle(teacher: Path | str, dataset: Dataset, folder: Path, warn: Callable[[str], None]) -> Path:
    """The teacher as a bundle, adopted into the folder unless it is one."""
    path, preprocessing = Path(teacher), dataset.preprocessing
    labels = dataset.classes
    if spec := _timm(teacher):
        path, preprocessing = _traced_timm(spec, dataset, folder)
    elif path.is_dir():
        return path
    else:
        metadata = stored_facts(_there(path))
        if "preprocessing" in metadata:
            preprocessing = read_preprocessing(None, {}, path)
        labels = _labels(metadata, path) or labels
    known = dataset.test.take(np.flatnonzero(~dataset.test.of_no_class)[:CHECKED])
    labelled = _columns(labels, dataset.classes, teacher)[known.labels]
    shown = as_files(np.asarray(known.images), dataset.preprocessing, preprocessing)
    images = Images(shown, labelled, None, {})
    try:
        adopted = adopt(path, folder / "teacher", labels=labels, preprocessing=preprocessing, images=images)
    except InvalidInputError as error:
        # Hints that name options name those of adopt.
        hint = error.hint if error.hint and "--" not in error.hint else _MAKE_A_BUNDLE.format(path)
        raise InvalidInputError(
            f"the teacher: {error.what}", expected=error.expected, received=error.received, hint=hint
        ) from None
    for warning in adopted.warnings:
        about_one = (
            dataset.several and "no better than chance" in warning
        )  # it counts one class of each image
        if "calibration images" not in warning and not about_one:  # nobody compiles a teacher
            warn(f"teacher {teacher}: {warning}")
    return adopted.bundle.path


def _labels(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    if "labels" not in metadata:
        return ()
    value = files.parse_json(metadata["labels"], what=f"labels in {path}")
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _columns(labels: tuple[str, ...], classes: tuple[str, ...], teacher: Path | str) -> np.ndarray:
    """For each class of the student the teacher's output of that name, int64 [K]."""
    if sorted(labels) != sorted(classes):
        raise InvalidInputError(
            f"the teacher {teacher} is for other classes",
            expected=", ".join(classes[:5]),
            received=", ".join(labels[:5]),
        )
    return np.array([labels.index(name) for name in classes], np.int64)


def _answers(bundle: Path, teacher: Path | str, dataset: Dataset) -> np.ndarray:
    """Logits of the dataset's classes for its training and validation images, float32 [N + V, K]."""
    from smash_export.prediction.classifier import load

    parts = []
    with load(bundle) as classifier:
        order = _columns(tuple(classifier.labels), dataset.classes, bundle)
        outputs = classifier.bundle.signature.outputs
        _check_answers(outputs, dataset, teacher)
        shift = _thresholds(classifier.bundle)
        for images in _batches(dataset):
            shown = as_files(images, dataset.preprocessing, classifier.preprocessing)
            answers = classifier.logits(classifier.preprocessing.normalise(shown))
            if outputs == "probabilities":
                answers = np.log(np.maximum(answers, LEAST))
            elif outputs == "sigmoid":
                answers = _logit(np.asarray(answers)) + shift
            parts.append(answers[:, order])
    found: np.ndarray = np.concatenate(parts).astype(np.float32)
    return found


def _check_answers(outputs: Outputs, dataset: Dataset, teacher: Path | str) -> None:
    """Whether classes exclude each other, for the teacher as for the images, as far as its answers tell.

    Logits of a file say nothing about that; those of a bundle are of classes that do.

    Raises:
        InvalidInputError: for one of the two only.
    """
    each = outputs == "sigmoid" or (outputs == "logits" and not Path(teacher).is_dir())
    if dataset.several and not each:
        raise InvalidInputError(
            f"images of {dataset.spec} may be of several classes",
            expected="a teacher that answers each class by itself",
            received=f"{teacher}, whose probabilities sum to one",
        )
    if outputs == "sigmoid" and not dataset.several:
        raise InvalidInputError(
            f"the teacher {teacher} answers each class by itself", expected="one class per image"
        )


def _logit(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities of each class by itself."""
    inside = np.clip(probabilities.astype(np.float64), LEAST, 1 - LEAST)
    found: np.ndarray = np.log(inside / (1 - inside))
    return found


def _thresholds(bundle: Bundle) -> np.ndarray:
    """Logits of the thresholds that a bundle's probabilities were moved by, [K]; zeros without any."""
    told = bundle.manifest.provenance.get("thresholds")
    if not isinstance(told, dict) or sorted(told) != sorted(bundle.labels):
        return np.zeros(len(bundle.labels))
    return _logit(np.array([told[name] for name in bundle.labels], np.float64))


def _batches(dataset: Dataset) -> Iterator[np.ndarray]:
    """Training and then validation images in small arrays, in their order."""
    from smash_search.train.network import evaluation_batch

    size = evaluation_batch(dataset.train.images, _BATCH)
    return (
        np.asarray(split.images[start : start + size])
        for split in (dataset.train, dataset.validation)
        for start in range(0, len(split), size)
    )


def _as_bytes(answers: np.ndarray) -> bytes:
    """The content of a file of answers."""
    stream = io.BytesIO()
    np.save(stream, answers, allow_pickle=False)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content)


# ------------------------------------------------------------------------------------------------ timm


def _timm(teacher: Path | str) -> Spec | None:
    """The specification of a network of timm; None for anything else."""
    text = str(teacher)
    return parse_spec(text) if text.startswith(PREFIX) else None


def _traced_timm(spec: Spec, dataset: Dataset, folder: Path) -> tuple[Path, Preprocessing]:
    """A TorchScript file of timm's network with the weights given, and its preprocessing.

    With ``size`` the weights are for images of another size than timm has the network for.
    """
    network, block = network_with_weights(
        str(spec.path), weights_file(spec, "size"), len(dataset.classes), dataset.preprocessing.channels
    )
    import torch

    if size := spec.integer("size", 8, 4096):
        block |= {"height": size, "width": size}
        block.pop("crop_pct", None)
    path = folder / "timm.pt"
    preprocessing = read_preprocessing(None, block, path)
    trace = traced(network, torch.zeros(2, *preprocessing.input_shape))
    save_whole(torch.jit.save, trace, path)
    return path, preprocessing


# ---------------------------------------------------------------------------------- a larger network


def larger_network(architecture: Architecture, dataset: Dataset) -> Architecture | None:
    """A known network of the student's space with about four times its multiply-accumulates.

    None where no known one is larger by half.
    """
    from smash_search.rank.finalists import input_spec_of
    from smash_search.space.cost import cost_of
    from smash_search.space.known import known_networks
    from smash_search.space.space import space_for

    spec, classes = input_spec_of(dataset), len(dataset.classes)
    own = cost_of(architecture, spec, classes).macs

    def times(entry: Architecture) -> float:
        return cost_of(entry, spec, classes).macs / own

    larger = [entry for entry in known_networks(space_for(spec)) if times(entry) >= 1.5]
    return min(
        larger, key=lambda entry: (abs(math.log(times(entry) / TIMES_LARGER)), entry.key), default=None
    )


def ensemble_of(run: Path, dataset: Dataset) -> Answers | None:
    """The answers of a search's best finalists for these images; None without any.

    ``smash-export search --ensemble`` keeps them; their file's name says for which images.
    """
    from smash_search.stages.race import ensemble_file
    from smash_search.train.answers import read_answers

    path = run / ensemble_file(dataset.fingerprint)
    return read_answers(path, dataset) if path.is_file() else None


def _taught_by(network: nn.Module, dataset: Dataset, device: torch.device) -> np.ndarray:
    """Logits of training and validation images, float32 [N + V, K]."""
    import torch

    parts = []
    with torch.inference_mode():
        for images in _batches(dataset):
            shown = dataset.preprocessing.normalise(torch.from_numpy(images).to(device))
            parts.append(network(shown).float().cpu().numpy())
    answers: np.ndarray = np.concatenate(parts).astype(np.float32)
    return answers


def kept_answers(architecture: Architecture, dataset: Dataset, recipe: Recipe, cache: Path) -> Path:
    """File of the answers of :func:`trained_teacher`, which takes the same arguments."""
    # How many epochs fit into a time is measured anew each time; see fit().
    asked = replace(recipe, epochs=1) if recipe.seconds else recipe
    how = hashlib.sha256(json.dumps(asked.to_json(), sort_keys=True).encode()).hexdigest()
    name = f"{architecture.key}-{dataset.fingerprint[:16]}-{how[:16]}"
    return cache.with_name(f"{cache.name}-{name}.npy")


def trained_teacher(
    architecture: Architecture,
    dataset: Dataset,
    recipe: Recipe,
    *,
    device: torch.device,
    cache: Path,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[TrainingProgress], None] | None = None,
) -> Answers:
    """Train a network and let it answer for the training and validation images.

    Training resumes; answers that are there already are read.

    Args:
        architecture: What :func:`larger_network` gave.
        dataset: training images, those of validation too where the recipe includes them.
        recipe: how to train it.
        device: where.
        cache: file that the answers are kept in; its name gets a suffix.
        on_epoch: called with each entry of the training history.
        on_step: called after every step of training.
    """
    from smash_search.rank.finalists import input_spec_of
    from smash_search.train.answers import read_answers
    from smash_search.train.network import fit, new_network

    held = kept_answers(architecture, dataset, recipe, cache)
    if held.exists():
        return read_answers(held, dataset)
    held.parent.mkdir(parents=True, exist_ok=True)
    network = new_network(architecture, input_spec_of(dataset), len(dataset.classes), recipe.seed)
    fit(
        network,
        dataset,
        recipe,
        device=device,
        checkpoint=held.with_suffix(".pt"),
        checkpoint_seconds=2.0,
        on_epoch=on_epoch,
        on_step=on_step,
        evaluate=False,
    )
    _write(held, _as_bytes(_taught_by(network.eval(), dataset, device)))
    held.with_suffix(".pt").unlink(missing_ok=True)
    return read_answers(held, dataset)
