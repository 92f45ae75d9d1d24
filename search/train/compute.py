"""What every training loop of the search shares: device, data on the device, batch order, checkpoints.

A batch, its augmentation and its architectures are pure functions of (seed, epoch or step). No generator
is therefore carried from step to step, and a resumed run needs only weights and counters to go on exactly
as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smash_base import files
from smash_base.errors import InvalidInputError, MissingRuntimeError, SmashError, UsageError
from smash_base.preprocess import Preprocessing
from smash_search.model.interpreter import has_wrong_gradients

if TYPE_CHECKING:
    from smash_search.data import Split
    from smash_search.data.augment import Augmentation

Choice = TypeVar("Choice")
Made = TypeVar("Made")
Reduction = Literal["mean", "sum", "none"]
"""Of the losses of images."""

RESIDENT_SHARE = 0.4  # of the free memory of a GPU that training data may take
CHECKPOINT_SCHEMA = 1
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class DivergedError(SmashError):
    """Training gave NaN or infinity in too many steps in a row; the last good checkpoint is kept.

    The hint names the setting that ends it: exit code 2, as of other settings that cannot work.
    """

    exit_code = 2


class OutOfMemoryError(SmashError):
    """A batch does not fit into the memory of the device; the hint says what may (exit code 2)."""

    exit_code = 2


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` (the GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: another name.
        MissingRuntimeError: a GPU is asked for and PyTorch sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError("unknown device", expected="auto, cpu, cuda or cuda:N", received=name)
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise MissingRuntimeError(
            f"PyTorch {torch.__version__} sees no device {name}",
            hint="Use --device cpu, or install a PyTorch build for your GPU: https://pytorch.org/get-started.",
        )
    return torch.device(name)


def autocast(device: torch.device, *, on_cpu: bool = False) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 on a GPU; on a CPU as asked.

    Args:
        device: where.
        on_cpu: bfloat16 on a CPU too, if it multiplies bfloat16 natively: for training and scores, whose
            weights are kept in float32. Without the instructions it would be slower. Repeatable bit for
            bit on machines of one kind, as float32 is.
    """
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    if on_cpu and device.type == "cpu" and multiplies_bfloat16():
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def learns_wrongly(network: nn.Module, images: Tensor) -> bool:
    """Whether oneDNN computes wrong gradients for filters of a network in bfloat16.

    See :func:`smash_search.model.interpreter.has_wrong_gradients`, whose own networks see to it where it
    happens. Of all others the modules tell, when they are shown how wide their maps are.

    Args:
        network: its mode stays as it is.
        images: float32 [B, C, *S].
    """
    found: list[bool] = []

    def look(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        sides = tuple((*inputs, *named.values())[0].shape[2:])
        shape = layer.kernel_size, layer.stride, layer.dilation
        found.append(has_wrong_gradients(sides, *shape, layer.groups))

    modes = {layer: layer.training for layer in network.modules()}
    convolutions = [layer for layer in modes if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in convolutions]
    if not hooks:
        return False
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in modes.items():
            layer.training = mode
    return any(found)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512-BF16 or AMX), on one core a factor of two."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what tensors give back, for the next ones; other C libraries are left alone.

    By itself it returns each large tensor to the system, which hands out the next one page by page, zeroed:
    a fifth of the processor time of a score, a tenth of a training step. The process stays as large as it
    was at its largest.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_format(dims: int, device: torch.device) -> torch.memory_format:
    """channels_last: tensor cores take it without a copy, and grouped convolutions with few channels run
    up to three times faster on a CPU. Volumes on a CPU stay contiguous."""
    if dims == 2:
        return torch.channels_last
    return torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format


def arrange_weights(network: nn.Module, layout: torch.memory_format) -> None:
    """Lay weights out in memory as the batches are (:func:`memory_format`)."""
    network.to(memory_format=layout)  # type: ignore[call-overload] # PyTorch declares no call with it alone


def batches(
    seed: int,
    epoch: int,
    count: int,
    size: int,
    *,
    drop_last: bool = True,
    labels: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Indices of the batches of one epoch: a permutation that depends on (seed, epoch) alone.

    With labels, int64 [N], or targets [N, K], each of as many draws picks a class first: all classes are
    equally frequent.
    The last, smaller batch is dropped when there is a whole one: its gradient and its BatchNorm moments
    would weigh as much as those of a whole batch.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(count) if labels is None else _balanced(labels, random)
    parts = [order[start : start + size] for start in range(0, count, size)]
    if drop_last and len(parts) > 1 and len(parts[-1]) < size:
        parts.pop()
    return parts


def _balanced(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As many indices as images, every class equally often: whole permutations of each, one after another.

    Where an image may be of several classes (targets [N, K]) it is drawn for each of them. Images of none
    are like those of one more class.
    """
    if labels.ndim == 1:
        classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        columns = [*labels.T, ~labels.any(1)]
        classes = [members for column in columns if len(members := np.flatnonzero(column))]
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[: len(labels) % len(classes)] += 1
    parts = []
    for members, share in zip(classes, shares, strict=True):
        rounds = [random.permutation(members) for _ in range(-(-int(share) // len(members)))]
        parts.append(np.concatenate(rounds)[:share])
    return random.permutation(np.concatenate(parts))


class Batches:
    """Indices of batches without end, one permutation of the images after another.

    The n-th batch depends on (seed, n) alone.

    Args:
        seed: Random seed of the order.
        count: images.
        size: Number of images in a batch.
        labels: int64 [N], or targets [N, K], to show every class equally often; None for every image once a
            pass.
    """

    def __init__(self, seed: int, count: int, size: int, labels: np.ndarray | None = None) -> None:
        self._arguments, self._labels = (seed, count, size), labels
        self._pass, self._parts = 0, batches(seed, 0, count, size, labels=labels)
        self.per_pass = len(self._parts)

    def __getitem__(self, number: int) -> np.ndarray:
        seed, count, size = self._arguments
        which, position = divmod(number, self.per_pass)
        if which != self._pass:
            self._pass, self._parts = which, batches(seed, which, count, size, labels=self._labels)
        return self._parts[position]


def seed_of(*numbers: int) -> int:
    """One 63-bit seed out of several numbers, for generators that take a single one."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Feed:
    """Images of a split by index, normalised, on the device.

    The uint8 images stay on the device when they fit into a share of its free memory; otherwise each batch
    is copied. A memory-mapped split is read as it is needed.

    Args:
        split: images uint8 [N, *S, C], labels int64 [N], targets uint8 [N, K] or None.
        preprocessing: Preprocessing of the data set.
        device: where batches are wanted.

    Attributes:
        labels: int64 [N], on the device.
        targets: presence of each class, float32 [N, K], where classes do not exclude each other; or None.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, device: torch.device) -> None:
        self.device, self._preprocessing = device, preprocessing
        self.labels = torch.from_numpy(np.asarray(split.labels, np.int64)).to(device)
        self.targets: Tensor | None = None
        if split.targets is not None:
            self.targets = torch.from_numpy(split.targets.astype(np.float32)).to(device)
        self._host = split.images
        self._images: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if split.images.nbytes <= RESIDENT_SHARE * free:
                self._images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        elif not isinstance(split.images, np.memmap):
            self._images = torch.from_numpy(np.require(split.images, requirements=["C", "W"]))
        self._format = memory_format(split.images.ndim - 2, device)

    def __len__(self) -> int:
        return len(self.labels)

    def blank(self, count: int) -> Tensor:
        """So many images of zeros, float32 [count, C, *S]."""
        images = torch.zeros(count, *self._preprocessing.input_shape, device=self.device)
        return images.contiguous(memory_format=self._format)

    def __call__(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Indices [B] -> images float32 [B, C, *S], and their labels int64 [B] or targets float32 [B, K]."""
        chosen = torch.from_numpy(np.asarray(indices, np.int64))
        if self._images is not None:
            chosen = chosen.to(self.device, non_blocking=True)
            raw = self._images[chosen]
        else:
            raw = torch.from_numpy(self._host[indices])
            if self.device.type == "cuda":
                raw, chosen = raw.pin_memory(), chosen.pin_memory()
            raw = raw.to(self.device, non_blocking=True)
            chosen = chosen.to(self.device, non_blocking=True)
        images = self._preprocessing.normalise(raw)
        wanted = self.labels if self.targets is None else self.targets
        return images.contiguous(memory_format=self._format), wanted[chosen]


def class_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    several: bool,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy: of one class against all, or of each class by itself where several may be there.

    Args:
        logits: [B, K].
        targets: labels int64 [B] or shares of classes [B, K]; the presence of each, [B, K], with ``several``.
        several: whether classes do not exclude each other; the loss of an image is then the mean over them.
        weights: Weights of the classes, [K]; with ``several`` those of their presence.
        smoothing: share of each target that goes to all classes, or to presence and absence alike.
        reduction: mean or sum over the images, or "none" for the loss of each, [B], not with ``several``.
    """
    if not several:
        return F.cross_entropy(logits, targets, weights, reduction=reduction, label_smoothing=smoothing)
    wanted = targets * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights, reduction=reduction)
    return loss / logits.shape[1] if reduction == "sum" else loss


class Ahead(Generic[Choice, Made]):
    """What the steps of a training need, made by a thread beside it, one step ahead.

    Args:
        draw: step -> which images it has; asked for in the thread of the steps, in their order.
        make: step and what was drawn -> what it needs; depends on these alone, so that it may be made at any
            time.
        steps: Number of steps of the training; nothing is made for later ones.
    """

    def __init__(
        self, draw: Callable[[int], Choice], make: Callable[[int, Choice], Made], steps: int
    ) -> None:
        self._draw, self._make, self._steps = draw, make, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Made]] | None = None

    def __getitem__(self, step: int) -> Made:
        held, self._next = self._next, None
        made = held[1].result() if held and held[0] == step else self._make(step, self._draw(step))
        if step + 1 < self._steps:
            self._next = step + 1, self._pool.submit(self._make, step + 1, self._draw(step + 1))
        return made

    def close(self) -> None:
        """Stop making."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def augmentation_of(arguments: Mapping[str, Any]) -> Augmentation | None:
    """The augmentation of a recipe; None for none.

    Raises:
        InvalidInputError: there is no such augmentation, or it cannot be of that size.
    """
    if not arguments:
        return None
    from smash_search.data.augment import Augmentation

    known = [entry.name for entry in fields(Augmentation) if entry.name != "classes"]
    if unknown := sorted(set(arguments) - {*known, "classes"}):
        raise InvalidInputError(
            "there is no such augmentation", expected=", ".join(known), received=unknown[0]
        )
    return Augmentation(**arguments)


def check_mixing(augmentation: Mapping[str, Any], *, taught: bool, several: bool) -> None:
    """Raise UsageError where images are mixed that a teacher answers for, or that are of several classes."""
    mixes = augmentation.get("mixup") or augmentation.get("cutmix")
    if mixes and (taught or several):
        what = "answers for whole images" if taught else "classes that do not exclude each other"
        raise UsageError(what, expected="neither mixup nor cutmix")


class Average:
    """Exponential moving average of a module's parameters and buffers (names to tensors).

    The decay grows from 0.1 with the number of updates up to ``decay``, so that early weights fade.
    Not torch's AveragedModel: that copies the module, takes the first update whole and cannot average beside
    buffers of integers.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present state."""
        self.updates += 1
        share = 1 - min(self.decay, self.updates / (9 + self.updates))
        state = module.state_dict()
        floats = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[n] for n in floats], [state[n] for n in floats], share)
        for name in self.values.keys() - set(floats):
            self.values[name].copy_(state[name])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read :meth:`state_dict` back."""
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])


@contextlib.contextmanager
def memory_guard(device: torch.device, batch: int, hint: str) -> Iterator[None]:
    """Turn "CUDA out of memory" of a batch of that many images into an error, with what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemoryError(
            f"a batch of {batch} images does not fit into the memory of {device}",
            received=str(error).partition(". ")[0],
            hint=hint,
        ) from None


# -------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path: Path, identity: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: tensors, numbers, strings and containers of them only.

    Args:
        path: the file.
        identity: what the job is (configuration, data); a resumed job must have the same.
        content: everything that the job needs to go on.
    """
    stream = io.BytesIO()
    torch.save({"schema": CHECKPOINT_SCHEMA, "identity": dict(identity), **content}, stream)
    files.write_bytes(path, stream.getvalue())


def load_checkpoint(path: Path, identity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Read a checkpoint on the CPU; None when there is no such file. Nothing in it is executed.

    Args:
        path: the file.
        identity: Identity of the job that wants to go on; None to read whatever there is.

    Raises:
        InvalidInputError: damaged, not a checkpoint, or holds more than data.
        UsageError: the checkpoint is of another job; the differing field is named.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InvalidInputError(
            f"checkpoint {path} cannot be read",
            received=error,
            hint="Delete it to train again from the start.",
        ) from None
    if not isinstance(content, dict) or content.get("schema") != CHECKPOINT_SCHEMA:
        raise InvalidInputError(f"{path} is not a checkpoint of this version", expected="schema 1")
    if identity is not None:
        check_identity(path, content["identity"], identity)
    return content


def check_identity(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a job whose settings or data have changed.

    A setting that the version which began the job did not have is none that has changed where it is off (0,
    false or empty), which leaves everything as it was.

    Raises:
        UsageError: with the first field that differs, the value held and the value wanted.
    """
    difference = _difference(held, wanted)
    if difference:
        name, before, now = difference
        folder = path if path.is_dir() else path.parent
        raise UsageError(
            f"{path} belongs to another job: {name} differs",
            expected=before,
            received=now,
            hint="Repeat the first command to resume, choose another folder, or delete "
            f"{folder} to start again.",
        )


def _difference(held: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field that differs, with both values; plain fields before those of nested parts."""
    if not (isinstance(held, Mapping) and isinstance(wanted, Mapping)):
        return None if held == wanted else (name, held, wanted)
    names = sorted({*held, *wanted}, key=lambda key: (isinstance(held.get(key), Mapping), key))
    for key in names:
        if key not in held and not wanted[key]:
            continue
        below = f"{name}.{key}" if name else key
        difference = _difference(held.get(key), wanted.get(key), below)
        if difference:
            return difference
    return None
