"""The classifier gives the network's answers for every kind of input, from every runtime, and says why."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smash_export
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError, VerificationError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle
from smash_export.prediction.classifier import Classifier, Failure, Prediction, load
from smash_export.prediction.sources import sources
from smash_targets.base import (
    TARGETS,
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionOptions,
    Target,
    get_target,
)

PNG_COUNT = 40


@pytest.fixture(scope="module")
def classifier(digits_bundle: Path) -> Iterator[Classifier]:
    with load(digits_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(digits_bundle: Path) -> list[str]:
    """What eager PyTorch answers for the bundled images."""
    bundle = Bundle.open(digits_bundle)
    return [bundle.labels[index] for index in bundle.samples().logits.argmax(axis=1)]


@pytest.fixture(scope="module")
def folder(digits_images: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty PNG files in nested folders, whose sorted order is that of the images; and other files."""
    root = tmp_path_factory.mktemp("images")
    images, _ = digits_images
    for index in range(PNG_COUNT):
        path = root / f"part{index // 20}" / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images[index, :, :, 0]).save(path)
    (root / "notes.txt").write_text("not an image")
    return root


def labels_of(predictions: Any) -> list[str]:
    return [prediction.label for prediction in predictions]


def test_one_image_in_every_form_gives_one_answer(
    classifier: Classifier,
    folder: Path,
    digits_images: tuple[np.ndarray, np.ndarray],
    expected: list[str],
) -> None:
    path = folder / "part0" / "000.png"
    array = digits_images[0][0]
    stream = io.BytesIO()
    Image.fromarray(np.repeat(array, 3, axis=2)).save(stream, "BMP")
    forms = [path, str(path), path.read_bytes(), Image.open(path), array, array[:, :, 0], stream.getvalue()]
    for form in forms:
        answer = classifier.predict(form)
        assert isinstance(answer, Prediction)
        assert answer.label == expected[0]
        assert answer.milliseconds > 0
    assert classifier.predict(path).source == str(path)


def test_open_files_are_images_wherever_they_stand(
    classifier: Classifier, folder: Path, expected: list[str]
) -> None:
    path = folder / "part0" / "000.png"
    written = io.BytesIO()
    written.write(path.read_bytes())  # stands at its end, as after Image.save
    with open(path, "rb") as opened:
        assert classifier.predict(written).label == expected[0]
        answer = classifier.predict(opened)
        assert (answer.label, answer.source) == (expected[0], str(path))
        assert labels_of(classifier.predict([opened, written])) == [expected[0]] * 2
    with pytest.raises(InvalidInputError, match="cannot be read"):
        classifier.predict(opened)  # closed
    with open(path, encoding="latin-1") as text, pytest.raises(InvalidInputError, match='mode "rb"'):
        classifier.predict(text)
    bad = classifier.stream([opened, io.BytesIO(), written], on_error="yield")
    assert [type(answer).__name__ for answer in bad] == ["Failure", "Failure", "Prediction"]


def test_many_images_in_every_form_give_a_list_in_order(
    classifier: Classifier,
    folder: Path,
    digits_images: tuple[np.ndarray, np.ndarray],
    expected: list[str],
) -> None:
    images = digits_images[0][:PNG_COUNT]
    paths = sorted(folder.rglob("*.png"))
    forms = [
        folder,
        str(folder / "*" / "*.png"),
        str(folder / "**" / "*.png"),
        [folder / "part0", str(folder / "part1" / "*")],
        paths,
        tuple(map(str, paths)),
        images,
        images[..., 0],
        list(images),
        [paths[0], images[1], images[2, :, :, 0], paths[3].read_bytes(), *paths[4:]],
    ]
    for form in forms:
        answers = classifier.predict(form)
        assert isinstance(answers, list)
        assert labels_of(answers) == expected[:PNG_COUNT]


def test_single_and_batched_answers_are_the_same(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray], expected: list[str]
) -> None:
    images = digits_images[0]
    together = classifier.predict(images)
    assert labels_of(together) == expected
    for index in range(0, 597, 37):
        alone = classifier.predict(images[index])
        assert alone.probability == pytest.approx(together[index].probability, abs=1e-5)


def test_top_k_is_sorted_and_sums_up(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    answer = classifier.predict(digits_images[0][3], top_k=99)
    assert len(answer.top) == 10
    values = [score.probability for score in answer.top]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert (answer.label, answer.index) == (answer.top[0].label, answer.top[0].index)
    assert len(classifier.predict(digits_images[0][3], top_k=1).top) == 1
    assert len(classifier.predict(digits_images[0][3], top_k=np.int64(3)).top) == 3  # type: ignore[arg-type]
    for wrong in (0, -1, 1.5):
        with pytest.raises(InvalidInputError, match="top_k"):
            classifier.predict(digits_images[0][3], top_k=wrong)  # type: ignore[arg-type]
    assert answer.to_json()["top"][0]["label"] == answer.label


def test_logits_are_those_of_eager_pytorch(classifier: Classifier) -> None:
    samples = classifier.bundle.samples()
    tensor = classifier.preprocessing.normalise(samples.images)
    assert np.abs(classifier.logits(tensor) - samples.logits).max() <= 1e-4
    assert classifier.logits(tensor[0]).shape == (10,)
    for wrong in (samples.images, tensor.astype(np.float64), tensor[:, :, :4], tensor[:0], [[1.0]]):
        with pytest.raises(InvalidInputError, match=r"float32|shape"):
            classifier.logits(wrong)  # type: ignore[arg-type]


def test_a_generator_is_answered_lazily(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray], expected: list[str]
) -> None:
    pulled = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal pulled
        for image in digits_images[0]:
            pulled += 1
            yield image

    answers = classifier.predict(images())
    assert pulled == 0
    assert next(answers).label == expected[0]
    assert pulled <= 200  # three batches of 32 at most, not all 597
    assert [expected[0], *labels_of(answers)] == expected


def test_a_live_source_is_not_read_ahead(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    pulled = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal pulled
        for image in digits_images[0][:20]:
            pulled += 1
            yield image

    for count, _ in enumerate(classifier.stream(images(), batch=1), start=1):
        assert pulled == count


def test_ten_thousand_images_stream_in_bounded_memory(classifier: Classifier) -> None:
    pulled = answered = most_ahead = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal pulled, most_ahead
        for index in range(10_000):
            pulled += 1
            most_ahead = max(most_ahead, pulled - answered)
            yield np.full((100, 100), index % 256, np.uint8)  # 10 kB each, 100 MB if they were kept

    gc.collect()
    tracemalloc.start()
    try:
        for _ in classifier.predict(images()):
            answered += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answered == 10_000
    assert most_ahead <= 32 * 6
    assert peak < 10e6


def test_threads_get_their_own_answers(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray], expected: list[str]
) -> None:
    images = digits_images[0]
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for index in range(number, 597, 8):
                if classifier.predict(images[index]).label != expected[index]:
                    wrong.append(index)
            if labels_of(classifier.stream(images[number::8])) != expected[number::8]:
                wrong.append(f"stream {number}")
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bad_image_is_named(classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    good = folder / "part0" / "000.png"
    with pytest.raises(InvalidInputError, match=r"bad\.png"):
        classifier.predict([good, bad])
    with pytest.raises(InvalidInputError, match=r"absent\.png does not exist"):
        classifier.predict("absent.png")
    results = list(classifier.stream([good, bad, good, None, good], on_error="yield"))
    assert [type(result) for result in results] == [Prediction, Failure, Prediction, Failure, Prediction]
    assert results[1].source == str(bad)
    assert "NoneType" in str(results[3].error)
    assert next(iter(classifier.stream([bad], on_error="yield", batch=1))).source == str(bad)


@pytest.mark.parametrize("wrong", [None, 3, 3.5, object(), np.zeros((2, 2, 8, 8, 1), np.uint8)])
def test_what_is_no_image_is_refused(classifier: Classifier, wrong: Any) -> None:
    with pytest.raises(InvalidInputError):
        classifier.predict(wrong)


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 1), np.float32), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8), np.uint8)]
)
def test_arrays_of_another_type_or_shape_are_refused(classifier: Classifier, wrong: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="image array"):
        classifier.predict(wrong)


def test_an_empty_folder_and_a_pattern_without_matches_are_refused(
    classifier: Classifier, tmp_path: Path
) -> None:
    for wrong in (tmp_path, str(tmp_path / "*.png")):
        with pytest.raises(InvalidInputError, match="holds no images"):
            classifier.predict(wrong)
    assert classifier.predict([]) == []
    assert classifier.predict(np.zeros((0, 8, 8, 1), np.uint8)) == []


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(
    classifier: Classifier, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "image[1].png"
    path.write_bytes((folder / "part0" / "000.png").read_bytes())
    assert classifier.predict(path).source == str(path)


def test_an_error_of_the_generator_comes_after_the_answers(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray], expected: list[str]
) -> None:
    def images() -> Iterator[np.ndarray]:
        yield from digits_images[0][:50]
        raise OSError("camera unplugged")

    answers: list[Prediction] = []
    with pytest.raises(OSError, match="camera unplugged"):
        answers.extend(classifier.predict(images()))
    assert labels_of(answers) == expected[:50]


def test_an_abandoned_stream_ends_its_threads(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    before = threading.active_count()
    stream = classifier.stream(digits_images[0])
    next(stream)
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_closed_classifier_says_so(digits_bundle: Path) -> None:
    with load(digits_bundle, threads=1) as opened:
        opened.predict(np.zeros((8, 8), np.uint8))
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        opened.predict(np.zeros((8, 8), np.uint8))


def test_closing_waits_for_the_run_in_progress(digits_bundle: Path) -> None:
    opened = load(digits_bundle, threads=1)
    images = np.zeros((4000, 8, 8, 1), np.uint8)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                opened.predict(images[:500])
        except BaseException as error:  # noqa: BLE001 - looked at by the main thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    opened.close()
    thread.join(10)
    assert [type(error) for error in errors] == [UsageError]


def copy_onnx(path: Path, target: str, precision: str) -> None:
    bundle = Bundle.open(path)
    staging = bundle.staging(target, precision)
    (staging / "model.onnx").write_bytes(bundle.onnx.read_bytes())
    bundle.add_compiled(target, precision, staging, "model.onnx", {}, {})


class Absent(Target):
    name, extra = "absent", "absent"

    def availability(self) -> Availability:
        return Availability(False, reason="no such module", install="pip install absent")

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        raise NotImplementedError

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        raise NotImplementedError


@pytest.fixture
def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "absent", f"{__name__}:Absent")


def test_without_compiled_files_the_onnx_file_is_run_directly(digits_bundle: Path) -> None:
    with load(digits_bundle) as opened:
        assert (opened.choice.target, opened.choice.path) == ("onnxruntime", digits_bundle / "model.onnx")
        assert "model.onnx directly" in str(opened.choice)
        assert opened.info.target == "onnxruntime"
        assert "onnxruntime fp32" in repr(opened)


def test_the_compiled_file_comes_before_the_source(digits_bundle_copy: Path) -> None:
    copy_onnx(digits_bundle_copy, "onnxruntime", "fp32")
    with load(digits_bundle_copy) as opened:
        assert opened.choice.path == digits_bundle_copy / "targets" / "onnxruntime" / "fp32" / "model.onnx"


def test_the_recommendation_comes_first_and_its_reason_is_told(digits_bundle_copy: Path) -> None:
    copy_onnx(digits_bundle_copy, "onnxruntime", "fp32")
    copy_onnx(digits_bundle_copy, "onnxruntime", "int8")
    Bundle.open(digits_bundle_copy).record(
        "recommendation", {"target": "onnxruntime", "precision": "int8", "reason": "twice as fast"}
    )
    with load(digits_bundle_copy) as opened:
        assert opened.choice.precision == "int8"
        assert "twice as fast" in opened.choice.reason
    with load(digits_bundle_copy, precision="fp32") as opened:
        assert opened.choice.precision == "fp32"
    with load(digits_bundle_copy, target="torchscript") as opened:
        assert opened.choice.target == "torchscript"


@pytest.mark.usefixtures("_absent")
def test_a_recommended_runtime_that_is_missing_is_passed_over_and_told(digits_bundle_copy: Path) -> None:
    copy_onnx(digits_bundle_copy, "absent", "int8")
    Bundle.open(digits_bundle_copy).record(
        "recommendation", {"target": "absent", "precision": "int8", "reason": "fastest"}
    )
    with load(digits_bundle_copy) as opened:
        assert opened.choice.target == "onnxruntime"
        assert opened.choice.passed_over == (
            "absent int8: target absent cannot be used here: no such module",
        )
        assert "no such module" in str(opened.choice)


@pytest.mark.usefixtures("_absent")
def test_a_named_runtime_is_used_or_refused_never_replaced(digits_bundle_copy: Path) -> None:
    copy_onnx(digits_bundle_copy, "absent", "fp32")
    with pytest.raises(MissingRuntimeError, match="pip install absent"):
        load(digits_bundle_copy, target="absent")
    with pytest.raises(UsageError, match=r"smash-export compile .* --target onnxruntime --precision int8"):
        load(digits_bundle_copy, target="onnxruntime", precision="int8")
    with pytest.raises(UsageError, match="no file for"):
        load(digits_bundle_copy, target="nonsense")


def test_every_runtime_gives_the_same_answers(
    digits_bundle: Path, digits_images: tuple[np.ndarray, np.ndarray], expected: list[str]
) -> None:
    for target in ("onnxruntime", "torchscript"):
        with load(digits_bundle, target=target, threads=1) as opened:
            assert labels_of(opened.predict(digits_images[0])) == expected


def test_a_network_that_answers_nan_is_an_error_not_a_label(digits_bundle_copy: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(digits_bundle_copy / "model.onnx")
    tensor = model.graph.initializer[-1]
    tensor.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), tensor.name))
    bundle = Bundle.open(digits_bundle_copy)
    staging = bundle.staging("onnxruntime", "fp32")
    onnx.save(model, staging / "model.onnx")
    bundle.add_compiled("onnxruntime", "fp32", staging, "model.onnx", {}, {})
    with load(bundle) as opened, pytest.raises(VerificationError, match="NaN"):
        opened.predict(np.zeros((8, 8), np.uint8))


def test_prediction_needs_no_torch_and_no_command_line(digits_bundle: Path, folder: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        import smash_export
        answer = smash_export.load(sys.argv[1]).predict(sys.argv[2])
        print(answer.label)
        heavy = {"torch", "onnx", "sklearn", "scipy", "matplotlib", "rich", "click", "search"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, digits_bundle, folder / "part0" / "000.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=True,
    )
    assert done.stdout.split("\n")[1] == "[]"


def test_load_is_exported_by_the_package() -> None:
    assert smash_export.load is load
    assert smash_export.Classifier is Classifier


def test_answers_are_compared_by_their_labels_and_printed_on_one_line(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    image, label = digits_images[0][0], str(digits_images[1][0])
    one, other = classifier.predict(image), classifier.predict(image)
    assert (one == other, hash(one) == hash(other)) == (True, True)
    assert one != classifier.predict(image, top_k=1)
    assert one != label
    different = next(i for i, value in enumerate(digits_images[1]) if str(value) != label)
    assert one != classifier.predict(digits_images[0][different])
    for text in (str(one), repr(one)):
        assert "\n" not in text
        assert f"image 0: {label} " in text


def test_a_classifier_is_callable_awaitable_and_picklable(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    images = digits_images[0][:4]
    wanted = classifier.predict(images)
    assert classifier(images) == wanted
    assert asyncio.run(classifier.apredict(images)) == wanted
    assert asyncio.run(classifier.apredict(image for image in images)) == wanted
    with pickle.loads(pickle.dumps(classifier)) as copy:
        assert copy.predict(images) == wanted
        assert (copy.choice.target, copy.choice.precision) == (
            classifier.choice.target,
            classifier.choice.precision,
        )


def test_a_pickle_that_is_made_in_another_folder_finds_the_bundle(
    digits_bundle: Path,
    digits_images: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(digits_bundle.parent)
    with load(digits_bundle.name) as classifier:
        monkeypatch.chdir(tmp_path)
        with pickle.loads(pickle.dumps(classifier)) as copy:
            assert copy.predict(digits_images[0][:4]) == classifier.predict(digits_images[0][:4])


def test_apredict_leaves_the_loop_free(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    async def both() -> int:
        turns = 0
        task = asyncio.create_task(classifier.apredict(list(digits_images[0]) * 4))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(both()) > 10


def test_torch_tensors_are_channels_first(
    classifier: Classifier, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(digits_images[0][:3].copy()).movedim(-1, 1)  # [3, 1, 8, 8]
    wanted = classifier.predict(digits_images[0][:3])
    assert classifier.predict(images) == wanted
    assert classifier.predict(list(images)) == wanted
    assert classifier.predict(images[0]) == wanted[0]
    assert classifier.predict(images[0, 0]) == wanted[0]
    for wrong in (images.float(), images[:, :, :, :7].movedim(1, -1)):
        with pytest.raises(InvalidInputError, match="channels first"):
            classifier.predict(wrong)


def test_arrays_may_be_blue_green_red() -> None:
    preprocessing = Preprocessing(2, 2, 3, (0.5,) * 3, (0.5,) * 3)
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    alpha = np.dstack([rgb[..., ::-1], np.full((2, 2), 255, np.uint8)])
    for array in (rgb[..., ::-1], alpha):
        (source,) = sources(array, preprocessing, channels="bgr")
        assert np.array_equal(preprocessing.decode(source.image), rgb)
    batch = list(sources(np.stack([rgb, rgb])[..., ::-1], preprocessing, channels="bgr"))
    assert all(np.array_equal(item.image, rgb) for item in batch)
    with pytest.raises(InvalidInputError, match="channels"):
        list(sources(rgb, preprocessing, channels="gbr"))


def test_a_model_file_is_told_how_to_become_a_bundle(digits_bundle: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"smash-export adopt .*model\.onnx --output"):
        load(digits_bundle / "model.onnx")


def test_a_device_that_is_not_there_names_what_brings_it(digits_bundle: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingRuntimeError, match="no runtime is here") as refused:
        load(digits_bundle, device="cuda:99")
    assert refused.value.hint is not None
    assert refused.value.hint.startswith("Install it: pip install onnxruntime-gpu; or choose another device")


@pytest.mark.usefixtures("_absent")
@pytest.mark.parametrize("name", ["gpu", "cudax", "cuda:x"])
def test_an_unknown_device_is_refused_not_replaced_by_the_cpu(digits_bundle_copy: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    copy_onnx(digits_bundle_copy, "absent", "fp32")  # a runtime that is not here answers for no name
    Bundle.open(digits_bundle_copy).record(
        "recommendation", {"target": "absent", "precision": "fp32", "reason": "fastest"}
    )
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:NUMBER") as refused:
        load(digits_bundle_copy, device=name)
    assert refused.value.exit_code == 2


def test_a_device_of_another_runtime_is_not_replaced_by_the_cpu(digits_bundle_copy: Path) -> None:
    if not get_target("litert").availability().available:
        pytest.skip("litert is not here")
    copy_onnx(digits_bundle_copy, "litert", "fp32")
    Bundle.open(digits_bundle_copy).record(
        "recommendation", {"target": "litert", "precision": "fp32", "reason": "fastest"}
    )
    with pytest.raises(MissingRuntimeError, match="LiteRT runs on the CPU here, not on npu") as refused:
        load(digits_bundle_copy, device="npu")
    assert refused.value.hint == "Leave the device out, or pass cpu."
