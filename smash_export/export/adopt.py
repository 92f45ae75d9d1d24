"""A bundle from a classifier that somebody else trained, after the same checks as one of ours.

The file is ONNX, TorchScript or a torch.export program. Labels, preprocessing and real images come with it,
because without them nothing that a bundle promises can be checked: the reference logits are those of the
adopted file itself, and an accuracy near chance says that labels or preprocessing are not those it was
trained with.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Outputs, Preprocessing, first_answers
from smash_export.bundle.bundle import Bundle, Samples, write_bundle
from smash_export.bundle.manifest import NAME
from smash_export.bundle.samples import check_images, read_arrays
from smash_export.export.torchscript import OPSET, advice_on, cause_of, evaluating, onnx_of_torchscript
from smash_export.measure.gates import GATES
from smash_export.measure.labelled import CALIBRATION_IMAGES, calibration_images
from smash_export.measure.machine import version_of
from smash_search.data.several import likeliest
from smash_targets.base import ModelSignature
from smash_targets.onnx_file import read_onnx_facts

if TYPE_CHECKING:
    import onnx

    from smash_export.export.foreign_rewriting import Form, Reference, Run

USUAL_BATCH = (1, 1, 32)
CHECKED = 8  # images run one by one and together, to see that the batch axis is one
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Images:
    """What an adopted classifier is checked and calibrated on.

    Attributes:
        test: uint8 [N, *sample_shape] with ``labels`` int64 [N].
        targets: uint8 [N, K] of images that may be of several classes, or None.
        calibration: uint8 images that are no test images, or None: no int8 then.
        provenance: where they come from, for the manifest.
    """

    test: np.ndarray
    labels: np.ndarray
    calibration: np.ndarray | None
    provenance: Mapping[str, Any]
    targets: np.ndarray | None = None


@dataclass(frozen=True)
class Adopted:
    """The new bundle, its accuracy on the test images, and what the user should know."""

    bundle: Bundle
    accuracy: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Foreign:
    """A foreign network on its way into a bundle.

    Attributes:
        graph: its ONNX form as it will be stored.
        reference: what the file itself answers.
        batch: the only batch it takes, None for any.
        facts: for the manifest.
        traced: the TorchScript file that it came as.
        outputs: what its answers are.
    """

    graph: onnx.ModelProto
    reference: Reference
    batch: int | None
    facts: Mapping[str, Any]
    traced: bytes | None = None
    outputs: Outputs = "logits"


def adopt(
    model: Path | str,
    destination: Path | str,
    *,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    images: Images,
    outputs: Outputs | None = None,
    force: bool = False,
    trained_here: bool = False,
) -> Adopted:
    """Make a bundle of a foreign classifier.

    Args:
        model: ``.onnx``, or TorchScript (``.pt``, ``.ts``, ``.torchscript``) or a program of
            ``torch.export.save`` (``.pt2``), which are code: load only files whose maker you trust.
        destination: the bundle's folder.
        labels: class names in the order of its outputs; two for a network of one output.
        preprocessing: how its training turned images into tensors.
        images: see :class:`Images`.
        outputs: what its answers are; by default what the graph and the answers themselves say.
        force: replace the bundle.
        trained_here: whether labels and preprocessing are certainly those of its training; an accuracy near
            chance is then no sign of others.

    Raises:
        InvalidInputError: a file that is unsafe or no image classifier; labels, preprocessing or images
            that do not fit it.
        VerificationError: what would be stored does not do what the file does.
        MissingRuntimeError: onnxruntime (or torch for TorchScript) is not installed.
        UsageError: the destination exists.
    """
    model = Path(model)
    from smash_export.export.foreign_rewriting import are_bounded, check_same, computes_in, runner

    files.refuse_existing(Path(destination), replace=force, mark=NAME)  # before minutes of work, and after
    check_images("test images", images.test, preprocessing)
    foreign = _opened(model, preprocessing.normalise(images.test), preprocessing)
    foreign = _as_classifier(foreign, model, labels, outputs)
    graph, reference = foreign.graph, foreign.reference
    if foreign.outputs != "sigmoid" and (images.labels == reference.classes).any():
        raise InvalidInputError(
            f"{model}: some images are of no class, and each answer of the network is of one",
            expected="images of its classes",
            hint="Leave the others out; a network that answers each class by itself is given as such: "
            "--outputs sigmoid",
        )
    source, output = graph.graph.input[0].name, graph.graph.output[0].name
    batch = USUAL_BATCH if foreign.batch is None else (foreign.batch,) * 3
    signature = ModelSignature(
        source, output, preprocessing.input_shape, reference.classes, batch, foreign.outputs
    )
    finished, precision = _finished(graph, labels, preprocessing), computes_in(graph)
    check_same(reference, runner(finished, foreign.batch), precision, str(model))
    _check_neighbours(runner(finished, foreign.batch), reference.samples, precision, model)
    truth = images.labels if images.targets is None else likeliest(images.targets, reference.answers)
    accuracy = float((first_answers(reference.answers, truth) == truth).mean())
    bundle = write_bundle(
        destination,
        onnx=finished,
        torchscript=foreign.traced,
        architecture=None,
        weights=None,
        labels=labels,
        preprocessing=preprocessing,
        signature=signature,
        samples=Samples(
            images.test,
            truth.astype(np.int64),
            reference.answers.astype(np.float32),
            images.targets,
        ),
        calibration=images.calibration,
        provenance={
            "adopted": {
                "file": model.name,
                "sha256": files.sha256(model),
                "computes_in": precision,
                **foreign.facts,
            },
            "accuracy": accuracy,
            **images.provenance,
        },
        force=force,
    )
    doubted = not trained_here and accuracy < min(1.5 / reference.classes, 0.55)
    warnings = _warnings(foreign, bundle, images, accuracy if doubted else None)
    if outputs is None and foreign.outputs == "logits" and are_bounded(reference):
        warnings.append(
            "every answer lies between 0 and 1 and was taken for a logit: if they are probabilities, "
            "say so with --outputs probabilities, or sigmoid where each class is answered by itself"
        )
    return Adopted(bundle, accuracy, tuple(warnings))


def images_from_arrays(
    test: Path, calibration: Path | None, preprocessing: Preprocessing, classes: int
) -> Images:
    """Read ``images`` (uint8) and ``labels`` (int64) from one npz, calibration ``images`` from another.

    Raises:
        InvalidInputError: not such files, other shapes than the preprocessing, labels out of range.
    """
    arrays = read_arrays(test, {"images": "u1", "labels": "i8"})
    check_images(f"images of {test}", arrays["images"], preprocessing)
    _check_labels(arrays["labels"], len(arrays["images"]), classes)
    extra = None
    if calibration is not None:
        extra = read_arrays(calibration, {"images": "u1"})["images"]
        check_images(f"images of {calibration}", extra, preprocessing)
    return Images(arrays["images"], arrays["labels"], extra, {"data": {"samples": test.name}})


def images_from_data(
    spec: str,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    test_count: int = 1024,
    calibration_count: int = CALIBRATION_IMAGES,
    seed: int = 0,
) -> Images:
    """Test and training images of a data set by name (:func:`smash_search.data.load_dataset`).

    Image files are decoded as prediction decodes them; other images of another size pass through the
    preprocessing one by one. Classes are matched by name: the order of ``labels`` is that of the network's
    outputs, whatever the data set's is.

    Raises:
        InvalidInputError: the data set has a class that is no label.
    """
    from smash_export.measure.labelled import as_files, by_outputs, class_numbers, labels_by_outputs
    from smash_search.data import as_seen_by, load_dataset

    dataset = load_dataset(as_seen_by(preprocessing, spec), seed=seed)
    numbers = class_numbers(spec, dataset.classes, labels)

    def seen(images: np.ndarray) -> np.ndarray:
        return as_files(np.asarray(images), dataset.preprocessing, preprocessing)

    test = dataset.test.some(test_count, np.random.default_rng(seed))
    targets = by_outputs(test.targets, numbers, len(labels))
    facts = {"data": {"spec": spec, "seed": seed, "fingerprint": dataset.fingerprint}}
    numbered = labels_by_outputs(test.labels, numbers, len(labels))
    calibration = seen(calibration_images(dataset, calibration_count, seed))
    return Images(seen(test.images), numbered, calibration, facts, targets)


def _check_labels(labels: np.ndarray, count: int, classes: int) -> None:
    if labels.shape != (count,) or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise InvalidInputError(
            "labels of the test images",
            expected=f"{count} numbers from 0 to {classes - 1}",
            received=f"{labels.shape}, {labels.min(initial=0)} to {labels.max(initial=0)}",
        )


def _opened(path: Path, tensors: np.ndarray, preprocessing: Preprocessing) -> _Foreign:
    from smash_export.bundle.inspection import inspect

    kind = "ONNX" if path.suffix == ".onnx" else inspect(path)["kind"]
    readers = {
        "ONNX": _from_onnx,
        "TorchScript": _from_torchscript,
        "exported program (.pt2)": _from_program,
    }
    if kind not in readers:
        raise InvalidInputError(
            f"{path} cannot be adopted",
            expected="an ONNX file, TorchScript or a torch.export program",
            received=kind,
            hint="Export it: torch.onnx.export(network, images, 'model.onnx'), external_data=False.",
        )
    return readers[str(kind)](path, tensors, preprocessing)


def _from_onnx(path: Path, tensors: np.ndarray, preprocessing: Preprocessing) -> _Foreign:
    from smash_export.export.foreign_onnx import read_foreign_onnx
    from smash_export.export.foreign_rewriting import modernised, opset_of

    original = read_foreign_onnx(path)
    declared, batch, form = _fitted(original, path, preprocessing)
    reference, batch = _reference(original, form, declared, tensors, batch, path)
    graph = modernised(declared, reference, batch)
    _name_batch(graph, batch)
    facts = {"reference": f"ONNX Runtime {version_of('onnxruntime')}", "opset": opset_of(original)}
    return _Foreign(graph, reference, batch, facts)


def _from_torchscript(path: Path, tensors: np.ndarray, preprocessing: Preprocessing) -> _Foreign:
    """The traced network and its ONNX form."""
    try:
        import torch
    except ImportError:
        raise MissingRuntimeError(
            "TorchScript needs torch", hint="Install it: pip install 'smash-export[search]'"
        ) from None
    from smash_export.export.foreign_program import joined_answers
    from smash_export.export.foreign_rewriting import Reference, computes_in

    data = path.read_bytes()
    try:
        network = torch.jit.load(io.BytesIO(data), map_location="cpu")
        if any(getattr(part, "training", False) for part in network.modules()):  # a frozen one does not say
            data = evaluating(network)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                parts = [network(part) for part in torch.from_numpy(images).split(64)]
            return joined_answers(parts, path)

        reference = Reference(run, tensors, str(path))
        exported = onnx_of_torchscript(network, preprocessing.input_shape)
        _check_neighbours(run, tensors, computes_in(exported), path)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{path} cannot be run or exported", received=cause_of(error), hint=advice_on(error)
        ) from None
    graph, batch, _ = _fitted(exported, path, preprocessing)
    facts = {"reference": f"TorchScript, torch {version_of('torch')}"}
    return _Foreign(graph, reference, batch, facts, data)


def _from_program(path: Path, tensors: np.ndarray, preprocessing: Preprocessing) -> _Foreign:
    """A program of ``torch.export.save`` and its ONNX form."""
    from smash_export.export.foreign_program import read_foreign_program
    from smash_export.export.foreign_rewriting import Reference, computes_in

    run, exported = read_foreign_program(path, OPSET)
    graph, batch, _ = _fitted(exported, path, preprocessing)
    _name_batch(graph, batch)
    try:
        reference = Reference(run, tensors, str(path))
        _check_neighbours(run, tensors, computes_in(graph), path)
    except (RuntimeError, TypeError, ValueError) as error:  # of PyTorch, for images of another size
        raise InvalidInputError(f"{path} cannot be run on these images", received=error) from None
    return _Foreign(graph, reference, batch, {"reference": f"torch.export, torch {version_of('torch')}"})


def _fitted(
    model: onnx.ModelProto, path: Path, preprocessing: Preprocessing
) -> tuple[onnx.ModelProto, int | None, Form]:
    """A copy of the graph for these images, its batch (None: any), and the form that it had before."""
    import onnx

    from smash_export.export.foreign_onnx import fix_image_size, image_and_answers
    from smash_export.export.foreign_rewriting import in_our_form

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    image = preprocessing.input_shape
    image_and_answers(copy, path)
    form = in_our_form(copy, image)
    source, shape, _ = image_and_answers(copy, path)
    fits = not shape or (
        len(shape) == len(image) + 1
        and all(theirs in (None, ours) for theirs, ours in zip(shape[1:], image, strict=True))
    )
    if not fits:
        raise InvalidInputError(
            f"{path} takes other images than the preprocessing gives",
            expected=f"[B, {', '.join(str(size or 'any') for size in shape[1:])}]",
            received=f"[B, {', '.join(map(str, image))}]",
            hint="Set --size and --channels to what the network was trained with.",
        )
    return fix_image_size(copy, source, image, path), (shape or [None])[0], form


def _reference(
    original: onnx.ModelProto,
    form: Form,
    declared: onnx.ModelProto,
    tensors: np.ndarray,
    batch: int | None,
    path: Path,
) -> tuple[Reference, int | None]:
    """What the file answers, and the batch it really takes.

    A file that declares sizes which no image has (0) is run as declared anew; one that says "any batch" but
    was traced with one image (a Reshape to [1, ...] inside) takes one at a time.
    """
    from smash_export.export.foreign_rewriting import Reference, runner

    wishes: list[tuple[onnx.ModelProto, int | None]] = [(original, batch), (declared, batch)]
    if batch is None:
        wishes += [(original, 1), (declared, 1)]
    first: Exception | None = None
    for model, size in wishes:
        try:
            run = runner(model, size)
            return Reference(form.adapted(run) if model is original else run, tensors, str(path)), size
        except (MissingRuntimeError, VerificationError):
            raise
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own classes have no public base
            first = first or error
    if isinstance(first, InvalidInputError):
        raise first
    raise InvalidInputError(f"{path} cannot be run on these images", received=first) from None


def _name_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Write the batch that was found into the shapes of input and output."""
    for value in (model.graph.input[0], model.graph.output[0]):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if batch is None:
            axis.dim_param = "batch"
        else:
            axis.dim_value = batch


def _as_classifier(foreign: _Foreign, path: Path, labels: tuple[str, ...], wish: Outputs | None) -> _Foreign:
    """What its answers are, with one label for each; a single output is one of two classes."""
    from smash_export.export.foreign_rewriting import as_two_classes, outputs_of, with_plain_names

    graph, reference = with_plain_names(foreign.graph), foreign.reference
    outputs, traced = wish or outputs_of(graph, reference), foreign.traced
    expected = max(2, reference.classes)
    if len(labels) != expected:
        raise InvalidInputError(
            f"{path} has another number of classes than there are labels",
            expected=f"{expected} labels",
            received=len(labels),
            hint="Labels of the wrong count name the wrong things: give exactly one per output."
            if reference.classes > 1
            else "One output is one of two classes: name the one it is low for, then the other.",
        )
    if reference.classes == 1:
        graph, reference, outputs = as_two_classes(graph, reference, outputs)
        traced = None  # it has one output still
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = reference.classes
    return replace(foreign, graph=graph, reference=reference, outputs=outputs, traced=traced)


def _check_neighbours(run: Run, tensors: np.ndarray, precision: str, path: Path) -> None:
    """Raise InvalidInputError if the answer for an image depends on the images beside it, or on chance: a
    network that was traced in training mode normalises by its batch and drops units, whatever mode it is in.
    """
    few = tensors[:CHECKED]
    single, together = np.concatenate([run(few[place : place + 1]) for place in range(len(few))]), run(few)
    limit, scale = GATES[precision].relative_error or _TOLERANCE, float(np.abs(single).max()) + 1e-6
    if single.shape != together.shape or not np.allclose(single, together, atol=limit * scale):
        raise InvalidInputError(
            f"{path} answers differently when images come together",
            expected="each image by itself",
            received=f"a difference of {float(np.abs(single - together).max()):.3g}"
            if single.shape == together.shape
            else f"answers {list(together.shape)}",
            hint="Export it in evaluation mode (network.eval()).",
        )


def _finished(graph: onnx.ModelProto, labels: tuple[str, ...], preprocessing: Preprocessing) -> bytes:
    """The bytes of ``model.onnx``: labels and preprocessing inside, words of others left out."""
    import onnx

    graph.doc_string = graph.graph.doc_string = ""
    for node in graph.graph.node:
        node.doc_string = ""
    metadata = {
        "labels": json.dumps(list(labels), ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing.to_json()),
    }
    onnx.helper.set_model_props(graph, metadata)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


def _warnings(foreign: _Foreign, bundle: Bundle, images: Images, doubted: float | None) -> list[str]:
    """What the user should know; ``doubted`` is an accuracy near chance."""
    from smash_export.export.foreign_rewriting import opset_of
    from smash_export.export.onnx_graphs import INT8_OPSET

    found = []
    if doubted is not None:
        found.append(
            f"accuracy {doubted:.1%} is no better than chance: labels in another order, or another "
            "preprocessing (mean, std, RGB against BGR, size, crop) than in training"
        )
    precision = read_onnx_facts(bundle.onnx).precision
    if precision != "fp32":
        found.append(f"the file holds {precision} already: compile it with --precision fp32, which keeps it")
    if opset_of(foreign.graph) < INT8_OPSET:
        found.append(
            f"it stays at opset {opset_of(foreign.graph)}, as it answers differently at newer ones: "
            "int8 files cannot be made from this bundle"
        )
    if images.calibration is None:
        found.append("no calibration images: int8 files cannot be made from this bundle")
    return found


def read_preprocessing(path: Path | None, overrides: Mapping[str, Any], model: Path) -> Preprocessing:
    """From a JSON file, else from what the model file says of itself, with single values put over it.

    Args:
        overrides: height, width, channels, mean, std, resize, short_side, order; those given. ``crop_pct``,
            there or in the file, is timm's way to give short_side: size / crop_pct.

    Raises:
        UsageError: values are missing that neither file has.
        InvalidInputError: values that no preprocessing can have.
    """
    block: JsonObject = {"exif": True}
    if path is not None:
        value = files.read_json(path, what="preprocessing")
        if not isinstance(value, dict):
            raise InvalidInputError(f"preprocessing {path}", expected="an object", received=value)
        block |= value
    else:
        from smash_export.bundle.inspection import stored_facts

        if text := stored_facts(model).get("preprocessing"):
            parsed = files.parse_json(text, what=f"preprocessing in {model}")
            block = {"exif": False, **parsed} if isinstance(parsed, dict) else block
    block |= overrides
    missing = [name for name in ("height", "width", "channels", "mean", "std") if name not in block]
    if missing:
        raise UsageError(
            "the preprocessing is not known",
            expected="--preprocess FILE, or --size, --channels, --mean and --std",
            received=f"no {', '.join(missing)}",
        )
    return Preprocessing.from_json(_with_short_side(block))


def _with_short_side(block: JsonObject) -> JsonObject:
    """``crop_pct`` replaced by the short side that timm computes from it."""
    if "crop_pct" not in block:
        return block
    share = block["crop_pct"]
    rest = {name: value for name, value in block.items() if name != "crop_pct"}
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0.1 <= share <= 1:
        raise InvalidInputError("preprocessing field 'crop_pct'", expected="0.1 to 1", received=share)
    if rest["height"] != rest["width"] or "short_side" in rest:
        raise InvalidInputError(
            "preprocessing field 'crop_pct'",
            expected="a square size, and no short_side",
            received=f"{rest['height']}x{rest['width']}, short_side {rest.get('short_side')}",
        )
    if not isinstance(height := rest["height"], int):
        raise InvalidInputError("preprocessing field 'height'", expected="a whole number", received=height)
    return {**rest, "short_side": math.floor(height / share)}
