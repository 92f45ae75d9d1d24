"""A bundle from a classifier that somebody else trained, after the same checks as one of ours.

The file is ONNX or TorchScript. Labels, preprocessing and real images come with it, because without them
nothing that a bundle promises can be checked: the reference logits are those of the adopted file itself,
and an accuracy near chance says that labels or preprocessing are not those it was trained with.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle, Samples, write_bundle
from smash_export.bundle.samples import check_images, read_arrays
from smash_export.measure.machine import version_of
from smash_targets.base import ModelSignature

if TYPE_CHECKING:
    import onnx

USUAL_BATCH = (1, 1, 32)
MAX_LABELS_BYTES = 16 * 2**20
OPSET = 20
CHECKED = 8  # images run one by one and together, to see that the batch axis is one
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Images:
    """What an adopted classifier is checked and calibrated on.

    Attributes:
        test: uint8 [N, *sample_shape] with ``labels`` int64 [N].
        calibration: uint8 training images, or None: no int8 then.
        provenance: where they come from, for the manifest.
    """

    test: np.ndarray
    labels: np.ndarray
    calibration: np.ndarray | None
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Adopted:
    """The new bundle, its accuracy on the test images, and what the user should know."""

    bundle: Bundle
    accuracy: float
    warnings: tuple[str, ...]


def adopt(
    model: Path | str,
    destination: Path | str,
    *,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    images: Images,
    force: bool = False,
) -> Adopted:
    """Make a bundle of a foreign classifier.

    Args:
        model: ``.onnx``, or TorchScript (``.pt``, ``.ts``, ``.torchscript``), which is code: load only
            files whose maker you trust.
        destination: the bundle's folder.
        labels: class names in the order of its outputs.
        preprocessing: how its training turned images into tensors.
        images: see :class:`Images`.

    Raises:
        InvalidInputError: a file that is unsafe or no image classifier; labels, preprocessing or images
            that do not fit it.
        VerificationError: the ONNX of a TorchScript file does not do what that file does.
        MissingRuntimeError: onnxruntime (or torch for TorchScript) is not installed.
        UsageError: the destination exists.
    """
    model = Path(model)
    check_images("test images", images.test, preprocessing)
    tensors = preprocessing.normalise(images.test)
    traced: bytes | None = None
    if _is_torchscript(model):
        traced = model.read_bytes()
        graph, logits = _from_torchscript(model, traced, tensors, preprocessing)
        reference = f"TorchScript, torch {version_of('torch')}"
    else:
        from smash_export.export.foreign_onnx import read_foreign_onnx

        graph, logits = read_foreign_onnx(model), None
        reference = f"ONNX Runtime {version_of('onnxruntime')}"
    graph, signature = _fitted(graph, model, labels, preprocessing)
    received = _run(graph, tensors, signature, model)
    if logits is None:
        logits = received
    elif not np.allclose(logits, received, atol=_TOLERANCE * max(1.0, float(np.abs(logits).max()))):
        raise VerificationError(
            f"the ONNX form of {model} does not do what the file does",
            expected=f"logits within {_TOLERANCE:g}",
            received=f"a difference of {float(np.abs(logits - received).max()):.3g}",
        )
    accuracy = float((logits.argmax(axis=1) == images.labels).mean())
    bundle = write_bundle(
        destination,
        onnx=_finished(graph, labels, preprocessing),
        torchscript=traced,
        architecture=None,
        weights=None,
        labels=labels,
        preprocessing=preprocessing,
        signature=signature,
        samples=Samples(images.test, images.labels.astype(np.int64), logits.astype(np.float32)),
        calibration=images.calibration,
        provenance={
            "adopted": {"file": model.name, "sha256": files.sha256(model), "reference": reference},
            "accuracy": accuracy,
            **images.provenance,
        },
        force=force,
    )
    return Adopted(bundle, accuracy, tuple(_warnings(logits, images, accuracy)))


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names: a JSON list of texts, or one per line.

    Raises:
        InvalidInputError: missing, too large, not UTF-8, empty, or with a repeated or empty name.
    """
    if path.suffix == ".json":
        names = files.read_json(path, what="labels")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInputError(f"labels {path}", expected="a JSON list of texts", received=names)
    else:
        try:
            if path.stat().st_size > MAX_LABELS_BYTES:
                raise InvalidInputError(f"{path} is too large for labels", received=path.stat().st_size)
            names = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise InvalidInputError(f"labels {path} do not exist", expected="one name per line") from None
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path} is not a text file", received=error) from None
        while names and not names[-1].strip():
            names.pop()
        names = [name.strip() for name in names]
    if not names or not all(names) or len(set(names)) != len(names):
        twice = next((name for name in names if names.count(name) > 1), "") if len(names) < 100_000 else ""
        raise InvalidInputError(
            f"labels {path}", expected="one different name per class", received=twice or "an empty name"
        )
    return tuple(names)


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
    calibration_count: int = 1024,
    seed: int = 0,
) -> Images:
    """Test and training images of a data set by name (:func:`smash_search.data.load_dataset`).

    Images of another size pass through the preprocessing one by one, as single files would.

    Raises:
        InvalidInputError: the data set has other classes, or the same in another order.
    """
    from smash_search.data import load_dataset

    dataset = load_dataset(spec, seed=seed)
    if tuple(dataset.classes) != labels:
        raise InvalidInputError(
            f"{spec} has other classes than the labels given",
            expected=", ".join(labels[:12]),
            received=", ".join(dataset.classes[:12]),
            hint="The order counts: it is the order of the network's outputs.",
        )

    def pick(split: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(split.labels))[:count])
        images = [preprocessing.decode(np.asarray(split.images[int(index)])) for index in chosen]
        return np.stack(images), np.asarray(split.labels)[chosen].astype(np.int64)

    test, truth = pick(dataset.test, test_count)
    calibration, _ = pick(dataset.train, calibration_count)
    facts = {"data": {"spec": spec, "seed": seed, "fingerprint": dataset.fingerprint}}
    return Images(test, truth, calibration, facts)


def _check_labels(labels: np.ndarray, count: int, classes: int) -> None:
    if labels.shape != (count,) or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise InvalidInputError(
            "labels of the test images",
            expected=f"{count} numbers from 0 to {classes - 1}",
            received=f"{labels.shape}, {labels.min(initial=0)} to {labels.max(initial=0)}",
        )


def _is_torchscript(model: Path) -> bool:
    from smash_export.bundle.inspection import inspect

    if model.suffix == ".onnx":
        return False
    kind = inspect(model)["kind"]
    if kind != "TorchScript":
        raise InvalidInputError(
            f"{model} cannot be adopted",
            expected="an ONNX file or TorchScript",
            received=kind,
            hint="Export it: torch.onnx.export(network, images, 'model.onnx'), external_data=False.",
        )
    return True


def _from_torchscript(
    path: Path, data: bytes, tensors: np.ndarray, preprocessing: Preprocessing
) -> tuple[onnx.ModelProto, np.ndarray]:
    """Its ONNX form and its own logits."""
    try:
        import torch
    except ImportError:
        raise MissingRuntimeError(
            "TorchScript needs torch", hint="Install it: pip install 'smash-export[search]'"
        ) from None
    import onnx

    try:
        network = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
        with torch.inference_mode():
            parts = [network(part) for part in torch.from_numpy(tensors).split(64)]
        if not all(isinstance(part, torch.Tensor) and part.ndim == 2 for part in parts):
            raise InvalidInputError(f"{path} is not an image classifier", expected="one output [B, K]")
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this exporter is old is no news to the user
            target = Path(folder) / "model.onnx"
            torch.onnx.export(  # the exporter that takes a traced module; the other one needs Python code
                network,
                (torch.zeros(2, *preprocessing.input_shape),),
                target,
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            )
            exported = onnx.load_model_from_string(target.read_bytes())
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{path} cannot be run or exported", received=error) from None
    return exported, torch.cat(parts).float().numpy()


def _fitted(
    graph: onnx.ModelProto, path: Path, labels: tuple[str, ...], preprocessing: Preprocessing
) -> tuple[onnx.ModelProto, ModelSignature]:
    """The graph for this image size, and its signature."""
    from smash_export.export.foreign_onnx import fix_image_size, image_and_logits

    source, shape, output, classes = image_and_logits(graph, path)
    image = preprocessing.input_shape
    fits = len(shape) == len(image) + 1 and all(
        theirs in (None, ours) for theirs, ours in zip(shape[1:], image, strict=False)
    )
    if not fits:
        raise InvalidInputError(
            f"{path} takes other images than the preprocessing gives",
            expected=f"[B, {', '.join(str(size or 'any') for size in shape[1:])}]",
            received=f"[B, {', '.join(map(str, image))}]",
            hint="Set --size and --channels to what the network was trained with.",
        )
    if classes != len(labels):
        raise InvalidInputError(
            f"{path} has another number of classes than there are labels",
            expected=f"{classes} labels",
            received=len(labels),
            hint="Labels of the wrong count name the wrong things: give exactly one per output.",
        )
    batch = USUAL_BATCH if shape[0] is None else (shape[0], shape[0], shape[0])
    signature = ModelSignature(source.name, output.name, image, classes, batch)
    return fix_image_size(graph, source, image, path), signature


def _run(graph: onnx.ModelProto, tensors: np.ndarray, signature: ModelSignature, path: Path) -> np.ndarray:
    """Logits of all images, after checking that images do not depend on their neighbours."""
    from smash_export.export.onnx_graphs import check_finite, logits_of, session_of

    try:
        logits = logits_of(graph, tensors)
        few = tensors[:CHECKED]
        if signature.batch[0] == 1 and len(few) > 1:
            session = session_of(graph)
            name = signature.input_name
            single = np.concatenate([session.run(None, {name: few[i : i + 1]})[0] for i in range(len(few))])
            together = session.run(None, {name: few})[0]
        else:
            single = together = logits[:CHECKED]
    except InvalidInputError:
        raise
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own classes have no public base
        raise InvalidInputError(f"{path} cannot be run on these images", received=error) from None
    if logits.shape != (len(tensors), signature.classes) or single.shape != together.shape:
        raise InvalidInputError(
            f"{path} does not answer image by image",
            expected=f"logits {(len(tensors), signature.classes)}",
            received=logits.shape,
        )
    check_finite(logits, str(path))
    scale = max(1.0, float(np.abs(single).max()))
    if not np.allclose(single, together, atol=_TOLERANCE * scale):
        raise InvalidInputError(
            f"{path} answers differently when images come together",
            expected="each image by itself",
            received=f"a difference of {float(np.abs(single - together).max()):.3g}",
            hint="Export it in evaluation mode (network.eval()).",
        )
    return logits


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


def _warnings(logits: np.ndarray, images: Images, accuracy: float) -> list[str]:
    found = []
    classes = logits.shape[1]
    if classes > 1 and accuracy < 1.5 / classes:
        found.append(
            f"accuracy {accuracy:.1%} is no better than chance: labels in another order, or another "
            "preprocessing (mean, std, RGB against BGR, size) than in training"
        )
    sums = logits.sum(axis=1)
    if classes > 1 and logits.min() >= 0 and np.allclose(sums, 1, atol=1e-3):
        found.append("its outputs are probabilities already; the softmax of predictions will flatten them")
    if images.calibration is None:
        found.append("no calibration images: int8 files cannot be made from this bundle")
    return found


def read_preprocessing(path: Path | None, overrides: Mapping[str, Any], model: Path) -> Preprocessing:
    """From a JSON file, else from the metadata of the ONNX file, with single values put over it.

    Args:
        overrides: height, width, channels, mean, std, resize; those given.

    Raises:
        UsageError: values are missing that neither file has.
        InvalidInputError: values that no preprocessing can have.
    """
    block: dict[str, Any] = {}
    if path is not None:
        value = files.read_json(path, what="preprocessing")
        if not isinstance(value, dict):
            raise InvalidInputError(f"preprocessing {path}", expected="an object", received=value)
        block = value
    elif model.suffix == ".onnx":
        from smash_export.bundle.inspection import inspect

        text = inspect(model).get("metadata", {}).get("preprocessing")
        if text:
            parsed = files.parse_json(text, what=f"preprocessing in {model}")
            block = parsed if isinstance(parsed, dict) else {}
    block |= overrides
    missing = [name for name in ("height", "width", "channels", "mean", "std") if name not in block]
    if missing:
        raise UsageError(
            "the preprocessing is not known",
            expected="--preprocess FILE, or --size, --channels, --mean and --std",
            received=f"no {', '.join(missing)}",
        )
    return Preprocessing.from_json(block)
