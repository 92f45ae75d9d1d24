"""From an image to the input tensor and from logits to labels: the one implementation.

Training, scoring, calibration, verification, prediction and the server all call this module, and the
block that describes it travels in the bundle's manifest. The commonest failure of an exported
classifier is that these differ.

Two steps, kept apart because the first runs once per file and the second on every batch:

    decode     file, bytes, PIL image or array -> uint8 [height, width, channels]
    normalise  uint8 [B, height, width, channels] -> float32 [B, channels, height, width]
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from PIL import Image

from smash_base.errors import InvalidInputError
from smash_base.images import converted, load_picture, open_image, shown, upright
from smash_base.json_values import JsonObject

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Outputs = Literal["logits", "probabilities", "sigmoid"]

PRESENT = 0.5
NO_CLASS = "no class"  # in words, of images that have none
LABEL_LENGTH = 200  # characters of the longest class name
MAX_RESIZED_SIDE = (
    65_536  # of an image whose shorter side was resized: a strip of 1 pixel would fill the memory
)
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input tensor. JSON: :meth:`to_json`, :meth:`from_json`.

    Attributes:
        height, width: size that the network takes, in pixels.
        channels: 1 (grey, ITU-R 601-2 luma) or 3 (RGB) for image files; any number for arrays.
        resize: Pillow filter used when the image has another size (antialiased, aspect ignored).
        mean, std: per channel, of values in [0, 1].
        depth: planes of a voxel volume, or None for images.
        short_side: pixels that the shorter side is resized to, aspect kept, before the centre of
            height x width is cut out (what it lacks is black), as torchvision and timm evaluate; None: the
            whole image is resized to height x width.
        exif: whether image files and pictures are turned upright as their EXIF orientation says; what was
            trained before this existed is not. TIFF files always are: there it is a tag of the format.
        order: Order of the network's three channels. Images and samples are always RGB; mean and std
            belong to the channels of the network.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["bilinear", "bicubic", "nearest", "box"] = "bilinear"
    depth: int | None = None
    short_side: int | None = None
    order: Literal["RGB", "BGR"] = "RGB"
    exif: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        for name in ("height", "width", "channels", "depth", "short_side"):
            value = getattr(self, name)
            if name in ("depth", "short_side") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise InvalidInputError(f"preprocessing field {name!r}", expected="1 to 4096", received=value)
        if not isinstance(self.exif, bool):
            raise InvalidInputError(
                "preprocessing field 'exif'", expected="true or false", received=self.exif
            )
        if not isinstance(self.resize, str) or self.resize not in _RESAMPLING:
            raise InvalidInputError(
                "preprocessing field 'resize'",
                expected=" or ".join(_RESAMPLING),
                received=self.resize,
            )
        if self.order not in ("RGB", "BGR") or (self.order == "BGR" and self.channels != 3):
            raise InvalidInputError(
                "preprocessing field 'order'",
                expected="RGB, or BGR of three channels",
                received=f"{self.order} of {self.channels} channels",
            )
        if self.short_side is not None and self.depth is not None:
            raise InvalidInputError(
                "preprocessing field 'short_side'", expected="no value for volumes", received=self.short_side
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not np.isfinite(values).all():
                raise InvalidInputError(
                    f"preprocessing field {name!r}",
                    expected=f"{self.channels} finite numbers, one per channel",
                    received=values,
                )
        if min(self.std) <= 0:
            raise InvalidInputError(
                "preprocessing field 'std'", expected="positive numbers", received=self.std
            )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one stored sample: [height, width, channels], or [depth, height, width, channels]."""
        planes = () if self.depth is None else (self.depth,)
        return (*planes, self.height, self.width, self.channels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input tensor without the batch: channels first."""
        return (self.channels, *self.sample_shape[:-1])

    def decode(self, image: ImageLike, *, is_file: bool = False) -> np.ndarray:
        """Turn one image into uint8 [height, width, channels].

        A path or bytes is decoded under the limits of :mod:`smash_base.images`; transparency is put on black,
        CMYK becomes RGB without a profile, grey of 16 bits is scaled to 8, and with :attr:`exif` the image is
        turned upright.
        An array is taken as uint8 [height, width], [height, width, channels] or, for any channel
        count and for volumes, exactly :attr:`sample_shape`: one of that shape is a sample already, of which
        nothing is cut away, where a picture of that size is resized and cut by :attr:`short_side`.

        Args:
            image: as above.
            is_file: bytes are the content of a file, as a path is: TIFF may be among them.

        Raises:
            InvalidInputError: not an image, truncated, animated, too large, or another channel count.
        """
        if isinstance(image, np.ndarray):
            return self._from_array(image)
        if self.depth is not None:
            raise InvalidInputError(
                "this network takes volumes",
                expected=f"a uint8 array of shape {self.sample_shape}",
                received=type(image).__name__,
            )
        if self.channels not in (1, 3):
            raise InvalidInputError(
                f"this network takes {self.channels} channels",
                expected=f"a uint8 array of shape {self.sample_shape}",
                received=type(image).__name__,
            )
        if isinstance(image, Image.Image):
            picture = load_picture(image, shown(getattr(image, "filename", "")) or "the picture")
        else:
            picture = open_image(image, is_file=is_file)
        return self._from_picture(upright(picture) if self.exif else picture)

    def _from_picture(self, picture: Image.Image) -> np.ndarray:
        plain = converted(picture, "L" if self.channels == 1 else "RGB")
        return np.asarray(self._resized(plain), dtype=np.uint8).reshape(self.sample_shape)

    def _resized(self, picture: Image.Image) -> Image.Image:
        """The picture at width x height; roundings of sides and offsets are those of torchvision."""
        if self.short_side is None:
            if picture.size == (self.width, self.height):
                return picture
            return picture.resize((self.width, self.height), _RESAMPLING[self.resize])
        shorter = min(picture.size)
        width, height = (self.short_side * side // shorter for side in picture.size)
        left, top = self._corner((width, height))
        if max(width, height) > MAX_RESIZED_SIDE:
            raise InvalidInputError(
                "an image is too long for its width",
                expected=f"at most {MAX_RESIZED_SIDE} pixels on the longer side after resizing",
                received=f"{width}x{height}",
            )
        if picture.size != (width, height):
            picture = picture.resize((width, height), _RESAMPLING[self.resize])
        return picture.crop((left, top, left + self.width, top + self.height))

    def _from_array(self, array: np.ndarray) -> np.ndarray:
        if array.dtype != np.uint8:
            raise InvalidInputError(
                "an image array has the wrong type",
                expected="uint8 values 0 to 255",
                received=array.dtype,
                hint="For tensors that are normalised already use Classifier.logits.",
            )
        if (*array.shape, 1) == self.sample_shape:
            array = array[..., None]
        if array.shape == self.sample_shape:
            return array
        if self.depth is None and self.channels in (1, 3) and array.ndim in (2, 3) and array.size:
            if array.ndim == 3 and array.shape[2] == 1:
                array = array[:, :, 0]
            if array.ndim == 2 or array.shape[2] in (3, 4):
                return self._from_picture(Image.fromarray(array))
        raise InvalidInputError(
            "an image array has the wrong shape", expected=self.sample_shape, received=array.shape
        )

    def picture_of(self, sample: np.ndarray) -> Image.Image:
        """A picture that :meth:`decode` makes this sample of, uint8 [H, W, 1 or 3].

        Where the centre is cut out, the picture has a black frame that is cut away.
        """
        picture = Image.fromarray(sample[..., 0] if self.channels == 1 else sample)
        if self.short_side is None:
            return picture
        longer = max(self.short_side, self.width, self.height)
        sides = (longer, self.short_side) if self.width >= self.height else (self.short_side, longer)
        framed = Image.new(picture.mode, sides)
        framed.paste(picture, self._corner(sides))
        return framed

    def _corner(self, sides: tuple[int, int]) -> tuple[int, int]:
        """Where the centre begins in a resized picture (width, height), left and top."""
        return round((sides[0] - self.width) / 2), round((sides[1] - self.height) / 2)

    def normalise(self, samples: Any) -> Any:
        """uint8 [B, *sample_shape] -> float32 [B, *input_shape], channels first (a torch tensor: as a view).

        Works on a numpy array and, with the same arithmetic in the same order, on a torch tensor
        (which stays on its device): x * (1 / (255 std)) - mean / std.
        """
        scale, shift = scale_and_shift(self.mean, self.std)
        if self.order == "BGR":
            samples = samples[..., ::-1] if isinstance(samples, np.ndarray) else samples.flip(-1)
        if isinstance(samples, np.ndarray):
            # Channels first while it is still bytes, then in place: five times faster, the same bits.
            last = samples.ndim - 1
            values = samples.transpose(0, last, *range(1, last)).astype(np.float32, order="C")
            per_channel = (-1, *(1,) * (samples.ndim - 2))
            values *= scale.reshape(per_channel)
            values += shift.reshape(per_channel)
            return values
        values = samples.float()
        values = (values * values.new_tensor(scale)).add_(values.new_tensor(shift))
        return values.movedim(-1, 1)  # a view: channels_last is free, and channels first one copy

    def batch(self, images: list[ImageLike]) -> np.ndarray:
        """Decode and normalise: a list of B images -> float32 [B, *input_shape]."""
        tensor: np.ndarray = self.normalise(np.stack([self.decode(image) for image in images]))
        return tensor

    def to_json(self) -> JsonObject:
        """The block that stands in manifests and in the ONNX metadata."""
        block = asdict(self)
        block["mean"], block["std"] = list(self.mean), list(self.std)
        for name, usual in (("short_side", None), ("order", "RGB"), ("exif", False)):
            if block[name] == usual:  # as blocks were before these fields: same network, same bytes
                del block[name]
        return block

    @classmethod
    def from_json(cls, block: Any) -> Preprocessing:
        """Read the block back; one without ``exif`` was made when orientation was not heeded.

        Raises:
            InvalidInputError: unknown or missing keys, or values out of range.
        """
        if not isinstance(block, Mapping):
            raise InvalidInputError("preprocessing", expected="an object", received=block)
        names = {field.name for field in fields(cls)}
        required = names - {"resize", "depth", "short_side", "order", "exif"}
        unknown, missing = set(block) - names, required - set(block)
        if unknown or missing:
            raise InvalidInputError(
                "preprocessing has wrong keys",
                expected=", ".join(sorted(names)),
                received=", ".join(sorted(map(str, block))),
            )
        for name in ("mean", "std"):
            values = block[name]
            if not isinstance(values, list) or not all(
                isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
                for value in values
            ):
                raise InvalidInputError(
                    f"preprocessing field {name!r}", expected="a list of numbers", received=values
                )
        return cls(**{"exif": False, **block, "mean": tuple(block["mean"]), "std": tuple(block["std"])})


@functools.lru_cache(maxsize=64)
def scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, float32 [C] each: a byte x becomes x * scale + shift."""
    scale = np.asarray([1.0 / (255.0 * value) for value in std], dtype=np.float32)
    shift = np.asarray([-a / b for a, b in zip(mean, std, strict=True)], dtype=np.float32)
    scale.flags.writeable = shift.flags.writeable = False
    return scale, shift


def is_label(text: str) -> bool:
    """Whether a class name can stand in manifests, answers and tables: 1 to 200 printable characters."""
    return bool(text.strip()) and len(text) <= LABEL_LENGTH and text.isprintable()


def probabilities_of(answers: np.ndarray, outputs: Outputs = "logits") -> np.ndarray:
    """What a network answers as probabilities, float32: the one place where that is decided.

    Args:
        answers: [..., K].
        outputs: what they are: "logits" go through softmax, "probabilities" sum to one already, each
            "sigmoid" is the probability of one class whatever the others are.
    """
    if outputs == "logits":
        return softmax(answers)
    return np.clip(answers.astype(np.float32), 0, 1)


def present_classes(probabilities: np.ndarray) -> list[int]:
    """Indices of the classes of one image that are more likely there than not, best first; for networks
    whose classes do not exclude each other. ``probabilities``: [K]."""
    order = np.argsort(-probabilities, kind="stable")
    return [int(index) for index in order if probabilities[index] >= PRESENT]


def with_none(probabilities: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Probabilities [N, K], and a last column for no class, [N, K+1], where some image may have none.

    The column holds the probability from which on a class is present, so that the highest one of a row is the
    first answer: a class that is present, or none.

    Args:
        probabilities: Answers of a network that gives one of each class by itself.
        labels: int [N], K for an image of no class; None where they are not known. Only a network that
            answers each class by itself is given such images.
    """
    if labels is not None and labels.max(initial=0) < probabilities.shape[1]:
        return probabilities
    column = np.full((len(probabilities), 1), PRESENT, probabilities.dtype)
    return np.concatenate([probabilities, column], axis=1)


def first_answers(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first answer for each image, int64 [N], K for no class where some image has none (see
    :func:`with_none`); answers [N, K] may be logits where none has."""
    found: np.ndarray = with_none(answers, labels).argmax(axis=1)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, float64 inside, float32 out."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities.astype(np.float32)
