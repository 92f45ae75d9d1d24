"""Image files: which a folder holds, which are read, and the limits under which they are decoded.

The memory of decoding is bounded by pixels, not by the size of a file: :func:`pixel_limit`, 50 million unless
``SMASH_EXPORT_MAX_PIXELS`` says otherwise. A JPEG above 16 million is decoded at a half, a quarter or an
eighth of its sides, as its format allows, so that a photo of 48 megapixels needs no more memory than one of
16; a progressive one keeps two bytes for each of its samples besides, at most ``PROGRESSIVE_BYTES`` for each
of those pixels.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject

# Allow-lists: exotic decoders are attack surface. Bytes may come from a network, where TIFF is not needed:
# its decoder is the one with most holes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
FILE_FORMATS = (*FORMATS, "TIFF")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip
ANIMATED = ("PNG", "WEBP")  # refused when they move; of MPO, GIF and TIFF the first picture is the image
GREY_16 = ("I;16", "I;16L", "I;16B")
MODES = (*GREY_16, "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_MODE_NAMES = {  # what black and white are is known to the owner of the image only
    "I": "a 32-bit image",
    "F": "a floating-point image",
}
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 50 * 10**6
JPEG_PIXELS = 16 * 10**6  # of a JPEG decoded whole; networks take far less
DARK_16 = 4096  # values of 12 bits in 16, as cameras and microscopes write them, would be all but black
LARGEST_LIMIT = 178_956_970  # above it Pillow refuses by itself
PROGRESSIVE_BYTES = 18
BAND_PIXELS = 2**20
SYSTEM_FOLDERS = frozenset(
    ("@eaDir", "#recycle", "__MACOSX", "lost+found", "System Volume Information", "$RECYCLE.BIN")
)
"""Folders that file systems, network shares and archives put among those of people."""
LIMIT_VARIABLE = "SMASH_EXPORT_MAX_PIXELS"
MAX_NAMES = 1000  # of files left out for one reason; the rest is only counted
_ORIENTATION = 0x0112
_PHOTOMETRIC = 262
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_EXIF = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords of text that may hold an orientation
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Omission:
    """Files or folders that were left out for one reason.

    Attributes:
        reason: a noun phrase that follows the count, such as "hidden files".
        count: how many.
        names: their paths, the first ``MAX_NAMES``.
    """

    reason: str
    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.names[:3])
        return f"{self.count} {self.reason}: {shown}" + (", ..." if self.count > 3 else "")

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {"reason": self.reason, "count": self.count, "names": list(self.names)}


@dataclass
class LeftOut:
    """Collects what a reader leaves out; nothing is left out without a word."""

    _found: dict[str, list[str]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, name: str | os.PathLike[str]) -> None:
        """One more file or folder, see :class:`Omission`."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._found.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(shown(name))

    def join(self, other: LeftOut) -> None:
        """Everything that ``other`` collected as well."""
        for omission in other.omissions():
            self._counts[omission.reason] = self._counts.get(omission.reason, 0) + omission.count
            self._found.setdefault(omission.reason, []).extend(omission.names)

    def omissions(self) -> tuple[Omission, ...]:
        """What was left out so far, by reason."""
        return tuple(
            Omission(reason, self._counts[reason], tuple(names[:MAX_NAMES]))
            for reason, names in self._found.items()
        )


def shown(name: str | os.PathLike[str]) -> str:
    """A file name as text that every encoding can write: bytes that are no UTF-8 become ``\\udcNN``."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode()


def image_files(folder: str | os.PathLike[str], left_out: LeftOut) -> Iterator[str]:
    """Paths of the image files below a folder, by suffix, depth first, sorted; linked folders are followed.

    The names of one folder at a time are in memory. What is no image file goes to ``left_out``.
    """
    yield from _image_files(os.fspath(folder), left_out, ())


def _image_files(folder: str, left_out: LeftOut, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        facts = os.stat(folder)
        here = (facts.st_dev, facts.st_ino)
        if here in above:
            left_out.add("links back to a folder above", folder)
            return
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        left_out.add("folders that cannot be read", folder)
        return
    for entry in found:
        if entry.name.startswith("."):
            left_out.add("hidden files or folders", entry.path)
        elif entry.name in SYSTEM_FOLDERS:
            left_out.add("folders of the system", entry.path)
        elif _kind(entry) == "folder":
            yield from _image_files(entry.path, left_out, (*above, here))
        elif not entry.name.lower().endswith(SUFFIXES):
            left_out.add("files of other formats", entry.path)
        elif _kind(entry) == "file":
            yield entry.path
        else:
            left_out.add("names that lead to no file", entry.path)


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is, links followed: a pipe called x.jpg would block whoever opens it."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:
        return "other"


def pixel_limit() -> int:
    """Pixels of the largest image that is decoded.

    Raises:
        UsageError: ``SMASH_EXPORT_MAX_PIXELS`` is no number that Pillow decodes.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:20]) <= LARGEST_LIMIT:
        raise UsageError(LIMIT_VARIABLE, expected=f"pixels, 1 to {LARGEST_LIMIT}", received=text)
    return int(text)


@dataclass(frozen=True)
class Header:
    """What the head of an image file says, without decoding it.

    Attributes:
        width, height: in pixels, of the upright image.
        grey: whether it has no colour.
    """

    width: int
    height: int
    grey: bool


def read_header(
    source: str | os.PathLike[str] | bytes, *, exif: bool = True, is_file: bool = False
) -> Header:
    """Size and kind of an image.

    Args:
        exif: whether its orientation counts; that of a TIFF file, a tag of the format, always does.
        is_file: bytes are the content of a file, as a path is: TIFF may be among them.

    Raises:
        InvalidInputError: as :func:`open_image`, as far as the head of the file tells.
    """
    name, data = _content(source)
    formats = _formats(source, is_file)
    with _named_errors(name, formats):
        picture = _open(name, data, formats)
        width, height = picture.size
        if exif and picture.format != "TIFF":  # Pillow turns TIFF by itself
            from_head = picture.format == "PNG" and not _has_exif_behind_pixels(data)
            if orientation(picture, from_head=from_head) >= 5:
                width, height = height, width
        return Header(width, height, picture.mode in ("1", "L", "LA", *GREY_16))


def open_image(source: str | os.PathLike[str] | bytes, *, is_file: bool = False) -> Image.Image:
    """Open and fully decode one still image from a path or from bytes; a large JPEG smaller, 16 bits as 8.

    Args:
        is_file: bytes are the content of a file, as a path is: TIFF may be among them.

    Raises:
        InvalidInputError: missing, empty, larger than 64 MiB or :func:`pixel_limit`, of a format other than
            JPEG, PNG, WebP, BMP, GIF and (files only) TIFF, of 32 bits, of 16 bits that are all but black,
            animated or damaged.
    """
    name, data = _content(source)
    return _decoded(name, data, _formats(source, is_file))


def _formats(source: object, is_file: bool) -> tuple[str, ...]:
    return FORMATS if isinstance(source, bytes) and not is_file else FILE_FORMATS


def _decoded(name: str, data: bytes, formats: tuple[str, ...]) -> Image.Image:
    with _named_errors(name, formats):
        picture = _open(name, data, formats)
        if picture.format in ANIMATED and getattr(picture, "n_frames", 1) != 1:
            raise InvalidInputError(
                f"{name} is animated",
                expected="one still image",
                received=f"{picture.n_frames} frames",  # type: ignore[attr-defined]
            )
        picture.load()
        return eight_bits(picture, name)


def load_picture(picture: Image.Image, name: str = "the picture") -> Image.Image:
    """A picture that somebody else opened, decoded; the one who opened it finds it as it was.

    As long as nobody has decoded it, it is read as its file is, under the same limits.

    Raises:
        InvalidInputError: truncated, damaged, without pixels, of 32 bits, or of 16 bits that are all but
            black; not decoded yet and too large, or animated.
    """
    with _named_errors(name):
        if (data := _undecoded(picture)) is not None:
            return _decoded(name, data, FILE_FORMATS)
        if _waits(picture) and picture.width * picture.height > pixel_limit():
            raise _too_many_pixels(name, f"{picture.width}x{picture.height}")
        picture.load()
        check_mode(picture, name)
        if not all(picture.size):  # a crop may be one; resized it would be black
            raise InvalidInputError(
                f"{name} has no pixels",
                expected="1 or more on each side",
                received="x".join(map(str, picture.size)),
            )
        return eight_bits(picture, name)


def _waits(picture: Image.Image) -> bool:
    """Whether a picture still has to be decoded: what its file holds of it stands in ``tile`` until then."""
    return bool(getattr(picture, "tile", None))


def _undecoded(picture: Image.Image) -> bytes | None:
    """The file of a picture that nobody has decoded yet; None where somebody has asked Pillow for another
    frame, size or mode of it, where the format is not one of ours, and where there is no file."""
    file = getattr(picture, "fp", None)
    if file is None or not _waits(picture) or picture.tell() or picture.format not in (*FILE_FORMATS, "MPO"):
        return None
    place = file.tell()
    file.seek(0)
    data: bytes = file.read(MAX_FILE_BYTES + 1)
    file.seek(place)
    if len(data) > MAX_FILE_BYTES:
        return None
    whole = Image.open(io.BytesIO(data), formats=FILE_FORMATS)
    return data if (whole.size, whole.mode) == (picture.size, picture.mode) else None


def check_mode(picture: Image.Image, name: str) -> None:
    """Raise InvalidInputError for a picture whose values have no known range."""
    if picture.mode not in MODES:
        raise InvalidInputError(
            f"{name} has colour mode {picture.mode}",
            expected="grey of 8 or 16 bits, palette, RGB or CMYK, with or without transparency",
            received=_MODE_NAMES.get(picture.mode, picture.mode),
            hint="Convert it first, with the range that its values have.",
        )


def eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits as grey of 8, 65535 as 255 (PNG, "Sample depth rescaling"); others as they are.

    Pillow does the same with colours of 16 bits when it opens them. A value that the file declares
    transparent is so in the result, too, and not its neighbours that round to the same 8 bits.

    Raises:
        InvalidInputError: no value reaches ``DARK_16``: what white is in such a file its owner only knows.
    """
    if picture.mode not in GREY_16:
        return picture
    values = np.asarray(picture)
    if 0 < (largest := int(values.max())) < DARK_16:
        raise InvalidInputError(
            f"{name} has 16 bits and would be all but black",
            expected="values up to 65535, which is white",
            received=f"at most {largest}",
            hint="Convert it first, with the range that its values have.",
        )
    table = _eight_of_sixteen()
    # Pillow declares what only pictures of TIFF files have in their own class.
    white_is_zero = picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    grey = Image.fromarray((table[::-1] if white_is_zero else table)[values])
    if isinstance(hidden := picture.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, np.uint8(0), np.uint8(255))))
    if (turn := orientation(picture)) != 1:
        exif = Image.Exif()
        exif[_ORIENTATION] = turn
        grey.info["exif"] = exif.tobytes()
    return grey


@functools.cache
def _eight_of_sixteen() -> np.ndarray:
    """The 8 bits of each value of 16, uint8 [65536], rounded."""
    return ((np.arange(2**16, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _has_exif_behind_pixels(data: bytes) -> bool:
    """Whether a PNG file says more behind its pixels about how it is turned; Pillow decodes them to look."""
    place, is_behind = len(_PNG), False
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt") and is_behind:
            keyword = data[place + 8 : place + 8 + min(length, 80)].partition(b"\0")[0]
            if keyword in _PNG_EXIF:
                return True
        elif kind == b"eXIf" and is_behind:
            return True
        is_behind = is_behind or kind == b"IDAT"
        place += 12 + length  # its checksum, too
    return False


def orientation(picture: Image.Image, *, from_head: bool = False) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read.

    Args:
        from_head: look only at what stands before the pixels, which Pillow has read when it opened the file.
    """
    try:
        with _quiet():
            exif = Image.Image.getexif(picture) if from_head else picture.getexif()
            value = exif.get(_ORIENTATION)
    except (*_DAMAGE, AttributeError, UnicodeError):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says that it is to be seen."""
    turn = orientation(picture)
    return picture if turn == 1 else picture.transpose(_UPRIGHT[turn])


def converted(picture: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Grey or colours of a decoded picture, what is transparent put on black.

    A large one in bands, each of which is worked on alone: transparency takes twelve bytes for each pixel
    beside the picture.
    """
    if picture.mode == mode and not _transparent(picture):
        return picture
    rows = max(1, BAND_PIXELS // picture.width)
    if picture.height <= rows:
        return _converted(picture, mode)
    whole = Image.new(mode, picture.size)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        whole.paste(_converted(band, mode), (0, top))
    return whole


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if _transparent(picture):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture.convert(mode)


def _transparent(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def _content(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """A name for messages, and the bytes."""
    if isinstance(source, bytes):
        name, data = f"image of {len(source)} bytes", source
    else:
        name = shown(source)
        try:
            with open(source, "rb") as file:
                if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                    raise IsADirectoryError
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise InvalidInputError(f"{name} does not exist", expected="an image file") from None
        except IsADirectoryError:
            raise InvalidInputError(f"{name} is a folder", expected="an image file") from None
        except PermissionError:
            raise InvalidInputError(f"{name} may not be read", expected="an image file") from None
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"{name} cannot be read", expected="an image file", received=error
            ) from None
    if not data:
        raise InvalidInputError(f"{name} is empty", expected="an image file")
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInputError(f"{name} is too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    return name, data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of size, below our limits, and of odd metadata."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextmanager
def _named_errors(name: str, formats: tuple[str, ...] = FILE_FORMATS) -> Iterator[None]:
    """Pillow's many errors as one of ours that names the image."""
    try:
        with _quiet():
            yield
    except UnidentifiedImageError:
        raise InvalidInputError(
            f"{name} is not an image this program reads", expected=", ".join(formats)
        ) from None
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name, error) from None
    except _DAMAGE as error:
        raise InvalidInputError(
            f"{name} is damaged or truncated", expected="a whole image", received=error
        ) from None


def _open(name: str, data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """An image that is not decoded yet but may be: its mode and size are checked."""
    picture = Image.open(io.BytesIO(data), formats=formats)
    check_mode(picture, name)
    limit = pixel_limit()
    width, height = picture.size
    if picture.format in ("JPEG", "MPO"):
        limit = min(limit, JPEG_PIXELS)
    if width * height <= limit:
        return picture
    if picture.format in ("JPEG", "MPO") and _coefficient_bytes(picture) <= PROGRESSIVE_BYTES * limit:
        for scale in (2, 4, 8):
            if -(-width // scale) * -(-height // scale) <= limit and min(width, height) >= scale:
                picture.draft(None, (width // scale, height // scale))
                return picture
    raise _too_many_pixels(name, f"{width}x{height}")


def _too_many_pixels(name: str, received: object) -> InvalidInputError:
    return InvalidInputError(
        f"{name} has too many pixels",
        expected=f"at most {pixel_limit()}, of a JPEG "
        f"{min(64 * min(pixel_limit(), JPEG_PIXELS), LARGEST_LIMIT)}",
        received=received,
        hint=f"Make it smaller, or allow more: {LIMIT_VARIABLE}=NUMBER (three bytes of memory each).",
    )


def _coefficient_bytes(picture: Image.Image) -> float:
    """Memory that libjpeg needs beside the pixels: a progressive file is read whole before it is scaled."""
    if "progressive" not in picture.info:
        return 0
    layers: list[tuple[int, int, int, int]] = picture.layer  # type: ignore[attr-defined]
    full = max((layer[1] * layer[2] for layer in layers), default=1)
    samples = sum(layer[1] * layer[2] for layer in layers) / max(1, full)
    return 2 * samples * picture.width * picture.height
