"""A static folder in a real Chromium: pictures are prepared and classified there as they are in Python."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smash_base.preprocess import Preprocessing
from smash_export import cli, load
from smash_export.bundle.bundle import Bundle
from smash_export.deploy.web import RUNTIME
from tests.smash_export.chromium import chromium
from tests.smash_export.each_class import each_class_by_itself

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = Path(os.environ.get("SMASH_EXPORT_ONNXRUNTIME_WEB", ROOT / ".npm" / "package"))


@contextlib.contextmanager
def served(bundle: Path, out: Path) -> Iterator[str]:
    """Address of the folder that ``smash-export web`` writes for a bundle."""
    if not (PACKAGE / "dist" / RUNTIME[0]).is_file():
        pytest.skip("the npm package onnxruntime-web is not here")
    assert cli.run(["web", str(bundle), str(out), "--runtime", str(PACKAGE), "-q"]) == 0
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def address(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(digits_bundle, tmp_path_factory.mktemp("web") / "page") as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@dataclass(frozen=True)
class Answer:
    """What the page says of a picture: probability of each label that it shows, the labels that it marks,
    and its sentence below them.
    """

    probabilities: dict[str, float]
    marked: list[str]
    said: str


def answers(browser: Any, address: str, paths: list[Path]) -> list[Answer]:
    """What a new page says of each picture, in order."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    ready = WebDriverWait(browser, 30, poll_frequency=0.05)
    ready.until(lambda _: browser.find_element("id", "status").text == "ready")
    browser.find_element("id", "file").send_keys("\n".join(map(str, paths)))
    wait = WebDriverWait(browser, 30, poll_frequency=0.05)
    wait.until(lambda _: len(browser.find_elements("css selector", "#results > li")) == len(paths))
    wait.until(lambda _: browser.find_element("id", "status").text == "ready")
    script = """
        const rows = (item, chosen) => [...item.querySelectorAll("ol li" + chosen)].map((row) => row.dataset);
        return [...document.querySelectorAll("#results > li")].reverse().map((item) => [
            Object.fromEntries(rows(item, "").map((data) => [data.label, +data.probability])),
            rows(item, ".there").map((data) => data.label),
            item.querySelector("p")?.textContent ?? ""]);
    """
    return [Answer(*found) for found in browser.execute_script(script)]


@pytest.mark.slow
def test_a_browser_answers_as_predict_does(
    address: str, browser: Any, digits_bundle: Path, digits_images: Any, tmp_path: Path
) -> None:
    paths = []
    for index, image in enumerate(digits_images[0][:3]):
        picture = Image.fromarray(image[:, :, 0])
        picture.save(tmp_path / f"{index}.png")  # as large as the network takes
        picture.resize((97, 61), Image.Resampling.BICUBIC).convert("RGB").save(
            tmp_path / f"{index}-large.png"
        )
        paths += [tmp_path / f"{index}.png", tmp_path / f"{index}-large.png"]
    for seed in range(8):  # of no digit
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"noise-{seed}.png")
        paths.append(tmp_path / f"noise-{seed}.png")
    with load(digits_bundle) as classifier:
        expected = classifier.predict([str(path) for path in paths], top_k=5)
    assert {answer.doubtful for answer in expected} == {True, False}
    for found, answer in zip(answers(browser, address, paths), expected, strict=True):
        assert found.marked == [answer.label]
        assert abs(found.probabilities[answer.label] - answer.probability) < 0.02  # a byte may differ by one
        assert found.said == ("perhaps none of the classes" if answer.doubtful else "")
    outside = [
        url
        for entry in browser.get_log("performance")
        if (url := json.loads(entry["message"])["message"]["params"].get("request", {}).get("url", ""))
        and url.startswith("http")  # not Chromium's own pages
        and not url.startswith(address)
    ]
    assert outside == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_every_class_that_is_there_is_marked_where_classes_do_not_exclude_each_other(
    browser: Any, digits_bundle: Path, tmp_path: Path
) -> None:
    bundle = each_class_by_itself(digits_bundle, tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    images = [*Bundle.open(bundle).samples().images, *noise]
    with load(bundle) as classifier:
        expected = [[score.label for score in answer.present or ()] for answer in classifier.predict(images)]
    one_each = {len(labels): number for number, labels in enumerate(expected)}
    assert {0, 1, 2, 3} <= set(one_each)
    paths = [tmp_path / f"{count}.png" for count in one_each]
    for number, path in zip(one_each.values(), paths, strict=True):
        Image.fromarray(images[number][:, :, 0]).save(path)
    with served(bundle, tmp_path / "page") as address:
        found = answers(browser, address, paths)
    assert [answer.marked for answer in found] == [expected[number] for number in one_each.values()]
    for count, answer in zip(one_each, found, strict=True):
        assert answer.said == ("" if count else "none of the classes")
        assert len(answer.probabilities) == max(5, count), "the best are shown in any case"


SCRIPT = """
const [bytes, preprocessing, done] = arguments;
const { decode } = await import("./picture.mjs");
done(Array.from(await decode(new Blob([new Uint8Array(bytes)]), preprocessing)));
"""


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "box", "nearest"])
@pytest.mark.parametrize("short_side", [None, 24])
def test_pictures_become_the_bytes_that_pillow_makes(
    resize: Any, short_side: int | None, address: str, browser: Any, tmp_path: Path
) -> None:
    browser.get(address)
    random = np.random.default_rng(0)
    rough = Image.fromarray(random.integers(0, 256, (9, 7, 3), np.uint8)).resize(
        (61, 43), Image.Resampling.BICUBIC
    )
    path = tmp_path / "picture.png"
    rough.save(path)
    for channels in (1, 3):
        preprocessing = Preprocessing(
            20, 22, channels, (0.5,) * channels, (0.5,) * channels, resize, short_side=short_side
        )
        script = f"(async (...arguments) => {{ {SCRIPT} }})(...arguments)"
        found = browser.execute_async_script(script, list(path.read_bytes()), preprocessing.to_json())
        expected = preprocessing.decode(path).astype(int).reshape(-1)
        assert np.abs(np.array(found) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "XMP in JPEG", "XMP in WEBP"])
def test_pictures_are_turned_as_python_turns_them(
    kind: str, exif: bool, address: str, browser: Any, tmp_path: Path
) -> None:
    browser.get(address)
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    picture = rough.resize((24, 16), Image.Resampling.BICUBIC)
    preprocessing = Preprocessing(12, 12, 3, (0.5,) * 3, (0.5,) * 3, exif=exif)
    script = f"(async (...arguments) => {{ {SCRIPT} }})(...arguments)"
    seen = set()
    for turn in range(1, 9):
        tag = Image.Exif()
        tag[0x010F], tag[0x0112] = "a maker", turn
        xmp = f'<rdf:Description tiff:Orientation="{turn}"/>'.encode()
        told: dict[str, Any] = {"xmp": xmp} if kind.startswith("XMP") else {"exif": tag}
        path = tmp_path / f"{turn}.picture"
        picture.save(path, kind.split()[-1], quality=95, lossless=True, **told)
        found = browser.execute_async_script(script, list(path.read_bytes()), preprocessing.to_json())
        expected = preprocessing.decode(path).astype(int).reshape(-1)
        assert np.abs(np.array(found) - expected).max() <= 2, turn  # decoders of JPEG differ by one
        seen.add(expected.tobytes())
    assert len(seen) == (8 if exif else 1)


def test_without_the_package_one_line_with_the_command(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["web", str(digits_bundle), str(tmp_path / "page"), "--runtime", str(tmp_path)]
    assert cli.run(words) == 3
    assert "npm install onnxruntime-web" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_dry_run_refuses_a_folder_that_is_there(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime, out = tmp_path / "onnxruntime-web", tmp_path / "page"
    for folder in (runtime, out):
        folder.mkdir()
    for name in RUNTIME:
        (runtime / name).touch()
    (out / "model.json").touch()
    words = ["web", str(digits_bundle), str(out), "--runtime", str(runtime), "--dry-run"]
    assert cli.run(words) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.run([*words, "--force"]) == 0
