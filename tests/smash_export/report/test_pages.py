"""The pages in a real Chromium: at three widths, light and dark, nothing is cut off, hidden or pale.

With SMASH_EXPORT_TEST_PICTURES=FOLDER every page is kept there as a picture, to look at.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smash_export.cli import run

selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402

PICTURES = os.environ.get("SMASH_EXPORT_TEST_PICTURES")
VIEWS = [(width, scheme) for width in (390, 800, 1300) for scheme in ("light", "dark")]
TALLEST_ROW = 100  # pixels: four lines
READABLE = 4.5  # contrast of text as WCAG 2.2 wants it (success criterion 1.4.3, level AA)

# Words whose contrast is less than the argument: relative luminance as WCAG defines it.
PALE = """
const parts = colour => (colour.match(/[0-9.]+/g) || [0, 0, 0, 0]).map(Number);
const light = colour => parts(colour).slice(0, 3).map(value => value / 255)
  .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const behind = node => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if ((parts(colour)[3] ?? 1) > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const pale = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement, words = walker.currentNode.textContent.trim();
  if (!words || node.closest("title, style")) continue;
  const style = getComputedStyle(node);
  const [a, b] = [light(node.closest("svg") ? style.fill : style.color), light(behind(node))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < arguments[0]) pale.push(`${words.slice(0, 40)}: ${contrast.toFixed(2)}`);
}
return pale;
"""

# Words of a drawing that reach beyond it.
CUT = """
const cut = [];
for (const drawing of document.querySelectorAll("svg")) {
  const frame = drawing.getBoundingClientRect();
  for (const words of drawing.querySelectorAll("text")) {
    const box = words.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1) cut.push(words.textContent);
  }
}
return cut;
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> dict[str, Path]:
    """The pages of a small search and of a comparison of three files."""
    folder = tmp_path_factory.mktemp("pages")
    bundle = folder / "bundle"
    shutil.copytree(digits_bundle, bundle)
    for precision in ("fp32", "int8"):
        words = ["compile", str(bundle), "--target", "onnxruntime", "--precision", precision, "--quiet"]
        assert run([*words, "--in-process"]) == 0
    assert run(["compare", str(bundle), "--seconds", "0.1", "--quiet"]) == 0
    small = ["--steps", "3", "--batch", "16", "--candidates", "6", "--images", "20,0", "--device", "cpu"]
    small += ["--finalists", "3", "--rungs", "1,2", "--finalist-batch", "128", "--max-parameters", "20000"]
    words = ["search", "--data", "digits", "--run", str(folder / "run"), *small, "--quiet"]
    assert run([*words, "--max-latency", "500ms"]) == 0
    return {"compare": folder / "bundle.compare.html", "search": folder / "run" / "report.html"}


def show(browser: Any, page: Path, width: int, scheme: str) -> Image.Image:
    """Open a page at a width in a colour scheme and take its picture, whole."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": min(height, 8000)})
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    if PICTURES:
        picture.save(Path(PICTURES) / f"{page.stem}-{width}-{scheme}.png")
    return picture


@pytest.mark.parametrize("name", ["compare", "search"])
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_a_page_fits_its_window_and_its_colours(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    pixels = np.asarray(show(browser, pages[name], width, scheme), dtype=int)
    paper = np.median(pixels.reshape(-1, 3), axis=0)
    assert (paper > 240).all() if scheme == "light" else (paper < 40).all()
    written = (np.abs(pixels - paper).max(axis=2) > 90).mean()
    assert 0.003 < written < 0.5, "there is something to read"
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, "the page itself does not scroll sideways"
    if width == 1300:
        hidden = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')]"
            ".filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.innerText.slice(0, 80))"
        )
        assert hidden == [], "every column of every table is visible"
        tallest = browser.execute_script(
            "return Math.max(...[...document.querySelectorAll('tr')].map(row => row.offsetHeight))"
        )
        assert tallest <= TALLEST_ROW
    pale = browser.execute_script(PALE, READABLE)
    assert pale == [], "every word stands out from what is behind it"
    cut = browser.execute_script(CUT)
    assert cut == [], "no word of a drawing is cut off"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_drawn_texts_do_not_cover_each_other(browser: Any, pages: dict[str, Path]) -> None:
    for name, page in pages.items():
        show(browser, page, 1300, "light")
        overlaps = browser.execute_script(
            """
            const found = [];
            for (const chart of document.querySelectorAll("svg.chart")) {
              const boxes = [...chart.querySelectorAll("text.label, text.tick, circle")].map(
                node => [node, node.getBoundingClientRect()]);
              for (const [a, p] of boxes) for (const [b, q] of boxes) {
                if (a === b || a.tagName === "circle") continue;
                const across = p.left < q.right - 1 && q.left < p.right - 1;
                if (across && p.top < q.bottom - 3 && q.top < p.bottom - 3)
                  found.push(a.textContent + " / " + b.textContent);
              }
            }
            return found;
            """
        )
        assert overlaps == [], name
