"""Adds a version to ``interface.json``: what TensorRT's Python bindings offer, read from them.

    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    python tests/deploy_targets/tensorrt/interface_from_wheel.py tensorrt_cu13_bindings-11.4.0.106-*.whl

The bindings import without TensorRT when libraries of its names are there: small ones are compiled here (gcc)
whose functions return nothing. That is enough to read names, members and, from pybind11's docstrings, the
parameters of each overload; nothing of TensorRT runs. The wheel must be for the Python that runs this.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("interface.json")
# What this project touches, and what stands beside it.
CLASSES = (
    "Builder", "BuilderFlag", "DeviceType", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile",
    "IProgressMonitor", "ITensor", "ITimingCache", "LayerInformationFormat", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserFlag", "ParserError", "ProfilingVerbosity",
    "Runtime", "TensorIOMode",
)  # fmt: skip
FUNCTIONS = ("createInferBuilder", "createInferRefitter", "createInferRuntime", "createNvOnnxParserRefitter",
             "createNvOnnxParser")  # fmt: skip
STUBS = "".join(f"void* {name}_INTERNAL(void) {{ return 0; }}\n" for name in FUNCTIONS) + (
    "void* getBuilderPluginRegistry(int k) { return 0; }\nvoid* getPluginRegistry(void) { return 0; }\n"
    "int getNvOnnxParserVersion(void) { return 0; }\n"
    "int initLibNvInferPlugins(void* l, char* n) { return 1; }\n"
)
_PARAMETER = re.compile(r"(\w+): ")


def main(wheel: str) -> None:
    """Read one wheel in a child process that finds the libraries, and put its column into the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zipfile.ZipFile(wheel).extractall(folder)
        (folder / "stubs.c").write_text(STUBS)
        needed = subprocess.run(
            ["readelf", "-d", folder / "tensorrt_bindings" / "tensorrt.so"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", needed):
            subprocess.run(
                ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library, "stubs.c"],
                cwd=folder,
                check=True,
            )
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
        answer = subprocess.run(
            [sys.executable, __file__, "--child"], env=environment, capture_output=True, text=True, check=True
        ).stdout
    version, names = json.loads(answer)
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table[version] = names
    order = sorted(table, key=lambda text: [int(part) for part in text.split(".")])
    lines = [
        f" {json.dumps(version)}: {{\n"
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(table[version][key])}" for key in table[version])
        + "\n }"
        for version in order
    ]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_bindings() -> tuple[str, dict[str, Any]]:
    """Version, and class -> member -> parameters of all overloads; null for what is no function."""
    import tensorrt_bindings as trt

    names: dict[str, Any] = {
        "module": {**dict.fromkeys(CLASSES), "nptype": ["trt_type"], "__version__": None}
    }
    for name in CLASSES:
        kind = getattr(trt, name)
        inner = {key for key in dir(kind) if not key.startswith("_")} | {"__init__"}
        names[name] = {key: _parameters(getattr(kind, key)) for key in sorted(inner)}
    names["ILogger.Severity"] = dict.fromkeys(sorted(trt.ILogger.Severity.__members__))
    return trt.__version__, names


def _parameters(member: Any) -> list[str] | None:
    if not callable(member) or isinstance(member, type):
        return None
    text = inspect.getdoc(member) or ""
    signatures = [line for line in text.splitlines() if re.match(r"(\d+\. )?\w+\(.*\) -> ", line)]
    found = {name for line in signatures for name in _PARAMETER.findall(line.partition(") -> ")[0])}
    return sorted(found - {"self"})


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        print(json.dumps(read_bindings()))
    else:
        main(sys.argv[1])
