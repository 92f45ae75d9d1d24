"""Images of several classes, from folders to the server's page: each class by itself, from one half on."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from smash_base.errors import InvalidInputError, UsageError
from smash_export import freeze, load
from smash_export.bundle.bundle import Bundle
from smash_export.cli import cli
from smash_export.compiling.compile import compile_bundle
from smash_export.export.adopt import Adopted, adopt, images_from_data
from smash_export.export.teacher import teacher_logits
from smash_export.measure.evaluate import evaluate
from smash_export.measure.verify import verify
from smash_export.prediction.answers import Prediction
from smash_export.report.images import class_counts
from smash_export.server.models import examples_of
from smash_search.data import load_dataset
from smash_search.space.architecture import InputSpec
from smash_search.space.best import BestFile, read_best, write_best
from smash_search.space.space import SPACES
from tests.search.several_data import squares

SPEC = InputSpec(3, (8, 8))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, ``best.json`` and the ``bundle`` that was trained on them."""
    folder = tmp_path_factory.mktemp("several")
    copies_in_folders(squares_of(folder, count=400), folder / "data")
    drawn = (SPACES["tiny"].draw(0, slot) for slot in range(30))
    small = min(drawn, key=lambda entry: entry.op_count)
    write_best(folder / "best.json", BestFile(small, SPEC, ("blue", "green", "red")))
    done = CliRunner().invoke(cli, [*words(folder), "--epochs", "12", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    (folder / "result.json").write_text(done.stdout)
    return folder


def squares_of(folder: Path, count: int) -> Path:
    """The table of so many pictures, which lie beside it."""
    (folder / "pictures").mkdir()
    return squares(folder / "pictures", count)


def copies_in_folders(table: Path, folder: Path) -> None:
    """A copy of each picture in the folder of each of its classes."""
    for line in table.read_text().splitlines()[1:]:
        name, _, classes = line.partition(",")
        for label in classes.split(";"):
            (folder / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(table.with_name(name), folder / label / f"{label}-{name}")


def words(folder: Path) -> list[str]:
    data = f"folder:{folder / 'data'}?several=yes"
    out = str(folder / "bundle")
    return ["train", str(folder / "best.json"), "--data", data, "--out", out, "--threads", "1"]


def names(answer: Prediction) -> set[str]:
    """The classes that an answer says are there."""
    return {score.label for score in answer.present or ()}


def test_the_bundle_answers_each_class_by_itself(place: Path) -> None:
    result = json.loads((place / "result.json").read_text())
    assert result["mean_average_precision"] > 0.8
    bundle = Bundle.open(place / "bundle")
    assert bundle.signature.outputs == "sigmoid"
    thresholds = bundle.manifest.provenance["thresholds"]
    assert isinstance(thresholds, dict)
    assert set(thresholds) == {"blue", "green", "red"}
    data = load_dataset(words(place)[3])
    assert data.test.targets is not None
    with load(bundle) as classifier:
        answers = classifier.predict(list(data.test.images))
    right = [
        {score.index for score in answer.present or ()} == set(np.flatnonzero(targets))
        for answer, targets in zip(answers, data.test.targets, strict=True)
    ]
    assert np.mean(right) > 0.5, "all classes of an image, and no other"


def test_freeze_of_python_refuses_images_of_several_classes(place: Path, tmp_path: Path) -> None:
    """It would end in probabilities that sum to one."""
    with pytest.raises(UsageError, match=r"several classes.*train_own"):
        freeze(place / "best.json", words(place)[3], tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_table_of_answers_names_every_class_that_is_there(place: Path, tmp_path: Path) -> None:
    images = load_dataset(words(place)[3]).test.images[:20]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    with load(place / "bundle") as classifier:
        expected = classifier.predict(list(images))
    done = CliRunner().invoke(cli, ["predict", str(place / "bundle"), str(tmp_path), "--csv"])
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [set(row["present"].split(";")) - {""} for row in rows] == [names(answer) for answer in expected]
    assert {row["doubtful"] for row in rows} == {""}, "no class is asked for, so none is doubted"
    lines = CliRunner().invoke(cli, ["predict", str(place / "bundle"), str(tmp_path)]).stdout.splitlines()
    for line, answer in zip(lines, expected, strict=True):
        there = ", ".join(f"{score.label} {score.probability:.1%}" for score in answer.present or ())
        assert f": {there or 'none of the classes'}" in line, "each class has its own probability"
    asked = ["--threshold", str(max(answer.probability for answer in expected))]
    told = [
        CliRunner().invoke(cli, ["predict", str(place / "bundle"), str(tmp_path), *asked, form]).stdout
        for form in ("--json", "--csv")
    ]
    answers = json.loads(told[0])["predictions"]
    assert [";".join(score["label"] for score in answer["present"]) for answer in answers] == [
        row["present"] for row in csv.DictReader(io.StringIO(told[1]))
    ], "a threshold holds for every class, however it is told"


def test_an_answer_of_no_class_is_told_as_such_in_every_form(place: Path, tmp_path: Path) -> None:
    """The likeliest of what is not there is no label."""
    images = load_dataset(words(place)[3]).test.images[:4]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    nothing = ["predict", str(place / "bundle"), str(tmp_path), "--threshold", "1"]
    rows = csv.DictReader(io.StringIO(CliRunner().invoke(cli, [*nothing, "--csv"]).stdout))
    assert {(row["label"], row["present"]) for row in rows} == {("none of the classes", "")}
    answers = json.loads(CliRunner().invoke(cli, [*nothing, "--json"]).stdout)["predictions"]
    assert {answer["label"] for answer in answers} == {None}
    with load(place / "bundle") as classifier:
        answer = classifier.predict(images[0])
    assert str(replace(answer, present=())) == "image 0: none of the classes"
    first = answer.top[0]
    assert str(replace(answer, present=(first,))) == f"image 0: {first.label} {first.probability:.1%}"


def test_figures_of_several_classes_agree_wherever_they_stand(place: Path) -> None:
    """The bundled images keep all of their classes, and means are those of the table below them."""
    bundle, data = str(place / "bundle"), words(place)[3]
    told = [
        json.loads(CliRunner().invoke(cli, ["evaluate", bundle, *more, "--json"]).stdout)
        for more in ([], ["--data", data])
    ]
    for name in ("images", "balanced_accuracy", "macro_f1", "mean_average_precision", "presence"):
        assert told[0][name] == told[1][name], name
    recalls = [row["recall"] for row in told[0]["presence"]]
    assert told[0]["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    card = (place / "bundle" / "README.md").read_text()
    assert f"mean recall of the classes {np.mean(recalls):.2%}" in card
    assert "adopted from outside" not in card


def test_checks_on_the_data_themselves_know_all_classes_of_an_image(place: Path, tmp_path: Path) -> None:
    """Verified, quantised and adopted on the data set, the accuracy is that of the bundled images."""
    bundle, data = tmp_path / "bundle", words(place)[3]
    shutil.copytree(place / "bundle", bundle)
    evaluation = evaluate(bundle, data=data)
    (report, *_) = verify(bundle, data=data, isolated=False).files
    assert report.parity is not None
    assert report.parity.accuracy == pytest.approx(evaluation.accuracy)
    options = {"calibration_minimum": 200}
    int8 = compile_bundle(bundle, "onnxruntime", "int8", options, max_drop=5.0, data=data, isolated=False)
    assert int8.evidence["parity"]["accuracy_reference"] == pytest.approx(evaluation.accuracy)
    opened = Bundle.open(bundle)
    names = ("red", "blue", "green")  # another order than the data set's
    images = images_from_data(data, names, opened.preprocessing)
    assert images.targets is not None
    kept = load_dataset(data).test.targets
    assert kept is not None
    np.testing.assert_array_equal(images.targets[:, [1, 2, 0]], kept)
    images = images_from_data(data, opened.labels, opened.preprocessing)
    again = adopt(
        opened.onnx,
        tmp_path / "adopted",
        labels=opened.labels,
        preprocessing=opened.preprocessing,
        images=images,
    )
    assert again.accuracy == pytest.approx(evaluation.accuracy)
    assert evaluate(again.bundle).mean_average_precision == pytest.approx(evaluation.mean_average_precision)


def test_a_compiled_file_names_the_classes_that_the_network_does(place: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(place / "bundle", bundle)
    images = list(load_dataset(words(place)[3]).test.images)
    with load(bundle) as classifier:
        expected = classifier.predict(images)
    assert len({frozenset(names(answer)) for answer in expected}) > 4, "one, two and three classes"
    compile_bundle(bundle, "onnxruntime", isolated=False)
    few = {"calibration_minimum": 200}
    compile_bundle(bundle, "onnxruntime", "int8", few, max_drop=5.0, isolated=False)
    for precision, least in (("fp32", 1.0), ("int8", 0.8)):
        with load(bundle, "onnxruntime", precision=precision) as classifier:
            answers = classifier.predict(images)
        same = [names(answer) == names(other) for answer, other in zip(answers, expected, strict=True)]
        assert np.mean(same) >= least, precision


def picture_of_two(place: Path, folder: Path) -> tuple[Path, set[str]]:
    """A test image that the bundle says is of two classes, as a file, and these classes."""
    images = load_dataset(words(place)[3]).test.images
    with load(place / "bundle") as classifier:
        expected = classifier.predict(list(images))
    two = next(number for number, answer in enumerate(expected) if len(names(answer)) == 2)
    picture = folder / "two.png"
    Image.fromarray(images[two]).save(picture)
    return picture, names(expected[two])


@pytest.mark.slow  # a server starts
def test_a_server_names_every_class_that_is_there(place: Path, tmp_path: Path) -> None:
    from tests.smash_export.server.conftest import running

    picture, wanted = picture_of_two(place, tmp_path)
    with running(f"squares={place / 'bundle'}", "--no-grpc") as server:
        answer = json.loads(server.call("POST", "/v1/predict?top_k=1", picture.read_bytes())[2])
    assert {item["label"] for item in answer["present"]} == wanted
    assert all(item["probability"] >= 0.5 for item in answer["present"])


@pytest.mark.slow  # a server and a browser start
def test_the_page_names_every_class_that_is_there(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("selenium")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from tests.smash_export.chromium import chromium
    from tests.smash_export.server.conftest import running

    picture, wanted = picture_of_two(place, tmp_path)
    with (
        running(f"squares={place / 'bundle'}", "--no-grpc") as server,
        chromium(tmp_path / "chromium") as page,
    ):
        page.get(f"http://{server.host}:{server.port}/")
        wait = WebDriverWait(page, 15)
        wait.until(lambda _: page.find_elements(By.CSS_SELECTOR, "#model option"))
        page.find_element(By.ID, "file").send_keys(str(picture))
        wait.until(lambda _: "%" in page.find_element(By.ID, "status").text)
        shown = page.find_element(By.ID, "status").text.split("; ")
    assert {line.partition(",")[0] for line in shown} == wanted


def test_evaluate_gives_average_precision_and_the_card_has_it(place: Path) -> None:
    data = words(place)[3]
    found = evaluate(place / "bundle", data)
    facts = Bundle.open(place / "bundle").manifest.provenance["accuracy"]
    assert isinstance(facts, dict)
    assert found.mean_average_precision == pytest.approx(facts["mean_average_precision"], abs=1e-4)
    red = next(row for row in found.presence if row.label == "red")
    assert red.images > 20
    assert red.average_precision is not None
    assert red.average_precision > 0.6
    assert "mean average precision" in (place / "bundle" / "README.md").read_text()
    done = CliRunner().invoke(cli, ["evaluate", str(place / "bundle"), "--data", data])
    assert "average precision" in done.output


def test_a_bundle_of_several_classes_teaches_with_the_logits_that_it_was_trained_to(place: Path) -> None:
    data = load_dataset(words(place)[3])
    answers = teacher_logits(place / "bundle", data)
    targets = data.train.targets
    assert targets is not None
    thresholds = Bundle.open(place / "bundle").manifest.provenance["thresholds"]
    assert isinstance(thresholds, dict)
    with load(place / "bundle") as classifier:
        shown = classifier.preprocessing.normalise(np.asarray(data.train.images))
        present = np.asarray(classifier.logits(shown)) >= 0.5
    wanted = np.log([thresholds[name] / (1 - thresholds[name]) for name in data.classes])
    clear = np.abs(answers - wanted) > 1e-3
    assert ((answers > wanted) == present)[clear].all(), "moved back by the thresholds"
    one_each = replace(data, train=replace(data.train, targets=None))
    with pytest.raises(InvalidInputError, match="one class per image"):
        teacher_logits(place / "bundle", one_each)
    traced = teacher_logits(place / "bundle" / "model.torchscript.pt", data)
    assert np.allclose(traced, answers - wanted, atol=1e-3), "a file tells no thresholds"


def test_a_student_of_several_classes_learns_from_a_teacher_and_is_judged_on_folds(place: Path) -> None:
    out = place / "student"
    command = [*words(place), "--teacher", str(place / "bundle"), "--folds", "2", "--epochs", "6"]
    command[command.index("--out") + 1] = str(out)
    done = CliRunner().invoke(cli, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "one of the image's classes, or none for an image of none; mean average" in " ".join(
        done.output.split()
    )
    assert "the teacher: mean average precision" in done.output
    facts = Bundle.open(out).manifest.provenance["folds"]
    assert isinstance(facts, dict)
    precisions = facts["mean_average_precision"]
    assert isinstance(precisions, list)
    assert len(precisions) == 2
    assert facts["top1"] > 0.6


def test_a_larger_network_teaches_several_classes_too(place: Path) -> None:
    out = place / "taught"
    command = [*words(place), "--teacher", "auto", "--epochs", "2", "--device", "cpu"]
    command[command.index("--out") + 1] = str(out)
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "a larger network of the same space" in done.output
    assert "the teacher: mean average precision" in done.output


def test_a_table_of_several_classes_goes_the_whole_way_from_search_to_answers(tmp_path: Path) -> None:
    table, folder = squares_of(tmp_path, count=240), tmp_path / "run"

    def done(*command: str) -> str:
        result = CliRunner().invoke(cli, [*command, "--quiet"])
        assert result.exit_code == 0, result.output
        return result.stdout

    data = f"csv:{table}?several=semicolon"
    small = ["--steps", "4", "--candidates", "4", "--known", "1", "--finalists", "2", "--rungs", "1"]
    small += ["--rounds", "0", "--baseline", "none", "--space", "tiny", "--max-parameters", "30000"]
    done("search", "--data", data, "--run", str(folder), "--device", "cpu", "--threads", "1", *small)
    best = read_best(folder / "best.json")
    assert best.classes == ("blue", "green", "red")
    assert best.search.error is not None
    out, arch = str(tmp_path / "bundle"), str(folder / "best.json")
    freeze = ["freeze", "--arch", arch, "--out", out, "--epochs", "8", "--device", "cpu", "--threads", "1"]
    result = json.loads(done(*freeze, "--json"))
    assert result["mean_average_precision"] > 0.5
    pictures = load_dataset(data).test.images[:6]
    for number, image in enumerate(pictures):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    told = done("predict", out, *(str(tmp_path / f"{number}.png") for number in range(6)), "--csv")
    rows = list(csv.DictReader(io.StringIO(told)))
    with load(tmp_path / "bundle") as classifier:
        expected = classifier.predict(list(pictures))
    assert [set(row["present"].split(";")) - {""} for row in rows] == [names(answer) for answer in expected]


def test_an_ensemble_of_finalists_that_nobody_would_read_is_refused(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["search", "--data", words(place)[3], "--run", str(folder), "--ensemble", "--dry-run"]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, UsageError)
    assert "no --ensemble" in str(done.exception)


def test_what_needs_one_class_is_refused(place: Path) -> None:
    done = CliRunner().invoke(cli, [*words(place), "--force", "--qat"])
    assert done.exit_code != 0
    assert "several classes" in str(done.exception or done.output)


def test_images_of_no_class_are_learnt_and_judged_wherever_figures_stand(tmp_path: Path) -> None:
    """Half of the parts have no fault: nothing is found on them, and that counts as right."""
    table = squares_of(tmp_path, count=400)
    head, *rows = table.read_text().splitlines()
    random = np.random.default_rng(0)
    for number in range(0, 400, 2):
        name = rows[number].partition(",")[0]
        Image.fromarray(random.integers(0, 60, (8, 8, 3), dtype=np.uint8)).save(table.with_name(name))
        rows[number] = f"{name},good"
    table.write_text("\n".join([head, *rows]))
    data, bundle = f"csv:{table}?several=semicolon&none=good", tmp_path / "bundle"
    drawn = (SPACES["tiny"].draw(0, slot) for slot in range(30))
    small = min(drawn, key=lambda entry: entry.op_count)
    write_best(tmp_path / "best.json", BestFile(small, SPEC, ("blue", "green", "red")))
    command = ["train", str(tmp_path / "best.json"), "--data", data, "--out", str(bundle), "--epochs", "12"]
    command += ["--threads", "1", "--folds", "2", "--balance", "sampling"]
    done = CliRunner().invoke(cli, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output

    found, bundled = evaluate(bundle, data), evaluate(bundle)
    assert found.classes == bundled.classes
    assert [row.label for row in found.classes] == ["blue", "green", "red", "no class"]
    none = found.classes[-1]
    assert none.images == 40
    assert none.recall is not None
    assert none.recall > 0.9, "nothing is found where nothing is"
    assert found.confusion.shape == (4, 4)
    assert found.confusion[3].sum() == 40
    with load(bundle) as classifier:
        split = load_dataset(data).test
        answers = classifier.predict(list(split.images))
    nothing = [not answer.present for answer in answers]
    truth = split.labels == 3
    assert none.recall == pytest.approx(np.mean(np.array(nothing)[truth]))
    right = [
        not answer.present if label == 3 else answer.present and split.targets[row, answer.present[0].index]
        for row, (answer, label) in enumerate(zip(answers, split.labels, strict=True))
        if split.targets is not None
    ]
    assert found.accuracy == pytest.approx(np.mean(np.array(right, bool)))

    card = (bundle / "README.md").read_text()
    assert f"| no class | 40 | {none.recall:.2%} |" in card
    shown = CliRunner().invoke(cli, ["evaluate", str(bundle), "--out", str(tmp_path / "report")])
    assert "no class" in shown.output
    assert (tmp_path / "report" / "confusion.png").exists()

    compile_bundle(bundle, "onnxruntime", isolated=False)
    few = {"calibration_minimum": 200}
    compile_bundle(bundle, "onnxruntime", "int8", few, max_drop=5.0, isolated=False)
    for report in verify(bundle, data=data, isolated=False).files:
        assert report.status == "passed", report.problems
        assert report.parity is not None
        assert report.parity.accuracy_reference == pytest.approx(found.accuracy)
    with load(bundle, "onnxruntime", precision="int8") as classifier:
        found_again = evaluate(classifier, data)
    assert found_again.accuracy == pytest.approx(found.accuracy, abs=0.05)
    saved = CliRunner().invoke(cli, ["verify", str(bundle), "--save-worst", str(tmp_path / "worst")])
    assert saved.exit_code == 0, saved.output

    opened = Bundle.open(bundle)
    assert "no class" in [label for label, _ in examples_of(opened)]
    baked = CliRunner().invoke(cli, ["bake", str(bundle)])
    assert baked.exit_code == 0, baked.output
    written = CliRunner().invoke(cli, ["trtexec", str(bundle)])
    assert written.exit_code == 0, written.output
    (expected,) = bundle.rglob("expected.txt")
    pairs = [line.split()[:2] for line in expected.read_text().splitlines()]
    assert {first for label, first in pairs if label == "3"} >= {"3"}
    assert np.mean([label == first for label, first in pairs]) == pytest.approx(found.accuracy)
    few_images = CliRunner().invoke(cli, ["trtexec", str(bundle), "--images", "3"])
    assert few_images.exit_code == 0, few_images.output
    lines = [line.split()[:2] for line in expected.read_text().splitlines()]
    assert lines == pairs[:3] or "3" not in {label for label, _ in lines}, "no class only where one has none"
    images = images_from_data(data, opened.labels, opened.preprocessing)

    def adopted(model: Path, name: str) -> Adopted:
        about = opened.preprocessing
        return adopt(model, tmp_path / name, labels=opened.labels, preprocessing=about, images=images)

    again = adopted(opened.onnx, "adopted")
    assert again.accuracy == pytest.approx(found.accuracy)
    page = class_counts(load_dataset(data)).text
    assert "no class" in page

    one_each = table.with_name("one-each.csv")
    one_each.write_text("\n".join([head, *(row for row in rows if ";" not in row and "good" not in row)]))
    single = ["train", "resnet-8", "--data", f"csv:{one_each}", "--out", str(tmp_path / "single")]
    done = CliRunner().invoke(cli, [*single, "--epochs", "1", "--threads", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    of_one = evaluate(tmp_path / "single", data)
    assert of_one.warnings[-1] == "40 images of no class are left out: each answer is of one class"
    assert of_one.images == 40
    (report, *_) = verify(tmp_path / "single", data=data, isolated=False).files
    assert report.parity is not None
    assert report.parity.accuracy == pytest.approx(of_one.accuracy)
    with pytest.raises(InvalidInputError, match="of no class, and each answer of the network is of one"):
        adopted(tmp_path / "single" / "model.onnx", "other")
