"""compare: verdicts follow accuracy and speed, one file is recommended, and the page loads nothing."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from smash_export.bundle.bundle import Bundle
from smash_export.bundle.samples import Samples
from smash_export.cli import run
from smash_export.compiling.compile import compile_bundle
from smash_export.measure.bench import FileMeasurement
from smash_export.measure.compare import Row, disagreements, recommend, verdict_on
from smash_export.measure.timing import Latency
from smash_export.report.chart import Axis, Point, pareto, scatter
from smash_export.report.page import Html, counted, page, paragraph, picture, table


def samples(count: int = 400, classes: int = 4) -> Samples:
    random = np.random.default_rng(0)
    logits = random.standard_normal((count, classes)).astype(np.float32)
    return Samples(np.zeros((count, 8, 8, 1), np.uint8), logits.argmax(1).astype(np.int64), logits)


def measured(
    name: str, p50: float, *, size: int = 1000, source: bool = False, **more: object
) -> FileMeasurement:
    target, precision = name.split(":")
    latency = Latency(p50, p50, p50, p50, 100, 1, 0.0, 0.0)
    row = FileMeasurement(target, precision, source, size, latency={1: latency}, runtime={"provider": "CPU"})
    return replace(row, **more)  # type: ignore[arg-type]


def flipped(data: Samples, count: int) -> np.ndarray:
    logits = data.logits.copy()
    logits[:count] = -logits[:count]
    return logits


def test_a_file_that_changes_too_many_labels_fails() -> None:
    data = samples()
    row = verdict_on(measured("ncnn:int8", 0.1, slower_than_fp32=False), flipped(data, 40), data)
    assert row.verdict == "failed"
    assert "10.00 points lost, 95 % interval" in row.reason
    assert verdict_on(row.measurement, flipped(data, 40), data, max_drop=50).verdict == "good"
    assert verdict_on(measured("ncnn:fp32", 0.1), data.logits, data).verdict == "good"


def test_lower_precision_that_is_not_faster_is_marked_and_never_recommended() -> None:
    data = samples()
    slow = measured("onnxruntime:int8", 0.5, slower_than_fp32=True, relative_to_fp32=1.25)
    rows = [
        verdict_on(measured("onnxruntime:fp32", 0.4), data.logits, data),
        verdict_on(slow, data.logits, data),
    ]
    assert rows[1].verdict == "not faster"
    assert "1.25 times that of onnxruntime fp32" in rows[1].reason
    # Even when it is the fastest file of all, having been slower than its own fp32 in the same rounds.
    rows[1] = replace(rows[1], measurement=measured("onnxruntime:int8", 0.01, slower_than_fp32=True))
    marked, advice = recommend(rows)
    assert advice is not None
    assert (advice["target"], advice["precision"]) == ("onnxruntime", "fp32")
    assert [row.verdict for row in marked] == ["recommended", "not faster"]


def test_lower_precision_without_fp32_of_its_runtime_is_not_recommended() -> None:
    data = samples()
    row = verdict_on(measured("openvino:int8", 0.1), data.logits, data)
    assert row.verdict == "speed unknown"
    assert recommend([row])[1] is None


def good(name: str, p50: float, size: int = 1000) -> Row:
    data = samples()
    row = measured(name, p50, size=size, slower_than_fp32=None if name.endswith("fp32") else False)
    return verdict_on(row, data.logits, data)


def test_the_fastest_file_wins_and_the_reason_says_by_how_much() -> None:
    rows = [good("torchscript:fp32", 2.0), good("onnxruntime:fp32", 0.5), good("openvino:int8", 0.25)]
    _, advice = recommend(rows)
    assert advice is not None
    assert (advice["target"], advice["precision"]) == ("openvino", "int8")
    assert "fastest of 3; onnxruntime:fp32 takes 0.5 ms" in advice["reason"]
    assert "8.0 times as fast as TorchScript" in advice["reason"]
    assert "accuracy 100.00% (+0.00 points)" in advice["reason"]


def test_within_the_noise_the_more_exact_file_wins_then_the_smaller() -> None:
    rows = [good("openvino:int8", 1.0), good("ncnn:fp32", 1.04, size=10), good("onnxruntime:fp32", 1.02)]
    marked, _ = recommend(rows)
    assert [row.verdict for row in marked] == ["good", "recommended", "good"]


def test_source_files_are_shown_and_not_recommended() -> None:
    data = samples()
    rows = [verdict_on(measured("onnxruntime:fp32", 0.1, source=True), data.logits, data)]
    assert rows[0].verdict == "source file"
    assert recommend(rows)[1] is None


def test_unsteady_times_are_said_with_the_recommendation() -> None:
    row = good("onnxruntime:fp32", 1.0)
    noisy = replace(row.measurement.latency[1], warnings=("the machine was busy",))
    _, advice = recommend([replace(row, measurement=replace(row.measurement, latency={1: noisy}))])
    assert advice is not None
    assert "idle" in advice["reason"]


def test_disagreements_name_image_files_and_margin() -> None:
    data = samples()
    found = disagreements(
        data, {"a:int8": flipped(data, 3), "b:int8": flipped(data, 1), "c:fp32": data.logits}
    )
    assert {item.image for item in found} == {0, 1, 2}
    assert found[0].image == 0
    assert set(found[0].received) == {"a:int8", "b:int8"}
    for item in found:
        assert item.margin > 0
        assert item.received["a:int8"] == data.logits[item.image].argmin()


def test_pareto_front_keeps_what_nothing_beats() -> None:
    points = [Point(1, 90, "a"), Point(2, 95, "b"), Point(2.5, 94, "c"), Point(3, 95, "d"), Point(4, 99, "e")]
    assert [point.label for point in pareto(points)] == ["a", "b", "e"]


def test_text_is_escaped_everywhere() -> None:
    bad = '<script>alert(1)</script>&"'
    from PIL import Image

    parts = [
        paragraph(bad),
        table([bad], [[bad]]),
        scatter([Point(1, 1, bad)], Axis(bad), Axis(bad)),
        picture(Image.new("RGB", (2, 2)), [bad]),
    ]
    text = page(bad, parts)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6
    assert isinstance(parts[0], Html)


class Loads(HTMLParser):
    """Collects everything that a browser would fetch, and checks that tags close."""

    VOID = {"meta", "img", "br", "line", "circle", "polyline"}

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def compared(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    import contextlib
    import io
    import shutil

    path = tmp_path_factory.mktemp("compare") / "digits"
    shutil.copytree(digits_bundle, path)
    compile_bundle(path, "onnxruntime", "fp32")
    compile_bundle(path, "onnxruntime", "int8", {"calibration_method": "minmax", "boundary": "int8"})
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        assert run(["compare", str(path), "--seconds", "0.1", "--rounds", "2", "--json", "-q"]) == 0
    return path, json.loads(stream.getvalue())


def test_command_records_its_recommendation(compared: tuple[Path, dict]) -> None:
    path, printed = compared
    bundle = Bundle.open(path)
    assert bundle.recommendation is not None
    assert bundle.recommendation.model_dump() == printed["recommendation"]
    chosen = [row for row in printed["rows"] if row["verdict"] == "recommended"]
    assert [row["name"] for row in chosen] == [
        f"{bundle.recommendation.target}:{bundle.recommendation.precision}"
    ]
    for row in printed["rows"]:
        assert row["parity"]["agreement"] >= 0.985
        if row["measurement"]["slower_than_fp32"]:
            assert row["verdict"] == "not faster"


def test_a_recommended_file_that_no_longer_qualifies_is_recommended_no_more(digits_bundle_copy: Path) -> None:
    bundle = Bundle.open(digits_bundle_copy)
    model = onnx.load(bundle.onnx)
    bias = model.graph.initializer[-1]
    bias.CopyFrom(numpy_helper.from_array(np.arange(10, dtype=np.float32) * 9, bias.name))
    staging = bundle.staging("onnxruntime", "fp32")
    onnx.save(model, staging / "model.onnx")
    bundle.add_compiled("onnxruntime", "fp32", staging, "model.onnx", {}, {})
    bundle.record("recommendation", {"target": "onnxruntime", "precision": "fp32", "reason": "it was right"})
    words = ["compare", str(digits_bundle_copy), "--seconds", "0.05", "--rounds", "1", "-q"]
    assert run([*words, "--target", "onnxruntime"]) == 0
    assert Bundle.open(digits_bundle_copy).recommendation is not None, "of a part nothing is recorded"
    assert run(words) == 0
    assert Bundle.open(digits_bundle_copy).recommendation is None


def test_page_is_whole_and_self_contained(compared: tuple[Path, dict]) -> None:
    path, printed = compared
    text = (path.parent / "digits.compare.html").read_text()
    parser = Loads()
    parser.feed(text)
    assert parser.open == []
    assert all(url.startswith("data:image/png;base64,") for url in parser.fetched)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    drawing = re.search(r"<svg.*?</svg>", text, re.S)
    assert drawing is not None
    labels = [node.text for node in ElementTree.fromstring(drawing.group()).iter("text")]
    for row in printed["rows"]:
        assert row["name"] in labels
        assert row["name"] in text
    assert printed["recommendation"]["reason"].split(";")[0] in text
    assert "Signal to noise by layer: onnxruntime:int8" in text
    count = len(printed["disagreements"])
    assert f"{counted(count, 'image')} with another label" in text or not count
    assert len(parser.fetched) == min(24, len(printed["disagreements"]))


def test_a_folder_where_the_page_should_be_is_refused_before_anything_is_measured(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ((), ("--dry-run",)):
        assert run(["compare", str(digits_bundle), "--html", str(tmp_path), *words, "-q"]) == 2
        assert f"'{tmp_path}' is a directory" in capsys.readouterr().err


def test_dry_run_writes_nothing(digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (digits_bundle_copy / "manifest.json").read_bytes()
    assert run(["compare", str(digits_bundle_copy), "--dry-run", "--json", "-q"]) == 0
    assert "torchscript:fp32" in json.loads(capsys.readouterr().out)["files"]
    assert (digits_bundle_copy / "manifest.json").read_bytes() == before
    assert not list(digits_bundle_copy.parent.glob("*.html"))
