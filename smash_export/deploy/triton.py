"""A Triton Inference Server model repository from a bundle.

    OUT/NAME/config.pbtxt  labels.txt  preprocessing.json  1/model.onnx | model.plan | model.pt

Follows Triton's model_repository.md and model_config.proto. The configuration is written as text here, so
that no protobuf is needed; the tests parse it with Triton's own messages. Several variants of one bundle
become several models, called NAME_onnx, NAME_plan and NAME_torchscript. The parameter ``doubt_below``
is for clients: an image whose largest probability (of logits after softmax) is below it is perhaps of none of
the classes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smash_base import files
from smash_base.errors import UsageError
from smash_base.preprocess import Outputs
from smash_export.bundle.bundle import Bundle, opened
from smash_export.bundle.runnable import runnable_files
from smash_targets.base import TritonBackend
from smash_targets.listing import described_targets

CONFIG, LABELS, PREPROCESSING = "config.pbtxt", "labels.txt", "preprocessing.json"  # of each model
SHARED = ("name", "backend", "input", "output")  # begin the lines of a configuration that versions share
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)


def known_variants() -> dict[str, tuple[str, TritonBackend]]:
    """Variant -> target and Triton's backend, of every target whose files Triton takes."""
    return {
        target.triton.variant: (target.name, target.triton)
        for target in described_targets()
        if target.triton is not None
    }


@dataclass(frozen=True)
class TritonSettings:
    """What goes into ``config.pbtxt``.

    Attributes:
        precision: which file of the bundle.
        version: Version of the model; Triton serves the highest by default.
        instances: copies of the model that run side by side.
        gpu: run on GPUs; always for a plan.
        max_batch: images at once; None takes the largest that the file takes.
        queue_delay_us: microseconds to wait for a fuller batch.
        queue_size: requests that may wait; more are refused.
        threads: Number of threads of one inference on the CPU; None leaves it to the backend.
    """

    precision: str = "fp32"
    version: int = 1
    instances: int = 1
    gpu: bool = False
    max_batch: int | None = None
    queue_delay_us: int = 0
    queue_size: int = 256
    threads: int | None = None


def write_repository(
    bundle: Bundle | Path | str,
    destination: Path | str,
    *,
    variants: Sequence[str] = ("onnx",),
    name: str | None = None,
    settings: TritonSettings | None = None,
    force: bool = False,
) -> list[Path]:
    """Write one model folder per variant into a repository, which may hold other models already.

    A model of that name gets a further version where it has none of that number and takes and gives the same;
    ``config.pbtxt``, which all versions share, is the one of the new version then.

    Args:
        bundle: an opened bundle or its path.
        destination: the repository.
        variants: names of :func:`known_variants`.
        name: Name of the model; that of the bundle's folder if None.
        settings: see there.
        force: replace models that are there, with all of their versions.

    Returns:
        The model folders.

    Raises:
        UsageError: an unknown variant, a bundle that does not hold its file, a name that Triton does not
            take, or a model that is there already.
    """
    bundle, destination, settings = opened(bundle), Path(destination), settings or TritonSettings()
    plan = plan_repository(bundle, destination, variants, name, settings, force=force)
    for model in plan:
        number = str(settings.version)
        if model.is_there:
            with files.new_folder(model.folder / number) as temporary:
                shutil.copyfile(model.source, temporary / model.file)
            files.write_text(model.folder / CONFIG, model.documents[CONFIG])
            continue
        with files.new_folder(model.folder, replace=force, mark=CONFIG) as temporary:
            (temporary / number).mkdir()
            shutil.copyfile(model.source, temporary / number / model.file)
            for document, text in model.documents.items():
                files.write_text(temporary / document, text)
    return [model.folder for model in plan]


@dataclass(frozen=True)
class PlannedModel:
    """One model of a repository that is to be written.

    Attributes:
        folder: Folder of the model.
        source, file: what is copied into its version, and the name that it has there.
        documents: what stands beside the versions, by file name.
        is_there: the model is there and gets a further version.
    """

    folder: Path
    source: Path
    file: str
    documents: Mapping[str, str]
    is_there: bool


def plan_repository(
    bundle: Bundle,
    destination: Path,
    variants: Sequence[str],
    name: str | None,
    settings: TritonSettings,
    *,
    force: bool = False,
) -> list[PlannedModel]:
    """What :func:`write_repository` would write; writes nothing.

    Raises:
        UsageError: as :func:`write_repository`.
    """
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", bundle.path.resolve().name)
    if not _NAME.fullmatch(name):
        raise UsageError("name of the model", expected="letters, digits and . _ -", received=name)
    plan = []
    for variant in dict.fromkeys(variants):
        if variant not in known_variants():
            raise UsageError("variant", expected=" or ".join(known_variants()), received=variant)
        folder = destination / (name if len(set(variants)) == 1 else f"{name}_{variant}")
        source = _source(bundle, variant, settings.precision)
        documents = _documents(bundle, variant, folder.name, settings)
        is_there = not force and _takes_version(folder, settings.version, documents)
        if not is_there:
            files.refuse_existing(folder, replace=force, mark=CONFIG)
        plan.append(PlannedModel(folder, source, known_variants()[variant][1].file, documents, is_there))
    return plan


def _documents(bundle: Bundle, variant: str, name: str, settings: TritonSettings) -> dict[str, str]:
    """What stands beside the versions of a model, by file name."""
    return {
        CONFIG: config(bundle, variant, name, settings),
        LABELS: "".join(f"{label}\n" for label in bundle.labels),
        PREPROCESSING: files.json_text(bundle.preprocessing.to_json()),
    }


def _takes_version(folder: Path, version: int, documents: Mapping[str, str]) -> bool:
    """Whether a model is there to which a version of that number may be added.

    Raises:
        UsageError: the versions that are there take or give something else.
    """
    if not (folder / CONFIG).exists() or (folder / str(version)).exists():
        return False
    there = {name: files.read_text(folder / name) for name in documents if (folder / name).exists()}
    if _shared(there) == _shared(documents):
        return True
    raise UsageError(
        f"{folder} holds a model that version {version} does not fit",
        expected="the same classes, preprocessing, input and outputs in all versions",
        hint="Choose another --name, or pass --force to replace it with all of its versions.",
    )


def _shared(documents: Mapping[str, str]) -> dict[str, list[str]]:
    """The lines in which all versions of a model agree; how it is run may change."""
    lines = {name: text.splitlines() for name, text in documents.items()}
    return lines | {CONFIG: [line for line in lines[CONFIG] if line.startswith(SHARED)]}


def config(bundle: Bundle, variant: str, name: str, settings: TritonSettings) -> str:
    """The text of ``config.pbtxt``."""
    (_, kind), signature = known_variants()[variant], bundle.signature
    smallest, _, largest = signature.batch
    gpu = settings.gpu or kind.gpu_only
    # Triton may send any batch from 1 up. A file that takes one size only has it as a fixed dimension.
    batched = smallest == 1 and largest > 1
    largest = min(largest, settings.max_batch or largest) if batched else largest
    fixed = [] if batched else [largest]
    tensors = _tensors(bundle, kind, settings.precision)
    dims = [*fixed, *tensors.shape]
    lines = [
        f"name: {_text(name)}",
        f"backend: {_text(kind.backend)}",
        f"max_batch_size: {largest if batched else 0}",
        f"input [{{ name: {_text(tensors.input)} data_type: {tensors.type} dims: {dims} }}]",
        *tensors.outputs(fixed),
        f"instance_group [{{ count: {settings.instances} kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }}]",
    ]
    if batched:
        lines.append(
            f"dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_us} "
            f"default_queue_policy {{ max_queue_size: {settings.queue_size} }} }}"
        )
    if settings.threads is not None and variant == "onnx":
        lines.append(_parameter("intra_op_thread_count", str(settings.threads)))
    lines.append(_parameter("outputs", tensors.meaning))
    if bundle.doubt_below is not None:
        lines.append(_parameter("doubt_below", json.dumps(bundle.doubt_below)))
    zeros = f"{{ data_type: {tensors.type} dims: {dims} zero_data: true }}"
    for batch in sorted({1, largest}) if batched else [1]:  # a model without a batch axis has 1 here
        lines.append(
            f'model_warmup [{{ name: "zeros, batch {batch}" batch_size: {batch} '
            f"inputs {{ key: {_text(tensors.input)} value: {zeros} }} }}]"
        )
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Tensors:
    """What goes in and what comes out, as Triton names it; shapes are without the batch."""

    input: str
    type: str
    shape: tuple[int, ...]
    answers: tuple[tuple[str, str, int], ...]  # name, type, width
    meaning: Outputs

    def outputs(self, fixed: list[int]) -> Iterator[str]:
        """The lines of the configuration; labels belong to the output that has one value per class."""
        for name, kind, width in self.answers:
            labels = ' label_filename: "labels.txt"' if len(self.answers) == 1 else ""
            yield f"output [{{ name: {_text(name)} data_type: {kind} dims: {[*fixed, width]}{labels} }}]"


def _tensors(bundle: Bundle, kind: TritonBackend, precision: str) -> _Tensors:
    signature = bundle.signature
    if kind.variant != "baked":
        answer = (kind.output or signature.output_name, "TYPE_FP32", signature.classes)
        name = kind.input or signature.input_name
        return _Tensors(name, "TYPE_FP32", signature.input_shape, (answer,), signature.outputs)
    from smash_export.deploy.bake import output_tensors
    from smash_export.deploy.baked_runtimes import INPUT

    (file,) = runnable_files(bundle, "baked", precision)
    top_k = int(file.notes["top_k"]) if file.notes["output"] == "top-k" else None
    types = {1: "TYPE_FP32", 7: "TYPE_INT64"}
    answers = tuple((name, types[number], width) for name, number, width in output_tensors(signature, top_k))
    meaning: Outputs = "sigmoid" if signature.outputs == "sigmoid" else "probabilities"
    return _Tensors(INPUT, "TYPE_UINT8", bundle.preprocessing.sample_shape, answers, meaning)


def _source(bundle: Bundle, variant: str, precision: str) -> Path:
    return runnable_files(bundle, known_variants()[variant][0], precision)[0].path


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_text(key)} value: {{ string_value: {_text(value)} }} }}"


def _text(value: str) -> str:
    """A string literal of protobuf's text format, which JSON's ASCII form is for what names may hold."""
    return json.dumps(value)
