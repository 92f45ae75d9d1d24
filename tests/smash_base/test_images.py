"""A zoo of odd pictures as people bring them: each is read as a viewer shows it, or refused by its name."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from smash_base import images
from smash_base.errors import InvalidInputError, UsageError
from smash_base.images import (
    JPEG_PIXELS,
    LeftOut,
    converted,
    image_files,
    open_image,
    orientation,
    read_header,
    upright,
)
from smash_base.preprocess import Preprocessing

WIDTH, HEIGHT = 40, 24
TARGET = Preprocessing(HEIGHT, WIDTH, 3, (0.0,) * 3, (1.0,) * 3)
ROOT = Path(__file__).parents[2]


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Four plain quarters, so that a turn, a flip and a colour are seen: red, green over blue, white."""
    picture = Image.new("RGB", (width, height), (200, 30, 30))
    picture.paste((30, 160, 30), (width // 2, 0, width, height // 2))
    picture.paste((30, 30, 200), (0, height // 2, width // 2, height))
    picture.paste((240, 240, 240), (width // 2, height // 2, width, height))
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(kind: str, turn: int) -> bytes:
    """The scene as a camera stores it that was held another way."""
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transpositions of Pillow
    stored = scene() if turn == 1 else scene().transpose(Image.Transpose(undone[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    return encoded(stored, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))


def quarters(pixels: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quarters, int [4, 3]."""
    height, width = pixels.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return np.array([pixels[row, column] for row in rows for column in columns], int)


COLOURS = quarters(np.asarray(scene()))
GREYS = quarters(np.asarray(scene().convert("L").convert("RGB")))


def moving() -> dict[str, object]:
    """Options that add a black picture of the same size."""
    return {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}


EXIF_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"  # orientation 6
EXIF_99 = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0c\0\0"  # orientation 99
READ = {
    "jpeg": encoded(scene(), "JPEG", quality=95),
    "progressive": encoded(scene(), "JPEG", quality=95, progressive=True),
    "whole chroma": encoded(scene(), "JPEG", quality=95, subsampling=0),
    "two pictures": encoded(scene(), "MPO", quality=95, **moving()),
    "png": encoded(scene(), "PNG"),
    "opaque": encoded(scene().convert("RGBA"), "PNG"),
    "palette": encoded(scene().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "palette of 2 bits": encoded(scene().quantize(4), "PNG", bits=2),
    "webp": encoded(scene(), "WEBP", lossless=True),
    "bmp": encoded(scene(), "BMP"),
    "gif": encoded(scene(), "GIF"),
    "gif that moves": encoded(scene(), "GIF", **moving()),
    "exif of nonsense": encoded(scene(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "orientation 99": encoded(scene(), "JPEG", quality=95, exif=EXIF_99),
}
TURNED = {f"{kind} {turn}": turned(kind, turn) for kind in ("JPEG", "PNG", "WEBP") for turn in range(1, 9)}
READ |= TURNED
READ_FROM_FILES = {
    "tiff": encoded(scene(), "TIFF"),
    "tiff, lzw": encoded(scene(), "TIFF", compression="tiff_lzw"),
    "tiff, jpeg": encoded(scene(), "TIFF", compression="jpeg", quality=95),
    "tiff of two pages": encoded(scene(), "TIFF", **moving()),
}
REFUSED = {
    "12 bits in 16": (encoded(Image.fromarray(np.full((8, 8), 999, np.uint16)), "PNG"), "at most 999"),
    "32 bits": (encoded(Image.new("I", (8, 8), 70000), "TIFF"), "32-bit"),
    "floating point": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
    "lab": (encoded(Image.new("LAB", (8, 8)), "TIFF"), "LAB"),
    "moving png": (encoded(scene(), "PNG", **moving()), "animated"),
    "moving webp": (encoded(scene(), "WEBP", **moving()), "animated"),
    "text": (b"a page that says 404", "not an image"),
    "nothing": (b"", "empty"),
    "half a jpeg": (READ["jpeg"][:-60], "damaged"),
    "half a png": (READ["png"][:-60], "damaged"),
    "half a webp": (READ["webp"][:-60], "damaged|not an image"),
}


def test_the_undone_turns_are_the_tested_ones() -> None:
    """The scene of the tests itself: stored and turned it is the scene again."""
    for turn in range(1, 9):
        assert orientation(Image.open(io.BytesIO(turned("PNG", turn)))) == turn


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of the test's own Image.open
@pytest.mark.parametrize("name", READ)
def test_read_as_viewers_show_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"  # a name says nothing about what is inside
    path.write_bytes(READ[name])
    for image in (path, READ[name], Image.open(path)):
        assert np.abs(quarters(TARGET.decode(image)) - COLOURS).max() <= 12
    header = read_header(path)
    assert (header.width, header.height, header.grey) == (WIDTH, HEIGHT, False)


@pytest.mark.parametrize("name", READ_FROM_FILES)
def test_tiff_is_read_from_files_and_not_from_a_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    path.write_bytes(READ_FROM_FILES[name])
    assert np.abs(quarters(TARGET.decode(path)) - COLOURS).max() <= 12
    with pytest.raises(InvalidInputError, match=r"reads; expected JPEG.*GIF$"):
        TARGET.decode(READ_FROM_FILES[name])
    decoded = TARGET.decode(READ_FROM_FILES[name], is_file=True)
    np.testing.assert_array_equal(decoded, TARGET.decode(path))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_name_of_the_file(name: str, tmp_path: Path) -> None:
    data, words = REFUSED[name]
    path = tmp_path / "holiday.png"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=words) as caught:
        TARGET.decode(path)
    assert "holiday.png" in str(caught.value)


def test_cmyk_becomes_the_colours_that_it_prints(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    path.write_bytes(encoded(scene().convert("CMYK"), "JPEG", quality=95))
    assert Image.open(path).mode == "CMYK"
    assert np.abs(quarters(TARGET.decode(path)) - COLOURS).max() <= 12


def test_grey_pictures_of_every_depth(tmp_path: Path) -> None:
    grey = scene().convert("L")
    for picture in (grey, grey.convert("LA")):
        path = tmp_path / "grey.png"
        path.write_bytes(encoded(picture, "PNG"))
        assert np.array_equal(quarters(TARGET.decode(path)), GREYS)
        assert read_header(path).grey


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_tiff_has_the_size_that_it_is_decoded_to(turn: int, tmp_path: Path) -> None:
    """Pillow turns it upright by itself, so neither is it turned again nor left as it lies."""
    path = tmp_path / "scan.tif"
    path.write_bytes(turned("TIFF", turn))
    for exif in (True, False):
        header = read_header(path, exif=exif)
        assert (header.width, header.height) == (WIDTH, HEIGHT)
        plain = Preprocessing(HEIGHT, WIDTH, 3, (0.0,) * 3, (1.0,) * 3, exif=exif)
        assert np.array_equal(plain.decode(path), np.asarray(scene()))


PIXELS_8 = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def png_chunks(header: bytes, rows: bytes, transparent: bytes | None = None) -> bytes:
    """A PNG written byte by byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = chunk(b"IDAT", zlib.compress(rows))
    if transparent is not None:
        pixels = chunk(b"tRNS", transparent) + pixels
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def sixteen(picture: Image.Image) -> Image.Image:
    """The same greys with 16 bits: 255 becomes 65535."""
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def test_grey_of_16_bits_is_the_same_grey_of_8(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    whole = Preprocessing(8, 32, 1, (0.5,), (0.5,))
    stored = Image.fromarray(pixels.astype(np.uint16) * 257)
    big_endian = Image.frombytes("I;16B", (32, 8), np.asarray(stored).astype(">u2").tobytes())
    dark_is_high = Image.fromarray(65535 - np.asarray(stored))
    for name, data in {
        "x.png": encoded(stored, "PNG"),
        "x.tif": encoded(stored, "TIFF"),
        "packed.tif": encoded(stored, "TIFF", compression="tiff_lzw"),
        "big-endian.tif": encoded(big_endian, "TIFF"),
        "white-is-zero.tif": encoded(dark_is_high, "TIFF", tiffinfo={262: 0}),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(whole.decode(tmp_path / name)[..., 0], pixels), name
        assert read_header(tmp_path / name).grey
        assert np.array_equal(whole.decode(Image.open(tmp_path / name))[..., 0], pixels), name
    rounded = Image.fromarray(np.array([[0, 128, 129, 65406, 65407, 65535]], np.uint16))
    row = Preprocessing(1, 6, 1, (0.5,), (0.5,)).decode(encoded(rounded, "PNG"))
    assert row.ravel().tolist() == [0, 0, 1, 254, 255, 255]


def test_a_transparent_grey_is_put_on_black_with_16_bits_as_with_8(tmp_path: Path) -> None:
    row = Preprocessing(1, 4, 1, (0.5,), (0.5,))
    for bits, values, hidden, seen in (
        (8, np.array([0, 128, 129, 255], np.uint8), 128, [0, 0, 129, 255]),
        (16, np.array([0, 0x8000, 0x8001, 65535], ">u2"), 0x8000, [0, 0, 128, 255]),
    ):
        head = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
        data = png_chunks(head, b"\0" + values.tobytes(), transparent=struct.pack(">H", hidden))
        assert row.decode(data).ravel().tolist() == seen
        assert read_header(data).grey
        opened = Image.open(io.BytesIO(data))
        opened.load()
        assert row.decode(opened).ravel().tolist() == seen


def png_with(chunks: list[tuple[bytes, bytes]], behind: bool) -> bytes:
    """A picture with these chunks before or behind its pixels."""
    plain = encoded(scene(), "PNG")
    place = plain.index(b"IEND") - 4 if behind else plain.index(b"IDAT") - 4
    added = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return plain[:place] + added + plain[place:]


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("chunk", "turns"),
    [
        ((b"eXIf", EXIF_6.removeprefix(b"Exif\0\0")), True),
        ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), True),
        ((b"tEXt", b"Raw profile type exif\0\nexif\n  26\n" + EXIF_6.hex().encode()), True),
        ((b"tEXt", b"date:create\x002020-01-01"), False),
        ((b"tEXt", b""), False),
        ((b"ruBB", b"XML:com.adobe.xmp\0"), False),
    ],
)
def test_the_head_of_a_png_file_is_read_without_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: tuple[bytes, bytes], turns: bool, behind: bool
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_with([chunk], behind))
    decoded: list[int] = []
    load_end = PngImageFile.load_end
    monkeypatch.setattr(PngImageFile, "load_end", lambda self: (decoded.append(1), load_end(self))[1])
    header = read_header(path)
    assert (header.width, header.height) == (HEIGHT, WIDTH) if turns else (WIDTH, HEIGHT)
    assert bool(decoded) == (turns and behind), "what stands behind the pixels is read by decoding them"
    upright_picture = upright(open_image(path))
    assert upright_picture.size == (header.width, header.height), "as prediction turns it"


def test_heads_of_cut_png_files_are_read_or_refused(tmp_path: Path) -> None:
    whole = png_with([(b"eXIf", EXIF_6.removeprefix(b"Exif\0\0"))], behind=True)
    for end in range(0, len(whole), 7):
        (tmp_path / "a.png").write_bytes(whole[:end])
        with contextlib.suppress(InvalidInputError):
            read_header(tmp_path / "a.png")


def test_16_bits_keep_their_orientation(tmp_path: Path) -> None:
    """What a camera stored upside down is seen upright."""
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = sixteen(scene()).transpose(Image.Transpose.ROTATE_180)
    for name in ("x.png", "x.tif"):
        stored.save(tmp_path / name, exif=exif)
        assert np.array_equal(quarters(TARGET.decode(tmp_path / name)), GREYS)


def test_colours_of_16_bits_are_those_of_8() -> None:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in PIXELS_8)
    data = png_chunks(struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0), rows)
    whole = Preprocessing(2, 4, 3, (0.5,) * 3, (0.5,) * 3)
    assert np.array_equal(whole.decode(data), PIXELS_8)


def test_orientation_is_unheeded_by_what_was_trained_before_it_was() -> None:
    block = TARGET.to_json()
    assert block["exif"] is True
    del block["exif"]
    before = Preprocessing.from_json(block)
    assert not before.exif
    assert "exif" not in before.to_json()
    assert np.array_equal(quarters(before.decode(turned("PNG", 3))), COLOURS[::-1])


def test_a_picture_of_24_megapixels_needs_no_more_memory_than_one_of_16(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    scene(6000, 4000).save(path, quality=60)
    assert JPEG_PIXELS < 6000 * 4000
    code = (
        "import resource, sys; from smash_base.images import open_image; import PIL.JpegImagePlugin;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; picture = open_image(sys.argv[1]);"
        "print(*picture.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    width, height, megabytes = map(int, done.stdout.split())
    assert (width, height) == (3000, 2000)
    assert megabytes < JPEG_PIXELS * 3 / 2**20


@pytest.mark.parametrize("turn", [1, 6])
def test_large_photos_are_scaled_and_turned(
    turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", "200")
    path = tmp_path / "photo.jpg"
    path.write_bytes(turned("JPEG", turn))
    picture = open_image(path)
    assert picture.width * picture.height <= 200
    assert np.abs(quarters(TARGET.decode(path)) - COLOURS).max() <= 40


def test_the_limit_is_settable_and_named_where_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    png = encoded(scene(), "PNG")
    monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", "900")
    with pytest.raises(InvalidInputError, match="SMASH_EXPORT_MAX_PIXELS"):
        open_image(png)
    monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", "960")
    assert open_image(png).size == (WIDTH, HEIGHT)
    for wrong in ("0", "-1", "16M", "9" * 30):
        monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", wrong)
        with pytest.raises(UsageError, match="SMASH_EXPORT_MAX_PIXELS"):
            open_image(png)


def test_a_progressive_jpeg_whose_coefficients_would_fill_the_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", "150")
    plain, progressive = (encoded(scene(), "JPEG", subsampling=0, progressive=on) for on in (False, True))
    assert open_image(plain).size == (WIDTH // 4, HEIGHT // 4)
    with pytest.raises(InvalidInputError, match="too many pixels"):
        open_image(progressive)


def test_a_strip_of_one_pixel_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", (1, 60_000), (9, 90, 9)).save(path)
    assert (TARGET.decode(path)[..., 1] == 90).all()


def test_truncated_lazy_picture_is_a_clean_error() -> None:
    with pytest.raises(InvalidInputError, match="damaged or truncated"):
        TARGET.decode(Image.open(io.BytesIO(encoded(scene(200, 200), "JPEG")[:-300])))


def test_a_picture_that_nobody_decoded_is_read_as_its_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(turned("JPEG", 6))
    monkeypatch.setenv("SMASH_EXPORT_MAX_PIXELS", "500")
    for opened in (path, io.BytesIO(path.read_bytes())):
        with Image.open(opened) as lazy:
            assert np.array_equal(TARGET.decode(lazy), TARGET.decode(path))
            assert lazy.tile, "not decoded, and of the same size, for whoever opened it"
            assert lazy.width * lazy.height == WIDTH * HEIGHT
            lazy.load()
            assert np.abs(quarters(TARGET.decode(lazy)) - COLOURS).max() <= 12
    for kind, words in (("PNG", "too many pixels"), ("PPM", "too many pixels"), ("TIFF", "too many pixels")):
        with pytest.raises(InvalidInputError, match=words):
            TARGET.decode(Image.open(io.BytesIO(encoded(scene(), kind))))


def test_what_was_asked_of_a_picture_before_it_was_decoded_is_heeded() -> None:
    moves = encoded(Image.new("RGB", (WIDTH, HEIGHT)), "GIF", save_all=True, append_images=[scene()])
    second = Image.open(io.BytesIO(moves))
    second.seek(1)
    assert np.abs(quarters(TARGET.decode(second)) - COLOURS).max() <= 12
    grey = Image.open(io.BytesIO(READ["jpeg"]))
    grey.draft("L", grey.size)
    assert np.abs(quarters(TARGET.decode(grey)) - GREYS).max() <= 12
    with pytest.raises(InvalidInputError, match="animated"):
        TARGET.decode(Image.open(io.BytesIO(encoded(scene(), "PNG", **moving()))))
    assert np.array_equal(quarters(TARGET.decode(Image.open(io.BytesIO(encoded(scene(), "PPM"))))), COLOURS)


def veiled(mode: str) -> Image.Image:
    """A picture of random colours, partly transparent where the mode can say so."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8))
    if mode in ("RGBA", "LA"):
        return picture.convert(mode)
    plain = picture.convert("RGB")
    if mode == "P":
        plain = plain.quantize(16)
        plain.info["transparency"] = 3
        return plain
    plain = plain.convert(mode)
    if mode == "L":
        plain.info["transparency"] = 77
    return plain


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "CMYK", "YCbCr", "1"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_large_pictures_are_converted_in_bands_to_the_same_pixels(
    mode: str, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = veiled(mode)
    at_once = np.asarray(converted(picture, wanted))
    for pixels in (1, 5 * WIDTH):
        monkeypatch.setattr(images, "BAND_PIXELS", pixels)
        assert np.array_equal(np.asarray(converted(picture, wanted)), at_once)


def test_transparency_of_a_large_picture_takes_no_second_one_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGBA", (4000, 3000), (9, 90, 9, 128)).save(path, compress_level=1)
    code = (
        "import resource, sys; from smash_base.images import open_image;"
        "from smash_base.preprocess import Preprocessing; picture = open_image(sys.argv[1]);"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "Preprocessing(8, 8, 3, (0.0,) * 3, (1.0,) * 3).decode(picture);"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    assert int(done.stdout) < 1.2 * 4000 * 3000 * 4 / 2**20  # the colours, and one band


@pytest.mark.parametrize("name", ["none.png", "", "nul\0byte.png", "x" * 300])
def test_paths_that_lead_nowhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        open_image(os.path.join(tmp_path, name))


def test_a_header_of_many_pixels_is_refused_before_anything_is_allocated() -> None:
    data = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 200_000, 200_000)
    with pytest.raises(InvalidInputError, match="too many pixels"):
        open_image(bytes(data))


# Folders ---------------------------------------------------------------------------------------


def listed(folder: Path) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    left_out = LeftOut()
    names = [os.path.relpath(path, folder) for path in image_files(folder, left_out)]
    return names, {
        item.reason: tuple(os.path.relpath(name, folder) for name in item.names)
        for item in left_out.omissions()
    }


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_every_suffix_of_a_photo_is_listed_and_the_rest_is_named(tmp_path: Path) -> None:
    photos = ["a.JPG", "b.jfif", "c.jpe", "d.gif", "e.tif", "f.TIFF", "g.webp", "h/i.png"]
    touch(*(tmp_path / name for name in (*photos, "notes.txt", "raw.cr2", ".hidden.png", "h/.DS_Store")))
    found, left_out = listed(tmp_path)
    assert found == photos
    assert left_out == {
        "files of other formats": ("notes.txt", "raw.cr2"),
        "hidden files or folders": (".hidden.png", "h/.DS_Store"),
    }


def test_linked_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/1.png", tmp_path / "photos/2.png")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/circle").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/broken.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "photos/pipe.png")  # whoever opens it waits for ever
    found, left_out = listed(tmp_path / "photos")
    assert found == ["2.png", "linked/1.png"]
    assert left_out == {
        "links back to a folder above": ("circle",),
        "names that lead to no file": ("broken.png", "pipe.png"),
    }


def test_a_folder_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder may be entered by its user only
        folder = Path(name)
        folder.chmod(0o755)
        touch(folder / "open/1.png", folder / "shut/2.png")
        (folder / "shut").chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may read everything
        try:
            found, left_out = listed(folder)
        finally:
            if root:
                os.seteuid(0)
            (folder / "shut").chmod(0o755)
    assert found == ["open/1.png"]
    assert left_out == {"folders that cannot be read": ("shut",)}


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"), "wb"):
        pass
    _, left_out = listed(tmp_path)
    assert left_out["files of other formats"] == ("caf\\udce9.txt",)
