"""The one preprocessing: what it reads, what it refuses, and that numpy and torch agree bit by bit."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from smash_base.errors import InvalidInputError
from smash_base.files import parse_json
from smash_base.images import MAX_FILE_BYTES, open_image
from smash_base.preprocess import (
    Preprocessing,
    present_classes,
    probabilities_of,
    softmax,
    with_none,
)

COLOUR = Preprocessing(6, 8, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GREY = Preprocessing(6, 8, 1, (0.3,), (0.38,))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_path_bytes_picture_and_array_give_the_same_pixels(tmp_path):
    picture = Image.fromarray(PIXELS)
    path = tmp_path / "image.png"
    picture.save(path)
    for image in (path, str(path), path.read_bytes(), picture, PIXELS):
        assert np.array_equal(COLOUR.decode(image), PIXELS)
    assert np.array_equal(GREY.decode(path)[..., 0], np.asarray(picture.convert("L")))


def test_transparency_is_put_on_black_in_every_form():
    alpha = np.zeros((6, 8, 4), np.uint8)
    alpha[..., :3], alpha[:, :4, 3] = PIXELS, 255
    want = PIXELS.copy()
    want[:, 4:] = 0
    assert np.array_equal(COLOUR.decode(encoded(Image.fromarray(alpha))), want)
    assert np.array_equal(COLOUR.decode(alpha), want)
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert (COLOUR.decode(encoded(palette)) == [200, 100, 50]).all()
    assert not COLOUR.decode(encoded(palette, transparency=1)).any()
    assert not GREY.decode(encoded(Image.new("LA", (8, 6), (200, 0)))).any()
    assert (GREY.decode(encoded(Image.new("1", (8, 6), 1))) == 255).all()


def test_another_size_is_resized():
    assert COLOUR.decode(encoded(Image.fromarray(PIXELS).resize((20, 31)))).shape == (6, 8, 3)


def bomb() -> bytes:
    """A valid PNG header for 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"just text", "not an image"),
        (b"GIF89a" + bytes(50), "not an image|damaged"),
        (encoded(Image.fromarray(PIXELS))[:-30], "damaged|truncated"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:-40], "truncated"),
        (encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16))), "16 bits and would be all but black"),
        (animation("PNG"), "animated"),
        (animation("WEBP"), "animated"),
        (bomb(), "too many pixels"),
        (bytes(MAX_FILE_BYTES + 1), "too large"),
    ],
)
def test_refused_images(data, message, tmp_path):
    with pytest.raises(InvalidInputError, match=message):
        COLOUR.decode(data)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=message):
        COLOUR.decode(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InvalidInputError, match=r"does not exist|is a folder"):
            open_image(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_an_image_or_a_clean_error(data):
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInputError):
        assert COLOUR.decode(bytes(whole)).shape == (6, 8, 3)


FILES = [encoded(Image.fromarray(PIXELS), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]


@pytest.mark.parametrize(
    "array", [PIXELS.astype(np.float32), PIXELS[..., :2], PIXELS[0, 0], np.empty((0, 8, 3), np.uint8)]
)
def test_refused_arrays(array):
    with pytest.raises(InvalidInputError, match="array"):
        COLOUR.decode(array)


def test_volumes_and_other_channel_counts_are_arrays_only():
    volume = Preprocessing(4, 4, 1, (0.5,), (0.5,), depth=4)
    assert volume.decode(np.zeros((4, 4, 4, 1), np.uint8)).shape == (4, 4, 4, 1)
    assert volume.input_shape == (1, 4, 4, 4)
    for target in (volume, Preprocessing(6, 8, 5, (0.5,) * 5, (0.5,) * 5)):
        with pytest.raises(InvalidInputError, match="this network takes"):
            target.decode(Image.fromarray(PIXELS))


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(6), st.just(8), st.just(3))),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(1e-3, 1)] * 3),
)
def test_numpy_and_torch_normalise_to_the_same_bits(images, mean, std):
    target = Preprocessing(6, 8, 3, mean, std)
    ours, theirs = target.normalise(images), target.normalise(torch.from_numpy(images))
    assert ours.dtype == np.float32
    assert ours.shape == (len(images), 3, 6, 8)
    assert np.array_equal(ours.view(np.uint32), theirs.numpy().view(np.uint32))
    want = (np.moveaxis(images, -1, 1) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert np.allclose(ours, want, atol=1e-3)


def test_a_batch_is_decoded_and_normalised():
    assert np.array_equal(COLOUR.batch([PIXELS, PIXELS])[1], COLOUR.normalise(PIXELS[None])[0])


@given(
    st.integers(1, 4096),
    st.integers(1, 4096),
    st.sampled_from(["bilinear", "box"]),
    st.none() | st.integers(1, 64),
)
def test_json_round_trip(height, width, resize, depth):
    import json

    block = Preprocessing(height, width, 2, (0.1, 1 / 3), (0.2, 0.7), resize, depth)
    assert Preprocessing.from_json(parse_json(json.dumps(block.to_json()))) == block


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0}, {"height": True}, {"width": 5000}, {"channels": 2}, {"mean": [0.1]}, {"mean": "abc"},
        {"std": [0.0, 1, 1]}, {"std": [float("nan"), 1, 1]}, {"resize": "lanczos"}, {"depth": 0},
        {"extra": 1}, {"mean": [True, 0, 0]}, {"resize": ["box"]}, {"std": [10**400, 1, 1]},
    ],
)  # fmt: skip
def test_wrong_json(change):
    with pytest.raises(InvalidInputError, match="preprocessing"):
        Preprocessing.from_json({**COLOUR.to_json(), **change})


def test_missing_key_and_no_object():
    block = COLOUR.to_json()
    del block["mean"]
    for value in (block, [], None, "x"):
        with pytest.raises(InvalidInputError, match="preprocessing"):
            Preprocessing.from_json(value)


def test_softmax_is_stable():
    result = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], dtype=np.float32))
    assert np.allclose(result, [[1, 0], [0.5, 0.5]])
    assert result.dtype == np.float32


def noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 64), (33, 1000)])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_short_side_and_centre_are_those_of_torchvision(size: tuple[int, int], resize: str) -> None:
    """Resize(73) and CenterCrop(64) written out: sides are cut to whole pixels, offsets rounded."""
    picture = noise(size)
    wide, high = size
    short, long = min(size), max(size)
    scaled = (73, int(73 * long / short)) if wide <= high else (int(73 * long / short), 73)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    whole = np.asarray(picture.resize(scaled, filters[resize]))
    top, left = round((scaled[1] - 64) / 2.0), round((scaled[0] - 64) / 2.0)
    block = Preprocessing(64, 64, 3, (0.5,) * 3, (0.5,) * 3, resize=resize, short_side=73)  # type: ignore[arg-type]
    np.testing.assert_array_equal(block.decode(picture), whole[top : top + 64, left : left + 64])


def test_an_array_of_the_samples_shape_is_a_sample_with_and_without_its_one_channel() -> None:
    block = Preprocessing(16, 16, 1, (0.5,), (0.5,), short_side=20)
    sample = block.decode(noise((40, 30)).convert("L"))
    np.testing.assert_array_equal(block.decode(sample), sample)
    np.testing.assert_array_equal(block.decode(sample[..., 0]), sample)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 64), (90, 640)])
@pytest.mark.parametrize(
    ("width", "height", "short"), [(64, 64, 73), (64, 48, 64), (40, 64, 50), (96, 32, 64)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_of_a_sample_is_decoded_to_that_sample(
    size: tuple[int, int], width: int, height: int, short: int, channels: int
) -> None:
    block = Preprocessing(height, width, channels, (0.5,) * channels, (0.5,) * channels, short_side=short)
    sample = block.decode(noise(size))
    np.testing.assert_array_equal(block.decode(block.picture_of(sample)), sample)
    plain = replace(block, short_side=None)
    np.testing.assert_array_equal(plain.decode(plain.picture_of(sample)), sample)


def test_what_the_centre_lacks_is_black() -> None:
    block = Preprocessing(8, 16, 1, (0.0,), (1.0,), short_side=8)
    pixels = block.decode(Image.new("L", (10, 10), 200))[..., 0]
    assert (pixels[:, 4:12] == 200).all()
    assert not pixels[:, :4].any()
    assert not pixels[:, 12:].any()


def test_a_strip_that_would_become_endless_is_refused() -> None:
    block = Preprocessing(8, 8, 1, (0.0,), (1.0,), short_side=64)
    with pytest.raises(InvalidInputError, match="too long"):
        block.decode(Image.new("L", (1, 2000)))


@pytest.mark.parametrize("short_side", [None, 8])
@pytest.mark.parametrize(("mode", "size"), [("L", (0, 5)), ("RGB", (0, 0)), ("I;16", (5, 0))])
def test_a_picture_without_pixels_is_refused(
    short_side: int | None, mode: str, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(8, 8, 1, (0.5,), (0.5,), short_side=short_side)
    with pytest.raises(InvalidInputError, match=f"no pixels.*received {size[0]}x{size[1]}"):
        preprocessing.decode(Image.new(mode, size))


def test_bgr_turns_the_channels_and_nothing_else() -> None:
    torch = pytest.importorskip("torch")
    rgb = Preprocessing(4, 4, 3, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    bgr = Preprocessing(4, 4, 3, (0.3, 0.2, 0.1), (0.7, 0.6, 0.5), order="BGR")
    picture = noise((4, 4))
    np.testing.assert_array_equal(rgb.decode(picture), bgr.decode(picture))
    samples = bgr.decode(picture)[None]
    np.testing.assert_array_equal(bgr.normalise(samples), rgb.normalise(samples)[:, ::-1])
    np.testing.assert_allclose(
        bgr.normalise(torch.from_numpy(samples.copy())), bgr.normalise(samples), atol=1e-6
    )


def test_blocks_without_the_newer_fields_stay_as_they_were() -> None:
    old = {"height": 8, "width": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    block = Preprocessing.from_json(old)
    assert (block.short_side, block.order) == (None, "RGB")
    assert set(block.to_json()) == {*old, "resize", "depth"}
    newer = {**old, "short_side": 9, "order": "BGR"}
    assert Preprocessing.from_json(Preprocessing.from_json(newer).to_json()).to_json() == {
        **block.to_json(),
        "short_side": 9,
        "order": "BGR",
    }
    for wrong in ({"short_side": 0}, {"order": "GBR"}, {"short_side": True}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            Preprocessing.from_json({**old, **wrong})
    with pytest.raises(InvalidInputError, match="BGR of three"):
        Preprocessing(8, 8, 1, (0.5,), (0.5,), order="BGR")


def test_each_kind_of_answers_becomes_probabilities_once() -> None:
    answers = np.array([[0.1, 0.7, 0.2]], dtype=np.float32)
    np.testing.assert_array_equal(probabilities_of(answers), softmax(answers))
    np.testing.assert_array_equal(probabilities_of(answers, "probabilities"), answers)
    np.testing.assert_array_equal(probabilities_of(answers * 1.5, "sigmoid"), [np.float32([0.15, 1.0, 0.3])])
    assert present_classes(np.array([0.5, 0.2, 0.9])) == [2, 0]


def test_no_class_is_an_answer_where_some_image_has_none() -> None:
    probabilities = np.array([[0.5, 0.1], [0.4, 0.3], [0.2, 0.9]])
    assert with_none(probabilities, np.array([0, 2, 1])).argmax(1).tolist() == [0, 2, 1], "from one half on"
    assert with_none(probabilities, np.array([0, 1, 1])) is probabilities
    assert with_none(probabilities).shape == (3, 3)
