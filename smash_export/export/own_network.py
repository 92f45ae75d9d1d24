"""A user's own ``torch.nn.Module``, trained by a recipe, becomes a bundle.

    module:function ──> network ──> trained, calibrated, traced ──> adopted: a bundle

The function makes the network; from there the recipe and the loop are those of every training here, and the
traced file goes through all that ``smash-export adopt`` checks. What the network is made of is its maker's
business: no first convolution is whitened unless somebody asks for it, since its weights may be trained ones.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from smash_base.errors import InvalidInputError, UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_base.preprocess import Outputs, probabilities_of
from smash_base.sampling import spread
from smash_export.export.adopt import Adopted, Images, adopt
from smash_export.export.calibration import FALSE_ALARM, fit_calibration
from smash_export.export.freeze import (
    SAMPLE_IMAGES,
    check_free,
    logits_of,
    work_beside,
)
from smash_export.export.torch_program import save_whole
from smash_export.export.torchscript import cause_of, onnx_of_torchscript, traced
from smash_export.measure.evaluate import score
from smash_export.measure.labelled import calibration_images
from smash_export.measure.verify import compare_logits
from smash_search.data import Dataset
from smash_search.data.function import fault_of, imported_function
from smash_search.data.several import moved_by, thresholds_of
from smash_search.train.compute import arrange_weights, memory_format, pick_device, seed_of
from smash_search.train.loop import TrainingProgress
from smash_search.train.network import Epoch, FitResult, fit, resized
from smash_search.train.recipes import Recipe

LOOKED_AT = 16  # random images whose answers tell logits from probabilities
CHECKPOINT = "own.pt"  # of an interrupted training, in the folder of work
TRACED = 64  # test images that the traced network has to answer as the network does
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def names_function(text: str) -> bool:
    """Whether a network is named as ``package.module:function``."""
    return _NAME.fullmatch(text) is not None


def own_network(text: str, dataset: Dataset, seed: int) -> nn.Module:
    """Call ``package.module:function`` (the current folder is searched too); check what it returns.

    Args:
        text: the function. It gets those of ``channels``, ``classes`` and ``input_shape`` (C, *S) that it has
            parameters for.
        dataset: what the network is for.
        seed: Random seed of its initial weights.

    Raises:
        UsageError: no such module or function.
        InvalidInputError: it returns no module from images [B, C, *S] to logits [B, K].
    """
    module, _, name = text.partition(":")
    missing = UsageError(
        f"there is no module {module!r}",
        expected="package.module:function",
        received=text,
        hint=f"Name the module without .py: {module[:-3]}:{name}" if module.endswith(".py") else None,
    )
    function = imported_function(module, name, text, missing)
    shape, classes = dataset.preprocessing.input_shape, len(dataset.classes)
    offered = {"channels": shape[0], "classes": classes, "input_shape": shape}
    parameters = inspect.signature(function).parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 0x1217))
        try:
            network = function(**{name: value for name, value in offered.items() if name in parameters})
        except Exception as error:  # the user's code may raise anything
            raise InvalidInputError(
                f"{text} makes no network",
                expected=f"a function of {', '.join(offered)}, or of some of them",
                received=fault_of(error),
            ) from error
        if not isinstance(network, nn.Module):
            raise InvalidInputError(f"result of {text}", expected="a torch.nn.Module", received=type(network))
        _make_lazy_weights(network, torch.zeros(2, *shape), text)
        network = copy.deepcopy(network)  # one that is held would begin the next training as this one ends
    if not any(value.requires_grad for value in network.parameters()):
        raise InvalidInputError(f"the network of {text}", expected="parameters to train", received="none")
    for training in (True, False):
        received = _answered(network, torch.zeros(2, *shape), training=training)
        if received != [2, classes]:
            raise InvalidInputError(
                f"the network of {text} on images [2, {', '.join(map(str, shape))}]"
                + (" while it is trained" if training else ""),
                expected=f"logits [2, {classes}]",
                received=received,
            )
    _check_logits(network, shape, text)
    return network


def _check_logits(network: nn.Module, shape: tuple[int, ...], text: str) -> None:
    """Raise InvalidInputError for answers that are probabilities: of these, training would take the softmax
    (or sigmoid) again, and learn little.
    """
    random = torch.Generator().manual_seed(0)
    answers = _tried(network, torch.randn(LOOKED_AT, *shape, generator=random), training=False)
    if not isinstance(answers, Tensor) or not ((answers > 0) & (answers < 1)).all():
        return
    sums_to_one = bool(torch.allclose(answers.sum(1), torch.ones(len(answers)), atol=1e-3))
    raise InvalidInputError(
        f"the network of {text} answers with probabilities",
        expected="logits, of which training and the bundle make probabilities",
        received="values between 0 and 1" + (" that sum to 1" if sums_to_one else ""),
        hint=f"Leave its last {'Softmax' if sums_to_one else 'Sigmoid'} out.",
    )


def check_recipe(network: nn.Module, dataset: Dataset, recipe: Recipe, text: str) -> None:
    """Try the smallest batch and the smallest images that a recipe shows the network.

    Raises:
        UsageError: it cannot be trained on these, as one with a linear layer behind all pixels cannot on
            smaller images, or one with BatchNorm behind the pooling on one.
    """
    images = torch.zeros(min(2, recipe.batch), *dataset.preprocessing.input_shape)
    images = resized(images, recipe.first_size, 0.0)
    expected = [len(images), len(dataset.classes)]
    received = _answered(network, images, training=True)
    if received != expected:
        raise UsageError(
            f"the network of {text} cannot be trained by this recipe, on images {list(images.shape)}",
            expected=f"logits {expected}",
            received=received,
            hint="Choose --batch 2 or more, and no --set first_size.",
        )


def check_export(network: nn.Module, dataset: Dataset, text: str) -> None:
    """Try to trace the network and to write it as ONNX, before hours of training.

    Raises:
        InvalidInputError: one of them cannot be, as of a pooling to a size that does not divide the map's.
    """
    image = dataset.preprocessing.input_shape
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of values that decide: the final trace is judged by its answers
            trace = traced(network.eval(), torch.zeros(2, *image))
        onnx_of_torchscript(trace, image)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"the network of {text} cannot be exported",
            expected="operations that PyTorch traces and writes as ONNX",
            received=cause_of(error),
        ) from None


def _make_lazy_weights(network: nn.Module, images: Tensor, text: str) -> None:
    """Run a network of lazy modules (nn.LazyLinear) once: they have no weights before they see an image.

    Raises:
        InvalidInputError: it does not run, or leaves modules out.
    """

    def lazy() -> list[str]:
        return [name for name, value in network.state_dict(keep_vars=True).items() if is_lazy(value)]

    if not lazy():
        return
    received = None
    try:
        with torch.no_grad():
            network.eval()(images)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        received = fault_of(error)
    if left := lazy():
        raise InvalidInputError(
            f"the network of {text} on images {list(images.shape)}",
            expected="weights for each of its lazy modules",
            received=received or f"none for {', '.join(left)}",
        )


def _answered(network: nn.Module, images: Tensor, *, training: bool) -> object:
    """Shape of the answers, or what came instead; see :func:`_tried`."""
    answers = _tried(network, images, training=training)
    return list(answers.shape) if isinstance(answers, Tensor) else answers


def _tried(network: nn.Module, images: Tensor, *, training: bool) -> object:
    """The answers, or in words what came instead; the network keeps its values, and is in eval mode then.

    Images and weights lie in memory as in training: with channels last, ``view`` cannot flatten a map.
    """
    state = {name: value.clone() for name, value in network.state_dict().items()}
    layout = memory_format(images.ndim - 2, images.device)
    try:
        images = images.contiguous(memory_format=layout)
        arrange_weights(network, layout)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answers = network.train(training)(images)
        return answers if isinstance(answers, Tensor) else type(answers).__name__
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        return fault_of(error)
    finally:
        network.load_state_dict(state)  # running means of norms have seen black images
        network.eval()


class Several(nn.Module):
    """Probability of each class by itself, [B, K], moved so that the class counts as there from one half on.

    Args:
        network: images [B, C, *S] -> logits [B, K].
        thresholds: probabilities of the network from which on each class is there, [K].
    """

    moved: Tensor

    def __init__(self, network: nn.Module, thresholds: np.ndarray) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("moved", torch.from_numpy(moved_by(thresholds)))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, *S] -> probabilities [B, K]."""
        logits: Tensor = self.network(images)
        return torch.sigmoid(logits - self.moved)


class Calibrated(nn.Module):
    """A network whose logits [B, K] are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, *S] -> logits [B, K]."""
        logits: Tensor = self.network(images)
        return logits / self.temperature


def train_own(
    network: nn.Module,
    dataset: Dataset,
    destination: Path | str,
    *,
    name: str,
    recipe: Recipe,
    device: str = "auto",
    force: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[TrainingProgress], None] | None = None,
    teacher: np.ndarray | None = None,
    facts: JsonObject | None = None,
    false_alarm: float = FALSE_ALARM,
) -> Adopted:
    """Train a network of one's own and make a bundle of it. An interrupted training goes on.

    Args:
        network: from images [B, C, *S] to logits [B, K]; trained in place.
        dataset: images of its classes.
        destination: folder of the bundle.
        name: Name of the network, for the manifest.
        recipe, device, force, on_epoch, on_step, teacher, facts, false_alarm: as for
            :func:`smash_export.export.freeze.freeze`.

    Raises:
        UsageError: the destination exists.
        InvalidInputError, VerificationError: see :func:`smash_export.export.adopt.adopt`.
    """
    destination = Path(destination)
    check_free(destination, force)
    with work_beside(destination) as work:
        fitted = fit(
            network,
            dataset,
            recipe,
            device=pick_device(device),
            checkpoint=work / CHECKPOINT,
            checkpoint_seconds=2.0,
            on_epoch=on_epoch,
            on_step=on_step,
            teacher=teacher,
            evaluate=not recipe.include_validation,
        )
        arrange_weights(network.cpu().eval(), torch.contiguous_format)
        network, found = _finished(network, dataset, recipe, false_alarm)
        file = work / "network.pt"
        _trace(network, dataset, name, file)
        return adopt(
            file,
            destination,
            labels=dataset.classes,
            preprocessing=dataset.preprocessing,
            images=_images(network, dataset, {"network": name, **(facts or {}), **found}, fitted),
            outputs="sigmoid" if dataset.several else "logits",
            force=force,
            trained_here=True,
        )


def _finished(
    network: nn.Module, dataset: Dataset, recipe: Recipe, false_alarm: float
) -> tuple[nn.Module, JsonObject]:
    """The network with what validation images say of its answers, and that in words for the manifest."""
    if dataset.several:
        thresholds = np.full(len(dataset.classes), 0.5)
        targets = dataset.validation.targets
        if targets is not None and not recipe.include_validation:
            plain = Several(network, thresholds).eval()
            thresholds = thresholds_of(logits_of(plain, dataset, dataset.validation.images), targets)
        said = dict(zip(dataset.classes, thresholds.tolist(), strict=True))
        return Several(network, thresholds).eval(), {"thresholds": said}
    if recipe.include_validation:
        return network, {"calibration": None}
    logits = logits_of(network, dataset, dataset.validation.images)
    calibration = fit_calibration(logits, dataset.validation.labels, false_alarm)
    return Calibrated(network, calibration.temperature).eval(), {"calibration": asdict(calibration)}


def _images(network: nn.Module, dataset: Dataset, facts: JsonObject, fitted: FitResult) -> Images:
    """Real images for the bundle, and where its network comes from."""
    chosen = spread(len(dataset.test), SAMPLE_IMAGES)
    outputs: Outputs = "sigmoid" if dataset.several else "logits"
    probabilities = probabilities_of(logits_of(network, dataset, dataset.test.images), outputs)
    labels, targets = dataset.test.labels, dataset.test.targets
    test = score(probabilities, labels, dataset.classes, targets=targets)
    facts = {
        **facts,
        "weights": "trained",
        "recipe": fitted.recipe.to_json(),
        "validation": None if fitted.recipe.include_validation else fitted.accuracy,
        "data": {"spec": dataset.spec, "seed": dataset.seed, "fingerprint": dataset.fingerprint},
        "accuracy": {"split": "test", **test.facts()},
    }
    shown = np.asarray(dataset.test.images[chosen])
    return Images(
        shown,
        labels[chosen],
        calibration_images(dataset),
        facts,
        None if targets is None else targets[chosen],
    )


def _trace(network: nn.Module, dataset: Dataset, name: str, path: Path) -> None:
    """Write the network as TorchScript, which answers real images as it does, alone and among others.

    A trace holds what was done for its example: no branch that the values of an image decide, no number that
    left the tensors on the way.

    Raises:
        InvalidInputError: it cannot be traced.
        VerificationError: its trace answers otherwise.
    """
    images = dataset.test.images[spread(len(dataset.test), TRACED)]
    example = torch.from_numpy(dataset.preprocessing.normalise(np.asarray(images[:2])))
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("ignore")  # that tracing is old is no news to the user
        # PyTorch's annotations leave this class out of what torch.jit exports.
        warnings.simplefilter("always", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            trace = traced(network, example)
        except RuntimeError as error:
            raise InvalidInputError("the network cannot be traced", received=error) from None
    expected = logits_of(network, dataset, images)
    alone = np.concatenate([logits_of(trace, dataset, images[row : row + 1]) for row in range(len(images))])
    parity = compare_logits(expected, alone, expected.argmax(1))
    if problems := parity.problems("fp32"):
        warned = str(told[0].message).partition(". ")[0] if told else "none"
        raise VerificationError(
            f"the trace of {name} does not answer as the network does: {'; '.join(problems)}",
            expected="answers that depend on one image each, by the same operations for every image",
            received=f"PyTorch's warning while it was traced: {warned}",
            hint="Write what depends on values as tensor operations (torch.where), without .item(), and "
            "nothing over the whole batch.",
        )
    save_whole(torch.jit.save, trace, path)
