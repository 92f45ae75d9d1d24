"""The page in a real Chromium: a picture in, labels out; by keyboard; on a phone; no outside address."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

selenium = pytest.importorskip("selenium")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

from smash_export import Bundle, load  # noqa: E402
from smash_export.export.adopt import Images, adopt  # noqa: E402
from tests.smash_export.chromium import chromium  # noqa: E402

FLAGS = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--window-size=1000,900",
)
PICTURES = os.environ.get("SMASH_EXPORT_TEST_PICTURES")  # a folder to look at what was drawn


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium"), *FLAGS) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, server: Any) -> Any:
    browser.get(f"http://{server.host}:{server.port}/")
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#model option")) > 0)
    return browser


@pytest.fixture(scope="module")
def digit(
    tmp_path_factory: pytest.TempPathFactory, digits_images: tuple[np.ndarray, np.ndarray]
) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("page") / "digit.png"
    images, labels = digits_images
    Image.fromarray(images[0][:, :, 0]).resize((320, 320), Image.Resampling.NEAREST).save(path)
    return path, str(labels[0])


@pytest.fixture(scope="module")
def older(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as a bundle that heeds no EXIF orientation, with a card of its own."""
    bundle, samples = Bundle.open(digits_bundle), Bundle.open(digits_bundle).samples()
    assert bundle.torchscript is not None
    return adopt(
        bundle.torchscript,
        tmp_path_factory.mktemp("older") / "bundle",
        labels=bundle.labels,
        preprocessing=replace(bundle.preprocessing, exif=False),
        images=Images(samples.images, samples.labels, None, {}),
    ).bundle.path


@pytest.fixture(scope="module")
def narrow(older: Path, digits_bundle: Path, start: Any) -> Iterator[Any]:
    """Two versions behind narrow limits: 5 images and 1 MiB in one request."""
    limits = ("--max-body", "1", "--queue-size", "5", "--no-grpc", "--drain-delay", "0")
    with start(f"digits:1={older}", f"digits:2={digits_bundle}", *limits) as server:
        yield server


@pytest.fixture
def narrow_page(browser: Any, narrow: Any) -> Any:
    browser.get(f"http://{narrow.host}:{narrow.port}/")
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#model option")) == 2)
    return browser


def wait(browser: Any, condition: Any) -> None:
    WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda _: condition())


def status(browser: Any) -> str:
    return str(browser.find_element(By.ID, "status").text)


def picture_of(browser: Any, name: str) -> None:
    if PICTURES:
        browser.save_screenshot(str(Path(PICTURES) / f"{name}.png"))


def test_a_chosen_picture_gets_its_label(page: Any, digit: tuple[Path, str]) -> None:
    path, label = digit
    page.find_element(By.ID, "file").send_keys(str(path))
    wait(page, lambda: status(page).startswith(f"{label}, "))
    rows = page.find_elements(By.CSS_SELECTOR, "#labels li")
    assert len(rows) == 5
    assert rows[0].text.split("\n")[0] == label
    widths = [row.find_element(By.TAG_NAME, "i").size["width"] for row in rows]
    assert widths == sorted(widths, reverse=True)
    assert "ms in onnxruntime fp32" in page.find_element(By.ID, "time").text
    assert page.find_element(By.ID, "picture").is_displayed()
    picture_of(page, "desktop")


def test_models_are_chosen_and_the_card_is_shown(page: Any, digit: tuple[Path, str]) -> None:
    path, label = digit
    page.find_element(By.ID, "file").send_keys(str(path))
    wait(page, lambda: status(page).startswith(f"{label}, "))
    groups = Select(page.find_element(By.ID, "group"))
    assert [option.text for option in groups.options] == ["digits", "other"]
    assert len(Select(page.find_element(By.ID, "model")).options) == 2  # two versions
    groups.select_by_visible_text("other")
    wait(page, lambda: len(Select(page.find_element(By.ID, "model")).options) == 1)
    wait(page, lambda: status(page).startswith(f"{label}, "))
    page.find_element(By.TAG_NAME, "summary").click()
    wait(page, lambda: "Image classifier with 10 classes" in page.find_element(By.ID, "card").text)
    assert "8 x 8, 1 channel" in page.find_element(By.ID, "facts").text


def test_what_is_no_picture_is_said_and_the_page_goes_on(
    page: Any, digit: tuple[Path, str], tmp_path: Path
) -> None:
    wrong = tmp_path / "notes.png"
    wrong.write_text("not a picture")
    page.find_element(By.ID, "file").send_keys(str(wrong))
    wait(page, lambda: "not an image this program reads" in status(page))
    assert page.find_element(By.ID, "status").get_attribute("class") == "bad"
    page.find_element(By.ID, "file").send_keys(str(digit[0]))
    wait(page, lambda: status(page).startswith(f"{digit[1]}, "))


def test_everything_is_reached_by_keyboard(page: Any, digit: tuple[Path, str]) -> None:
    page.execute_script(
        "document.getElementById('file').addEventListener('click', (event) => {"
        " window.opened = true; event.preventDefault(); })"
    )
    visited = []
    for _ in range(20):  # eight of them are examples
        page.switch_to.active_element.send_keys(Keys.TAB)
        element = page.switch_to.active_element
        visited.append(element.get_attribute("id") or element.tag_name)
        if visited[-1] == "drop":
            element.send_keys(Keys.ENTER)
            assert page.execute_script("return window.opened") is True
        if visited[-1] == "summary":
            element.send_keys(Keys.ENTER)
            break
    assert visited[:4] == ["group", "model", "drop", "camera"]
    assert visited[-1] == "summary"
    wait(page, lambda: page.find_element(By.ID, "card").is_displayed())


def test_the_camera_gives_a_picture(page: Any) -> None:
    page.find_element(By.ID, "camera").click()
    wait(page, lambda: page.find_element(By.ID, "shoot").is_displayed())
    wait(page, lambda: page.execute_script("return document.getElementById('video').videoWidth") > 0)
    page.find_element(By.ID, "shoot").click()
    wait(page, lambda: " %" in status(page))
    assert not page.find_element(By.ID, "video").is_displayed()


def test_on_a_phone_nothing_is_cut_off(page: Any, digit: tuple[Path, str]) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.find_element(By.ID, "file").send_keys(str(digit[0]))
        wait(page, lambda: status(page).startswith(f"{digit[1]}, "))
        page.find_element(By.TAG_NAME, "summary").click()
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        for button in page.find_elements(By.CSS_SELECTOR, "button, select"):
            if button.is_displayed():
                assert button.size["height"] >= 44  # what a finger hits
        frame, drawn = (page.find_element(By.ID, name).rect for name in ("drop", "picture"))
        assert drawn["height"] <= frame["height"]
        page.find_element(By.TAG_NAME, "summary").click()
        page.execute_script("window.scrollTo(0, 0)")
        picture_of(page, "phone")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_with_a_key_the_page_asks_for_it(
    digits_bundle: Path, browser: Any, digit: tuple[Path, str], start: Any
) -> None:
    environment = {"SMASH_EXPORT_API_KEY": "correct horse"}
    with start(
        f"digits={digits_bundle}", "--no-grpc", "--drain-delay", "0", environment=environment
    ) as server:
        browser.get(f"http://{server.host}:{server.port}/")
        wait(browser, lambda: browser.find_element(By.ID, "key").is_displayed())
        browser.switch_to.active_element.send_keys("correct horse" + Keys.ENTER)
        wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#model option"))
        assert not browser.find_element(By.ID, "key").is_displayed()
        browser.find_element(By.ID, "file").send_keys(str(digit[0]))
        wait(browser, lambda: status(browser).startswith(f"{digit[1]}, "))


def test_no_other_address_is_asked_and_nothing_is_blocked(page: Any, server: Any) -> None:
    page.get_log("performance")
    page.get_log("browser")
    page.refresh()
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#model option")) > 0)
    time.sleep(0.3)
    requests = [
        row["message"] for row in page.get_log("performance") if "requestWillBeSent" in row["message"]
    ]
    assert len(requests) >= 4
    assert all(f"{server.host}:{server.port}" in text or '"url":"data:' in text for text in requests)
    assert [row for row in page.get_log("browser") if row["level"] == "SEVERE"] == []


def test_an_example_of_the_bundle_is_one_press_away(page: Any) -> None:
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#examples img")) == 8)
    image = page.find_elements(By.CSS_SELECTOR, "#examples img")[3]
    assert image.get_attribute("alt") == "Example of 3"
    image.click()
    wait(page, lambda: status(page).startswith("3, "))


def test_title_and_names_say_what_is_there(page: Any, digit: tuple[Path, str]) -> None:
    assert page.title == "digits: 0, 1, 2, 3, 4, 5, ..."
    assert page.find_element(By.ID, "about").text.startswith("digits knows 10 classes: 0, 1")
    page.find_element(By.ID, "file").send_keys(str(digit[0]))
    wait(page, lambda: status(page).startswith(f"{digit[1]}, "))
    assert page.find_element(By.ID, "drop").accessible_name == "Chosen: digit.png. Press to choose others"
    live = page.find_elements(By.CSS_SELECTOR, "[aria-live], [role=status], [role=alert], [role=log]")
    assert [element.get_attribute("id") for element in live] == ["status"]


def test_several_pictures_are_answered_and_cleared(
    page: Any, digit: tuple[Path, str], digits_images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, labels = digits_images
    paths = []
    for number in range(18):  # more than one request
        paths.append(tmp_path / f"{number:02}.png")
        Image.fromarray(images[number][:, :, 0]).save(paths[-1])
    paths[4].write_text("no picture")
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))
    wait(page, lambda: status(page).startswith("18 pictures, "))
    assert status(page).endswith(" doubtful or not read")
    rows = [row.text for row in page.find_elements(By.CSS_SELECTOR, "#several li")]
    assert len(rows) == 18
    for number, row in enumerate(rows):
        if number != 4:
            assert row.startswith(f"{number:02}.png: {labels[number]}, ")
    assert "not an image" in rows[4]
    picture_of(page, "several")
    page.find_element(By.ID, "clear").click()
    assert status(page) == "No picture yet."
    assert not page.find_elements(By.CSS_SELECTOR, "#several li, #labels li")
    assert not page.find_element(By.ID, "picture").is_displayed()
    assert page.switch_to.active_element.get_attribute("id") == "drop"
    assert page.find_element(By.ID, "drop").accessible_name.startswith("Drop a picture here")


def test_of_pictures_none_of_which_can_be_read_each_is_told_by_its_name(page: Any, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.png", "two.png", "three.png")]
    for path in paths:
        path.write_text("no picture")
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))
    wait(page, lambda: status(page) == "3 pictures, 3 doubtful or not read")
    rows = [row.text for row in page.find_elements(By.CSS_SELECTOR, "#several li")]
    for path, row in zip(paths, rows, strict=True):
        assert row.startswith(f"{path.name}: ")
        assert [other.name for other in paths if other.name in row] == [path.name]


def test_many_and_large_pictures_are_sent_in_requests_that_the_server_takes(
    narrow_page: Any, digits_images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, labels = digits_images
    for number in range(7):  # more images than one request takes
        Image.fromarray(images[number][:, :, 0]).save(tmp_path / f"{number}.png")
    for number, side in ((7, 400), (8, 400), (9, 400), (10, 700)):  # more bytes, at last in one of them
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(11)]
    assert sum(path.stat().st_size for path in paths[7:10]) > 2**20 < paths[10].stat().st_size
    paths[1].write_text("no picture")
    narrow_page.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))
    wait(narrow_page, lambda: status(narrow_page).startswith("11 pictures, "))
    rows = [row.text for row in narrow_page.find_elements(By.CSS_SELECTOR, "#several li")]
    assert [row.split(":")[0] for row in rows] == [path.name for path in paths]
    assert all(rows[number].startswith(f"{number}.png: {labels[number]}, ") for number in (0, 2, 3, 4, 5, 6))
    assert "not an image" in rows[1]
    assert all(" %" in row for row in rows[7:10])
    assert f"too large; expected at most {2**20} bytes" in rows[10]


def choose_version(browser: Any, version: int) -> None:
    models = Select(browser.find_element(By.ID, "model"))
    models.select_by_value(f"digits/{version}")


def test_card_and_program_are_those_of_the_chosen_version(
    narrow_page: Any, older: Path, digits_bundle: Path
) -> None:
    for version, bundle in ((1, older), (2, digits_bundle), (1, older)):
        choose_version(narrow_page, version)
        expected = (bundle / "README.md").read_text()
        card = narrow_page.find_element(By.ID, "card")
        wait(narrow_page, lambda text=expected, card=card: card.get_property("textContent") == text)
        for name in ("curl", "python"):
            program = narrow_page.find_element(By.ID, name).get_property("textContent")
            assert f"model=digits&version={version}&" in program


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_large_photos_are_turned_as_predict_turns_them(
    kind: str,
    narrow_page: Any,
    older: Path,
    digits_bundle: Path,
    digits_images: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    path = tmp_path / "photo"
    for image in digits_images[0]:
        photo = Image.fromarray(image[:, :, 0]).resize((1700, 1700), Image.Resampling.BICUBIC)
        photo.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, kind, exif=tag)
        answers = {}
        for version, bundle in ((1, older), (2, digits_bundle)):
            with load(bundle) as classifier:
                answers[version] = classifier.predict(path)
        if answers[1].label != answers[2].label:
            break
    for version, answer in answers.items():
        choose_version(narrow_page, version)
        narrow_page.find_element(By.ID, "file").send_keys(str(path))
        wait(narrow_page, lambda label=answer.label: status(narrow_page).startswith(f"{label}, "))
        percent = float(status(narrow_page).split(", ")[1].split(" %")[0])
        assert abs(percent - 100 * answer.probability) < 2  # made smaller in two steps


def test_the_request_can_be_copied_and_works(page: Any, digit: tuple[Path, str], tmp_path: Path) -> None:
    page.find_elements(By.TAG_NAME, "summary")[1].click()
    shutil.copy(digit[0], tmp_path / "image.png")
    program = page.find_element(By.ID, "python").get_attribute("textContent")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == digit[1], done.stderr
    words = shlex.split(page.find_element(By.ID, "curl").get_attribute("textContent"))
    assert words[0] == "curl"
    if shutil.which("curl"):
        done = subprocess.run([*words, "-s"], cwd=tmp_path, capture_output=True, text=True)
        assert json.loads(done.stdout)["predictions"][0]["label"] == digit[1]


def test_a_doubtful_answer_says_so(page: Any, server: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "noise.png"
    doubtful = False
    while not doubtful:
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        answer = server.call("POST", "/v1/predict?model=digits", path.read_bytes())[2]
        doubtful = json.loads(answer)["doubtful"]
    page.find_element(By.ID, "file").send_keys(str(path))
    wait(page, lambda: status(page).endswith("% - perhaps none of the classes"))
