"""Every registered target, one after the other: the registry is the test matrix.

Targets that compile in an environment of their own are tested in test_own_environments.py, TensorRT with
its own tests. AOTInductor compiles C++ for half a minute, so everything that compiles it is slow.
"""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import smash_targets
from smash_base.errors import InvalidInputError, MissingRuntimeError, UsageError
from smash_targets.base import TARGETS, Precision, SessionOptions, get_target, target_names
from smash_targets.common import gpu_number
from tests.deploy_targets.inputs import IMAGES, SIGNATURE
from tests.deploy_targets.networks import Sources

Compiled = Callable[..., Path]
# see the head of this module
ELSEWHERE = {"executorch", "tensorrt", "tensorrt_rtx", "trtexec", "baked"}
SLOW = {"torch_export"}
# How far fp16, bf16 and int8 logits may be from fp32 ones; the logits are about 0.5.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2, "int8": 5e-2}


def here() -> list[object]:
    names = [name for name in target_names() if name not in ELSEWHERE]
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


def own_precisions() -> list[object]:
    """(target, precision) that the target makes without the precision package."""
    pairs: list[object] = []
    for name in target_names():
        if name in ELSEWHERE | SLOW:
            continue
        target = get_target(name)
        own = target.precisions if target.precision_source == "target" else ("bf16",)
        pairs += [(name, precision) for precision in own if precision in target.precisions[1:]]
    return pairs


@pytest.fixture
def available(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    state = get_target(name).availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    return name


every_target = pytest.mark.parametrize("available", here(), indirect=True)


@every_target
def test_fp32_equals_eager_pytorch_for_every_batch_size(
    available: str, compiled: Compiled, sources: Sources
) -> None:
    path = compiled(available)
    with get_target(available).open(path, SIGNATURE, SessionOptions(threads=1)) as session:
        for size in (1, 2, 7, 32, 1):
            logits = session.run(IMAGES[:size])
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, sources.logits[:size], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "precision"), own_precisions())
def test_precisions_that_a_target_makes_itself(
    name: str, precision: Precision, compiled: Compiled, sources: Sources
) -> None:
    if not get_target(name).availability().available:
        pytest.skip(f"{name} is not here")
    with get_target(name).open(compiled(name, precision), SIGNATURE, SessionOptions(threads=1)) as session:
        difference = np.abs(session.run(IMAGES) - sources.logits).max()
        assert difference <= TOLERANCE[precision]
        # OpenVINO says fp32 where the processor has no bf16; what is said must be what is done.
        assert session.info.precision in (precision, "fp32")
        if session.info.precision == "fp32":
            assert difference <= 1e-4
        else:
            assert difference > 0


@every_target
def test_the_result_belongs_to_the_caller(available: str, compiled: Compiled) -> None:
    with get_target(available).open(compiled(available), SIGNATURE, SessionOptions(threads=1)) as session:
        first = session.run(IMAGES[:2])
        kept = first.copy()
        second = session.run(IMAGES[2:4])
        np.testing.assert_array_equal(first, kept)
        assert not np.shares_memory(first, second)
        first[:] = 0  # writable, and nobody else's
        np.testing.assert_array_equal(session.run(IMAGES[:2]), kept)


@every_target
def test_the_batch_need_not_outlive_the_call(available: str, compiled: Compiled, sources: Sources) -> None:
    """Runtimes that borrow the input's memory answer garbage for a temporary."""
    with get_target(available).open(compiled(available), SIGNATURE, SessionOptions(threads=1)) as session:
        for index in range(8):
            logits = session.run(IMAGES[index : index + 2] + np.float32(0))
            np.testing.assert_allclose(logits, sources.logits[index : index + 2], rtol=0, atol=1e-4)


@every_target
def test_what_is_used_is_said(available: str, compiled: Compiled) -> None:
    target = get_target(available)
    for threads in range(1, min(2, len(os.sched_getaffinity(0))) + 1):  # no runtime has more than there are
        with target.open(compiled(available), SIGNATURE, SessionOptions(threads=threads)) as session:
            assert session.info.threads == threads
            assert session.info.target == available
            assert session.info.device == "cpu"
            used, installed = session.info.version, target.availability().version
            assert used
            assert installed
            assert used.partition("+")[0] == installed.partition("+")[0]  # not every wheel names its build
            assert session.info.precision == "fp32"
            session.run(IMAGES[:1])


_COUNT_THREADS = """
import os, sys
from pathlib import Path
from smash_targets.base import SessionOptions, get_target
from tests.deploy_targets.inputs import IMAGES, SIGNATURE

threads = int(sys.argv[3])
count = lambda: len(os.listdir("/proc/self/task"))
with get_target(sys.argv[1]).open(Path(sys.argv[2]), SIGNATURE, SessionOptions(threads=threads)) as session:
    before = count()
    for _ in range(3):
        session.run(IMAGES[:32])
    print(before, count())
"""


@pytest.mark.parametrize("name", ["onnxruntime", "ncnn", "mnn"])
def test_one_thread_means_one_thread(name: str, compiled: Compiled) -> None:
    """Counted by the system in a process of its own."""
    if not get_target(name).availability().available:
        pytest.skip(f"{name} is not here")

    def counted(threads: int) -> int:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_THREADS, name, str(compiled(name)), str(threads)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return int(done.stdout.split()[-1])

    assert counted(3) - counted(1) == 2


@every_target
def test_damaged_files_are_refused(available: str, compiled: Compiled, tmp_path: Path) -> None:
    good = compiled(available)
    whole = good.read_bytes()
    for number, content in enumerate((b"", b"not this format" * 20, whole[: len(whole) // 2], whole[:-5])):
        folder = tmp_path / str(number)
        shutil.copytree(good.parent, folder)
        (folder / good.name).write_bytes(content)
        with pytest.raises(InvalidInputError):
            get_target(available).open(folder / good.name, SIGNATURE, SessionOptions())
    with pytest.raises(InvalidInputError):
        get_target(available).open(tmp_path / f"missing{good.suffix}", SIGNATURE, SessionOptions())


@pytest.mark.parametrize("name", ["openvino", "ncnn"])
def test_damaged_weights_beside_the_file_are_refused(name: str, compiled: Compiled, tmp_path: Path) -> None:
    if not get_target(name).availability().available:
        pytest.skip(f"{name} is not here")
    good = compiled(name)
    shutil.copytree(good.parent, tmp_path / "copy")
    weights = (tmp_path / "copy" / good.name).with_suffix(".bin")
    for content in (weights.read_bytes()[:-400], b""):
        weights.write_bytes(content)
        with pytest.raises(InvalidInputError):
            get_target(name).open(tmp_path / "copy" / good.name, SIGNATURE, SessionOptions())


@every_target
def test_a_file_that_is_overwritten_while_it_is_open_changes_no_answer(
    available: str, compiled: Compiled, tmp_path: Path
) -> None:
    """As ``cp`` of a new bundle over the one that is served: same names, same inodes, other bytes."""
    good = compiled(available)
    path = shutil.copytree(good.parent, tmp_path / "copy") / good.name
    with get_target(available).open(path, SIGNATURE, SessionOptions(threads=1)) as session:
        expected = [session.run(IMAGES[:size]) for size in (1, 4)]
        for file in path.parent.iterdir():
            with file.open("r+b") as stream:
                stream.write(bytes(file.stat().st_size))
        for size, logits in zip((1, 4, 7), [*expected, session.run(IMAGES[:7])], strict=True):
            np.testing.assert_array_equal(session.run(IMAGES[:size]), logits)
            assert np.abs(logits).max() > 0.01


@every_target
def test_batches_that_do_not_fit_are_refused(available: str, compiled: Compiled) -> None:
    with get_target(available).open(compiled(available), SIGNATURE, SessionOptions(threads=1)) as session:
        for wrong in (
            IMAGES[:1].astype(np.float64),
            IMAGES[:1, :, :, :11],
            IMAGES[0],
            IMAGES[:0],
        ):
            with pytest.raises(InvalidInputError, match=r"float32 \[B, 3, 12, 12\]"):
                session.run(wrong)
        # Not contiguous in memory, but the right numbers: taken.
        turned = np.asfortranarray(IMAGES[:2])
        np.testing.assert_array_equal(session.run(turned), session.run(IMAGES[:2]))


@pytest.mark.parametrize("name", target_names())
def test_unknown_options_and_precisions_are_refused(name: str, sources: Sources, tmp_path: Path) -> None:
    target = get_target(name)
    with pytest.raises(UsageError, match="wrong_option"):
        target.check_options({"wrong_option": 1}, SIGNATURE, "fp32")
    if not target.availability().available:
        pytest.skip(f"{name} is not here")
    with pytest.raises(UsageError, match="wrong_option"):
        target.compile(sources.request(wrong_option=1), tmp_path)
    with pytest.raises(UsageError, match="fp4"):
        target.compile(sources.request("fp4"), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@every_target
def test_a_device_that_is_not_here_is_an_error(available: str, compiled: Compiled) -> None:
    target = get_target(available)
    asked = SessionOptions(device="cuda:63", threads=1)
    with pytest.raises(MissingRuntimeError) as caught:
        target.open(compiled(available), SIGNATURE, asked)
    assert caught.value.exit_code == 3
    allowed = SessionOptions(device="cuda:63", threads=1, allow_fallback=True)
    with target.open(compiled(available), SIGNATURE, allowed) as session:
        assert session.info.device == "cpu"


def test_a_runtime_of_gpus_takes_only_names_of_gpus() -> None:
    assert [gpu_number(name, "TensorRT") for name in (None, "cuda", "cuda:2")] == [0, 0, 2]
    with pytest.raises(UsageError, match="cuda:NUMBER"):
        gpu_number("gpu", "TensorRT")
    with pytest.raises(MissingRuntimeError, match="TensorRT runs on a GPU, not on cpu"):
        gpu_number("cpu", "TensorRT")


_WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from smash_targets.base import get_target
from smash_base.errors import MissingRuntimeError

target = get_target(sys.argv[1])
state = target.availability()
assert not state.available, state
try:
    target.require()
except MissingRuntimeError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    "name", [name for name in target_names() if name not in ("trtexec", "baked")]
)  # a program
def test_a_missing_runtime_is_one_line_with_the_command(name: str, tmp_path: Path) -> None:
    """The import is blocked in a fresh process; the target itself is the real one."""
    environment = {**os.environ, "PYTHONPATH": str(Path(smash_targets.__file__).parents[1])}
    for variable in ("EXECUTORCH", "LITERT"):
        environment[f"SMASH_EXPORT_{variable}_PYTHON"] = str(tmp_path / "none")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, name, next(iter(get_target(name).modules))],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stdout.strip().splitlines()
    assert "pip install " in line or "smash-export doctor --environment " in line


def test_no_target_installs_or_downloads_anything() -> None:
    """No module of this package can call pip or open a connection: the words are not in its code."""
    forbidden_imports = {"pip", "ensurepip", "urllib", "http", "requests", "socket"}
    for path in sorted(Path(smash_targets.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        documentation = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
        }  # docstrings may speak of pip
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {name.name.partition(".")[0] for name in node.names} & forbidden_imports, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in forbidden_imports, path
            elif isinstance(node, ast.Call):
                words = [
                    item.value
                    for item in ast.walk(node)
                    if isinstance(item, ast.Constant)
                    and isinstance(item.value, str)
                    and id(item) not in documentation
                ]
                running = ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen", "os.system")
                assert not (running and any("pip" in word.split() for word in words)), path


def test_every_target_module_says_what_it_is_for() -> None:
    for spec in TARGETS.values():
        module = __import__(spec.partition(":")[0], fromlist=["_"])
        assert inspect.getdoc(module)


def test_openvino_is_imported_without_its_converter() -> None:
    """Importing the converter sends a usage event over the network."""
    if not get_target("openvino").availability().available:
        pytest.skip("openvino is not here")
    code = (
        "import sys; from smash_targets.openvino import import_openvino; import_openvino();"
        "assert not [m for m in sys.modules if 'telemetry' in m or m.startswith('openvino.tools.ovc')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_onnxruntime_sessions_are_thread_safe(compiled: Compiled, sources: Sources) -> None:
    target = get_target("onnxruntime")
    failures: list[float] = []
    with target.open(compiled("onnxruntime"), SIGNATURE, SessionOptions(threads=1)) as session:
        assert session.thread_safe

        def work(index: int) -> None:
            for _ in range(50):
                difference = float(
                    np.abs(session.run(IMAGES[index : index + 1]) - sources.logits[index]).max()
                )
                if difference > 1e-4:
                    failures.append(difference)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_onnxruntime_provider_that_is_not_there(compiled: Compiled) -> None:
    target = get_target("onnxruntime")
    path = compiled("onnxruntime")
    with pytest.raises(MissingRuntimeError, match="pip install onnxruntime-gpu"):
        target.open(path, SIGNATURE, SessionOptions(provider="cuda"))
    with pytest.raises(MissingRuntimeError, match="onnxruntime-openvino"):
        target.open(path, SIGNATURE, SessionOptions(provider="openvino"))
    with pytest.raises(UsageError, match="cpu, cuda, tensorrt, openvino"):
        target.open(path, SIGNATURE, SessionOptions(provider="quantum"))
    with target.open(path, SIGNATURE, SessionOptions(provider="tensorrt", allow_fallback=True)) as session:
        assert session.info.provider == "CPUExecutionProvider"


def test_onnxruntime_refuses_weights_in_other_files(sources: Sources, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "split.onnx"
    onnx.save(onnx.load(sources.onnx), path, save_as_external_data=True, location="weights", size_threshold=0)
    for name in ("onnxruntime", "openvino", "ncnn", "mnn"):
        if not get_target(name).availability().available:
            continue
        request = sources.request()
        request = type(request)(**{**vars(request), "onnx": path})
        (tmp_path / name).mkdir()
        with pytest.raises(InvalidInputError, match="weights in other files"):
            get_target(name).compile(request, tmp_path / name)
    with pytest.raises(InvalidInputError, match="weights in other files"):
        get_target("onnxruntime").open(path, SIGNATURE, SessionOptions())


def test_onnx_facts_agree_with_the_onnx_package(sources: Sources) -> None:
    import onnx

    from smash_targets.onnx_file import read_onnx_facts

    facts = read_onnx_facts(sources.onnx)
    assert facts.operators == {node.op_type for node in onnx.load(sources.onnx).graph.node}
    assert facts.precision == "fp32"


def test_every_cut_of_an_onnx_file_is_refused_or_whole(sources: Sources, tmp_path: Path) -> None:
    from smash_targets.onnx_file import read_onnx_facts

    data = sources.onnx.read_bytes()
    generator = np.random.default_rng(1)
    path = tmp_path / "mutated.onnx"
    for _ in range(300):
        changed = bytearray(data[: generator.integers(1, len(data))])
        changed[generator.integers(len(changed))] = generator.integers(256)
        path.write_bytes(changed)
        try:
            read_onnx_facts(path)
        except InvalidInputError:
            continue


def test_another_network_is_refused(compiled: Compiled) -> None:
    from dataclasses import replace

    for changed in (replace(SIGNATURE, input_name="pixels"), replace(SIGNATURE, output_name="classes")):
        with pytest.raises(InvalidInputError, match="another network"):
            get_target("onnxruntime").open(compiled("onnxruntime"), changed, SessionOptions())


def test_torchscript_warns_nobody_twice(compiled: Compiled, recwarn: pytest.WarningsRecorder) -> None:
    target = get_target("torchscript")
    assert "deprecated" in target.deprecated
    with target.open(compiled("torchscript"), SIGNATURE, SessionOptions(threads=1)) as session:
        session.run(IMAGES[:1])
    assert not [warning for warning in recwarn if "torch.jit" in str(warning.message)]


def test_torchscript_gives_threads_back(compiled: Compiled) -> None:
    import torch

    before = torch.get_num_threads()
    target = get_target("torchscript")
    with target.open(compiled("torchscript"), SIGNATURE, SessionOptions(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", [True, 3, "gpu"])
def test_torch_export_refuses_a_device_that_is_none_before_it_compiles(
    device: object, sources: Sources, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"expected cpu, cuda or cuda:NUMBER; received {device}"):
        get_target("torch_export").compile(sources.request(device=device), tmp_path)


@pytest.mark.slow
def test_torch_export_needs_the_network_itself(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PyTorch network"):
        get_target("torch_export").compile(sources.request(), tmp_path)
