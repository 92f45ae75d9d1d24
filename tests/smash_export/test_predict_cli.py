"""``smash-export predict``: one bad file spoils neither the others nor the format of the output."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from smash_export.bundle.bundle import Bundle
from smash_export.cli import cli, run
from tests.conftest import DOUBT_BELOW

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def images(digits_images: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> Path:
    """Five images, one of them in a folder of its own."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for index in range(4):
        Image.fromarray(digits_images[0][index, :, :, 0]).save(folder / f"{index}.png")
    Image.fromarray(digits_images[0][4, :, :, 0]).save(folder / "more" / "0.png")
    return folder


@pytest.fixture
def expected(digits_bundle: Path) -> list[str]:
    return [str(index) for index in Bundle.open(digits_bundle).samples().logits[:5].argmax(axis=1)]


def test_one_image_is_shown_with_its_classes(
    digits_bundle: Path, images: Path, expected: list[str], capsys: Capture
) -> None:
    assert run(["predict", str(digits_bundle), str(images / "0.png"), "--top-k", "3"]) == 0
    captured = capsys.readouterr()
    assert f"0.png: {expected[0]} (" in captured.out
    assert captured.out.count("%") == 3
    assert "using onnxruntime fp32" in captured.err


def test_many_images_are_a_line_each(
    digits_bundle: Path, images: Path, expected: list[str], capsys: Capture
) -> None:
    assert run(["predict", str(digits_bundle), str(images), "-q"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == expected
    assert captured.err == ""


def test_json_is_one_document(
    digits_bundle: Path, images: Path, expected: list[str], capsys: Capture
) -> None:
    assert run(["predict", str(digits_bundle), str(images / "*.png"), str(images / "more"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [item["label"] for item in document["predictions"]] == expected
    assert (document["answered"], document["failed"]) == (5, 0)
    assert document["target"] == "onnxruntime"
    first = document["predictions"][0]
    assert len(first["top"]) == 5
    assert first["milliseconds"] > 0
    assert first["source"] == str(images / "0.png")


def test_csv_has_a_header_and_a_row_for_each(
    digits_bundle: Path, images: Path, expected: list[str], capsys: Capture
) -> None:
    odd = images / 'comma, "quote".png'
    (images / "0.png").rename(odd)
    assert run(["predict", str(digits_bundle), str(odd), str(images / "1.png"), "--csv", "-k", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == expected[:2]
    assert rows[0]["source"] == str(odd)
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])


def test_text_and_table_say_which_images_are_perhaps_of_no_class(
    digits_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    random = np.random.default_rng(0)
    for number in range(20):
        noise = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number:02}.png")
    assert run(["predict", str(digits_bundle), str(tmp_path), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    doubtful = [float(row["probability"]) < DOUBT_BELOW for row in rows]
    assert set(doubtful) == {True, False}
    assert [row["doubtful"] for row in rows] == [str(doubt).lower() for doubt in doubtful]
    assert run(["predict", str(digits_bundle), str(tmp_path), "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["perhaps none of the classes" in line for line in lines] == doubtful
    one = rows[doubtful.index(True)]["source"]
    assert run(["predict", str(digits_bundle), one, "-q"]) == 0
    assert "perhaps none of the classes" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--json", "--csv", "-q"])
def test_a_bad_file_gets_its_error_and_the_others_their_answers(
    digits_bundle: Path, images: Path, expected: list[str], capsys: Capture, form: str
) -> None:
    (images / "1a.png").write_bytes((images / "1.png").read_bytes()[:-25])
    empty = images / "empty"
    empty.mkdir()
    assert run(["predict", str(digits_bundle), str(images), str(empty), "absent.png", form]) == 6
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert sum("1a.png is damaged or truncated" in line for line in errors) == 1
    assert sum("empty holds no images" in line for line in errors) == 1
    assert sum("absent.png does not exist" in line for line in errors) == 1
    assert "3 of 8 images could not be read" in errors[-1]
    if form == "--json":
        document = json.loads(captured.out)
        answers = [item["label"] for item in document["predictions"] if "label" in item]
        assert (document["answered"], document["failed"]) == (5, 3)
        assert sum("error" in item for item in document["predictions"]) == 3
    elif form == "--csv":
        rows = list(csv.DictReader(io.StringIO(captured.out)))
        answers = [row["label"] for row in rows if not row["error"]]
        assert len(rows) == 8
    else:
        answers = [line.split(": ")[1].split()[0] for line in captured.out.splitlines()]
    assert answers == expected


def test_answers_below_the_threshold_are_uncertain(
    digits_bundle: Path, images: Path, capsys: Capture
) -> None:
    path = str(images / "0.png")
    assert run(["predict", str(digits_bundle), path, "--json", "--threshold", "1"]) == 0
    item = json.loads(capsys.readouterr().out)["predictions"][0]
    assert item["label"] is None
    assert item["top"][0]["label"] == str(item["index"])
    assert run(["predict", str(digits_bundle), path, "--csv", "--threshold", "1"]) == 0
    assert "uncertain" in capsys.readouterr().out
    assert run(["predict", str(digits_bundle), path, "--threshold", "1"]) == 0
    assert "uncertain" in capsys.readouterr().out
    assert run(["predict", str(digits_bundle), path, "--json", "--threshold", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] is not None


def test_annotated_copies_have_names_of_their_own(digits_bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "annotated"
    arguments = ["predict", str(digits_bundle), str(images), "--save-annotated", str(out)]
    assert run([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    assert run(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0-2.png", "0.png", "1.png", "2.png", "3.png"]
    with Image.open(out / "0.png") as picture:
        assert picture.width >= 192
        assert picture.height > 192  # the labels stand below


def test_annotated_copies_replace_no_image(
    digits_bundle: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    others = tmp_path / "others"
    shutil.copytree(images, others)
    before = {path: path.read_bytes() for path in others.rglob("*.png")}
    for words in (
        [str(others)],
        [str(others / "*.png")],
        [str(images), str(others)],
        [str(others / "0.png")],
    ):
        arguments = ["predict", str(digits_bundle), *words, "--save-annotated", str(others)]
        assert run(arguments) == 2
        assert "0.png is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in others.rglob("*.png")} == before
    copies = tmp_path / "copies"
    for _ in range(2):  # copies of an earlier run are replaced
        assert run(["predict", str(digits_bundle), str(others), "--save-annotated", str(copies)]) == 0


def test_annotated_copies_among_the_images_are_not_classified_themselves(
    digits_bundle: Path, images: Path, capsys: Capture
) -> None:
    out = images / "annotated"
    arguments = ["predict", str(digits_bundle), str(images), "--save-annotated", str(out), "--json"]
    for skipped in (0, 5):  # the second time those of the first are there
        assert run(arguments) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["answered"], len(list(out.iterdir()))) == (5, 5)
        assert sum(item["count"] for item in answer["left_out"]) == skipped


def test_wrong_use_is_refused(digits_bundle: Path, images: Path, tmp_path: Path) -> None:
    path = str(images / "0.png")
    assert run(["predict", str(digits_bundle)]) == 2
    assert run(["predict", str(digits_bundle), path, "--json", "--csv"]) == 2
    assert run(["predict", str(digits_bundle), path, "--top-k", "0"]) == 2
    assert run(["predict", str(digits_bundle), path, "--threshold", "2"]) == 2
    assert run(["predict", str(digits_bundle), path, "--target", "nonsense"]) == 2
    assert run(["predict", str(digits_bundle), path, "--precision", "int8"]) == 2
    assert run(["predict", str(tmp_path / "absent"), path]) == 6


def test_the_runner_of_click_sees_the_same(digits_bundle: Path, images: Path, expected: list[str]) -> None:
    result = CliRunner().invoke(cli, ["predict", str(digits_bundle), str(images / "2.png"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["predictions"][0]["label"] == expected[2]


def test_a_real_process_answers_and_leaves_with_the_documented_code(
    digits_bundle: Path, images: Path, expected: list[str]
) -> None:
    (images / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 20)
    done = subprocess.run(
        [sys.executable, "-m", "smash_export.cli", "predict", str(digits_bundle), str(images), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 6, done.stderr
    document = json.loads(done.stdout)
    assert [item["label"] for item in document["predictions"] if "label" in item] == expected
    assert "bomb.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_image_is_counted_and_named(
    digits_bundle: Path, images: Path, expected: list[str], capsys: Capture
) -> None:
    (images / "notes.txt").write_text("no image")
    (images / ".DS_Store").write_bytes(b"x")
    (images / "linked").symlink_to(images / "more")
    assert run(["predict", str(digits_bundle), str(images)]) == 0
    captured = capsys.readouterr()
    assert f"left out: 1 files of other formats: {images / 'notes.txt'}" in captured.err
    assert f"left out: 1 hidden files or folders: {images / '.DS_Store'}" in captured.err
    assert len(captured.out.splitlines()) == len(expected) + 1, "the linked folder is followed"
    assert run(["predict", str(digits_bundle), str(images), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {item["reason"]: item["count"] for item in document["left_out"]} == {
        "files of other formats": 1,
        "hidden files or folders": 1,
    }
    assert document["answered"] == len(expected) + 1


def test_bad_images_may_be_skipped(digits_bundle: Path, images: Path, capsys: Capture) -> None:
    (images / "bad.png").write_bytes(b"x")
    assert run(["predict", str(digits_bundle), str(images), "-q"]) == 6
    assert run(["predict", str(digits_bundle), str(images), "-q", "--skip-bad"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("bad.png") == 2, "named both times"
    assert "1 of 6 images could not be read; the others were answered" in captured.err
    assert run(["predict", str(digits_bundle), str(images / "bad.png"), "-q"]) == 6
    assert capsys.readouterr().err.endswith("1 of 1 images could not be read\n")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_names_that_no_encoding_writes_are_shown_and_stay_json(
    digits_bundle: Path, images: Path, expected: list[str], form: list[str], encoding: str
) -> None:
    odd = os.path.join(os.fsencode(images), b"caf\xe9.png")
    os.rename(images / "3.png", odd)
    smile = images / "\N{GRINNING FACE} \N{CYRILLIC SMALL LETTER ZHE}.png"
    (images / "2.png").rename(smile)
    done = subprocess.run(
        [sys.executable, "-m", "smash_export.cli", "predict", str(digits_bundle), str(images), *form],
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONIOENCODING": f"{encoding}:strict",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9.png" in done.stdout
    if "--json" in form:
        sources = [item["source"] for item in json.loads(done.stdout.decode(encoding))["predictions"]]
        assert {os.fsdecode(odd), str(smile)} <= set(sources), "the names lead to the files"
        assert len(sources) == len(expected)


def test_annotated_strips_are_not_blown_up(digits_bundle: Path, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    Image.new("L", (1, 20_000), 90).save(strip)
    folder = tmp_path / "annotated"
    assert run(["predict", str(digits_bundle), str(strip), "--save-annotated", str(folder), "-q"]) == 0
    with Image.open(folder / "strip.png") as picture:
        assert max(picture.size) < 1200


def test_phone_photos_are_classified_upright_unless_the_bundle_is_older(
    digits_bundle_copy: Path, images: Path, expected: list[str], capsys: Capture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    lying = Image.open(images / "0.png").transpose(Image.Transpose.ROTATE_180)
    lying.save(images / "phone.png", exif=exif)
    classifier_sees = {}
    for name in ("0.png", "phone.png"):
        assert run(["predict", str(digits_bundle_copy), str(images / name), "--json"]) == 0
        classifier_sees[name] = json.loads(capsys.readouterr().out)["predictions"][0]["probability"]
    assert classifier_sees["0.png"] == pytest.approx(classifier_sees["phone.png"])
    preprocessing = Bundle.open(digits_bundle_copy).preprocessing
    assert preprocessing.exif
    before = preprocessing.from_json({k: v for k, v in preprocessing.to_json().items() if k != "exif"})
    assert np.array_equal(
        before.decode(images / "phone.png"), preprocessing.decode(images / "0.png")[::-1, ::-1]
    )


def test_datasets_says_what_is_there_before_anything_is_trained(images: Path, capsys: Capture) -> None:
    for name in ("a", "b"):
        (images / "set" / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.full((4, 4), 20 * index + (name == "b"), np.uint8)
            Image.fromarray(pixels).save(images / "set" / name / f"{index}.png")
    (images / "set/a/bad.png").write_bytes(b"x")
    (images / "set/b/notes.txt").write_text("x")
    spec = f"folder:{images / 'set'}"
    assert run(["datasets", spec, "-q"]) == 6
    assert "bad.png" in capsys.readouterr().err
    assert run(["datasets", spec, "--skip-bad", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 24
    assert {item["name"]: item["total"] for item in document["classes"]} == {"a": 12, "b": 12}
    assert document["omitted"] == 2
    assert run(["datasets", spec, "--skip-bad", "-q"]) == 0
    assert "notes.txt" in capsys.readouterr().out.replace("\n", "")
