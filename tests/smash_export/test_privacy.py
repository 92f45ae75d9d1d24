"""No command looks a name up, connects to anything or leaves a file outside the folders that it was given.

Every command of the table runs in one process (children included) with an empty home and without a network,
under strace, which says what was created where and which addresses were asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from smash_export.cli import COMMANDS
from smash_export.deploy import web
from smash_targets.base import get_target, target_names

ROOT = Path(__file__).parents[2]
SYSTEM = ("/dev/", "/proc/", "/sys/")
# Calls that make a name in a file system, with what a line of strace shows of them.
MAKES = re.compile(
    r'(?:openat\([^,]*, "([^"]+)", [^,)]*O_CREAT|(?:creat|mkdir|mknod)\("([^"]+)"'
    r'|(?:mkdirat|mknodat)\([^,]*, "([^"]+)"|(?:rename|link|symlink)\("[^"]*", "([^"]+)"'
    r'|(?:renameat2?|linkat)\([^,]*, "[^"]*", [^,]*, "([^"]+)"|symlinkat\("[^"]*", [^,]*, "([^"]+)").* = \d'
)
ASKS = re.compile(r"sa_family=AF_INET6?, .*")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

RUN = """
import json, sys, threading
from smash_export.cli import run
for words in json.load(open(sys.argv[1])):
    code = run(words)
    print(words[0], code, file=sys.stderr)
    if code not in (0, 4, 5):
        sys.exit(f"{words} ended with {code}")
"""


def traced(words: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with an empty home and no route to anywhere; its trace is ``place/trace``."""
    home = place / "home"
    for folder in (home, place / "tmp"):
        folder.mkdir(exist_ok=True)
    kept = ("PATH", "LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    calls = "trace=%network,openat,creat,mkdir,mkdirat,mknod,rename,renameat,renameat2,link,linkat,symlink"
    trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(place / "trace")]
    return subprocess.run(
        [*no_network(), *trace, *words],
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=600,
    )


def no_network() -> list[str]:
    """The words that take the network away, where this user may."""
    words = ["unshare", "--net", "--map-root-user"]
    allowed = shutil.which("unshare") and not subprocess.run([*words, "true"], capture_output=True).returncode
    return words if allowed else []


def made(trace: str, place: Path) -> set[str]:
    """Names that were created outside ``place``, the home of the process included."""
    found = {next(filter(None, match.groups())) for match in MAKES.finditer(trace)}
    absolute = {os.path.normpath(place / name) for name in found}
    outside = {name for name in absolute if not name.startswith(f"{place}{os.sep}")}
    home = {name for name in absolute if name.startswith(f"{place / 'home'}{os.sep}")}
    return {name for name in outside | home if not name.startswith(SYSTEM)}


def asked(trace: str) -> set[str]:
    """Addresses beyond this machine that were connected or written to."""
    lines = [line for line in trace.splitlines() if re.search(r"\b(connect|sendto|sendmsg|sendmmsg)\(", line)]
    found = {match[0] for line in lines for match in ASKS.finditer(line)}
    return {line for line in found if "127.0.0.1" not in line and '"::1"' not in line}


def judge(done: subprocess.CompletedProcess[str], place: Path) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    trace = (place / "trace").read_text(errors="replace")
    assert trace.count("openat(") > 100  # it did trace
    assert made(trace, place) == set()
    assert asked(trace) == set()
    assert not [path for path in (place / "home").rglob("*") if path.is_file()]


STARTED = "TensorRT.trtexec [TensorRT v101600] [b1] # trtexec --shapes=input:8x1x8x8"
TIMES = "min = 0.1 ms, max = 0.3 ms, mean = 0.2 ms, median = 0.2 ms, percentile(99%) = 0.3 ms"
DEVICE_LOG = f"""&&&& RUNNING {STARTED}
[11/24/2026-19:00:00] [I] Throughput: 5000.5 qps
[11/24/2026-19:00:00] [I] GPU Compute Time: {TIMES}
&&&& PASSED {STARTED}
"""


def commands() -> list[list[str]]:
    """One call of every command, on what the calls before it wrote; one that is not here shows its help."""
    bundle, run, best = "bundle", "run", "run/best.json"
    calls = [
        ["space", "--size", "8", "--samples", "20"],
        ["search", "--data", "digits", "--run", run, "--space", "tiny", "--steps", "2", "--candidates", "2",
         "--known", "0", "--finalists", "1", "--rungs", "1", "--finalist-images", "64"],
        ["runs", run],
        ["freeze", "--arch", best, "--weights", "retrain", "--epochs", "1", "--out", bundle],
        ["train", best, "--data", "digits", "--epochs", "1", "--out", "trained"],
        ["reproduce", "correlation", "--data", "digits", "--dry-run"],
        ["adopt", "bundle/model.onnx", "-o", "adopted", "--labels", "labels.txt", "--data", "digits",
         "--size", "8", "--channels", "1", "--mean", "0.3", "--std", "0.38"],
        ["check", bundle],
        ["compile", bundle, "--target", "onnxruntime", "--precision", "int8"],
        ["verify", bundle],
        ["bench", bundle, "--seconds", "0.05", "--batch", "1"],
        ["compare", bundle, "--seconds", "0.05", "--batch", "1"],
        ["predict", bundle, "image.png"],
        ["evaluate", bundle],
        ["trtexec", bundle],
        ["trtexec-results", "device.log"],
        ["bake", bundle],
        ["triton", bundle, "repository"],
        ["web", bundle, "site", "--runtime", "npm"],
        ["inspect", bundle],
        ["latency", "kit", "kit.zip", "--data", "digits", "--space", "tiny", "--networks", "10"],
        ["latency", "build", "kit.zip", "table.json", "--seconds", "0.01"],
        ["run", "--data", "digits", "--space", "tiny", "--dry-run"],
        ["doctor"],
        ["targets"],
        ["datasets"],
        ["completion", "bash"],
    ]  # fmt: skip
    told = {words[0] for words in calls}
    return [*calls, *([name, "--help"] for name in COMMANDS if name not in told)]


@pytest.mark.slow
@needs_strace
def test_no_command_leaves_a_file_elsewhere_or_asks_the_network(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 90).save(tmp_path / "image.png")
    (tmp_path / "labels.txt").write_text("\n".join("0123456789"))
    (tmp_path / "device.log").write_text(DEVICE_LOG)
    (tmp_path / "npm").mkdir()
    for name in web.RUNTIME:  # copied, and read by browsers only
        (tmp_path / "npm" / name).touch()
    (tmp_path / "calls.json").write_text(json.dumps(commands()))
    judge(traced([sys.executable, "-c", RUN, "calls.json"], tmp_path), tmp_path)


SERVE = """
import signal, subprocess, sys, urllib.request
server = subprocess.Popen(
    [sys.executable, "-m", "smash_export.cli", "serve", sys.argv[1], "--port", "0", "-q", "--json"],
    stdout=subprocess.PIPE, text=True)
print(server.stdout.readline())
server.send_signal(signal.SIGTERM)
sys.exit(server.wait(60) not in (0, 130, -15))
"""


@needs_strace
@pytest.mark.slow
def test_the_server_asks_nobody(tmp_path: Path, digits_bundle: Path) -> None:
    judge(traced([sys.executable, "-c", SERVE, str(digits_bundle)], tmp_path), tmp_path)


RUNTIME = """
import sys, numpy as np
from pathlib import Path
from smash_base.errors import MissingRuntimeError, UsageError
from smash_export.bundle.bundle import Bundle
from smash_targets.base import CompileRequest, SessionOptions, get_target
bundle, target = Bundle.open(sys.argv[1]), get_target(sys.argv[2])
Path("out").mkdir()
request = CompileRequest(onnx=bundle.path / "model.onnx", torchscript=bundle.path / "model.torchscript.pt",
    precision="fp32", signature=bundle.signature)
try:
    result = target.compile(request, Path("out"))
except (MissingRuntimeError, UsageError):  # the runtime is here; its converter is not, or wants another file
    import ai_edge_litert.interpreter
else:
    with target.open(Path("out") / result.main, bundle.signature, SessionOptions(threads=1)) as session:
        assert session.run(np.zeros((1, *bundle.preprocessing.input_shape), np.float32)).shape == (1, 10)
"""


# Both start from the PyTorch network, which this bundle does not hold, and compile for minutes under strace;
# ["compile", bundle, "--target", "torch_export"] among the commands above leaves and asks nothing.
LEFT_OUT = ("torch_export", "executorch")
HERE = [name for name in target_names() if get_target(name).availability().available and name not in LEFT_OUT]


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_no_runtime_leaves_a_file_elsewhere_or_asks_the_network(
    name: str, tmp_path: Path, digits_bundle: Path
) -> None:
    judge(traced([sys.executable, "-c", RUNTIME, str(digits_bundle), name], tmp_path), tmp_path)
