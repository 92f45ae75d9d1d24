"""Every attribute and keyword that the code uses on a TensorRT object exists in TensorRT 10.0 to 11.4.

``interface.json`` was read from NVIDIA's own Python bindings of five versions by
``interface_from_wheel.py``. Here the source is walked: each expression gets the class of the
TensorRT object that it is, from how it was made, and each attribute, method, keyword and number of arguments
on it is looked up in every version. A name that only some versions have must stand behind a ``hasattr``.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest

import smash_targets

VERSIONS = json.loads(Path(__file__).with_name("interface.json").read_text())
SOURCES = Path(smash_targets.__file__).parent / "tensorrt"
MODULES = ("builder.py", "logs.py", "target.py", "session.py", "manifest.py")
# What a method or attribute of one class gives, where that is an object of another.
GIVES = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("ITimingCache", "serialize"): "IHostMemory",
    ("OnnxParser", "get_error"): "ParserError",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("ILogger", "Severity"): "ILogger.Severity",
}
# Parameters, attributes and methods of the code that hold or give such objects.
HOLDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "trt": "module",
    "self._trt": "module",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "self._shared": "IExecutionContext",
    "self._contexts[]": "IExecutionContext",
    "self._context": "IExecutionContext",  # a method
}


class Walk(ast.NodeVisitor):
    """Collects (line, class, name, keywords, positional arguments) of every use in one module."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, str]] = [{}]
        self.guards: list[set[str]] = [set()]
        self.uses: list[tuple[int, str, str, tuple[str, ...] | None, int]] = []
        self.guarded: set[tuple[str, str]] = set()

    def kind(self, node: ast.expr) -> str | None:
        """Class of the TensorRT object that an expression is, None for any other."""
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == "create":  # of logs.py: (object, log)
                return self.kind(node.args[1])
            if ast.unparse(node.func) in ("parse", "self.parse"):
                return "INetworkDefinition"
            if isinstance(node.func, ast.Attribute):
                if ast.unparse(node.func) in HOLDS:
                    return HOLDS[ast.unparse(node.func)]
                owner = self.kind(node.func.value)
                if owner == "module":  # a constructor
                    return node.func.attr if node.func.attr in VERSIONS["11.4.0.106"] else None
                return GIVES.get((owner or "", node.func.attr))
            return None
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        text = ast.unparse(node.value) + "[]" if isinstance(node, ast.Subscript) else ast.unparse(node)
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if text in HOLDS and (text.startswith("self.") or text == "trt"):
            return HOLDS[text]
        if isinstance(node, ast.Attribute):
            owner = self.kind(node.value)
            if owner == "module" and node.attr in VERSIONS["11.4.0.106"]:
                return node.attr
            return GIVES.get((owner or "", node.attr))
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.args, *node.args.kwonlyargs]
        names = {
            argument.arg: HOLDS[argument.arg]
            for argument in arguments
            if argument.arg in HOLDS and ast.unparse(argument.annotation or ast.Constant(0)) == "Any"
        }
        self.scopes.append(names)
        calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
        self.guards.append(
            {ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "hasattr"}
        )
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()
        self.guards.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        kind = self.kind(node.value)
        for target in node.targets:
            pairs = [(target, kind)]
            if isinstance(target, ast.Tuple) and ast.unparse(node.value).startswith("create("):
                pairs = [(target.elts[0], kind)]
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = [(a, self.kind(b)) for a, b in zip(target.elts, node.value.elts, strict=True)]
            for single, found in pairs:
                self.visit(single)
                if found is not None:
                    self.scopes[-1][ast.unparse(single)] = found
        if isinstance(node.value, ast.DictComp):  # name -> object
            kind = self.kind(node.value.value)
            if kind is not None:
                self.scopes[-1][ast.unparse(node.targets[0]) + "[]"] = kind

    def visit_Attribute(self, node: ast.Attribute, call: ast.Call | None = None) -> None:
        owner = self.kind(node.value)
        if owner is not None:
            keywords = None if call is None else tuple(item.arg or "*" for item in call.keywords)
            self.uses.append((node.lineno, owner, node.attr, keywords, len(call.args) if call else 0))
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in ("hasattr", "getattr") and self.kind(node.args[0]):
            owner = self.kind(node.args[0])
            name = ast.unparse(node.args[1])
            assert name in self.guards[-1], f"getattr without hasattr: line {node.lineno}"
            self.guarded.add((owner or "", name.strip("'")))
        if isinstance(node.func, ast.Attribute):
            self.visit_Attribute(node.func, node)
        else:
            self.visit(node.func)
        for part in (*node.args, *(item.value for item in node.keywords)):
            self.visit(part)


def complaints(source: str) -> tuple[list[str], Counter[str]]:
    """What is wrong with the uses in a source text, and how many uses of each class there are."""
    walk = Walk()
    walk.visit(ast.parse(source))
    found = []
    for line, owner, name, keywords, count in walk.uses:
        if (owner, name) in walk.guarded or name == "__name__":  # every module has that
            continue
        for version, classes in VERSIONS.items():
            members = classes[owner]
            if name not in members:
                found.append(f"line {line}: {owner}.{name} is not in {version}")
            elif keywords is not None and members[name] is not None:
                unknown = [word for word in keywords if word != "*" and word not in members[name]]
                if unknown:
                    found.append(f"line {line}: {owner}.{name} has no {unknown[0]} in {version}")
                if count + len(keywords) > len(members[name]) and name != "__init__":  # called on the class
                    found.append(f"line {line}: {owner}.{name} takes fewer arguments in {version}")
    return found, Counter(owner for _, owner, *_ in walk.uses)


@pytest.mark.parametrize("name", MODULES)
def test_every_use_exists_in_every_version(name: str) -> None:
    found, _ = complaints((SOURCES / name).read_text())
    assert found == []


def test_the_walk_sees_every_kind_of_object() -> None:
    seen: Counter[str] = Counter()
    for name in MODULES:
        seen += complaints((SOURCES / name).read_text())[1]
    expected = """
        module Builder BuilderFlag DeviceType EngineInspector IBuilderConfig ICudaEngine IExecutionContext
        ILogger ILogger.Severity INetworkDefinition IOptimizationProfile IProgressMonitor ITensor ITimingCache
        LayerInformationFormat MemoryPoolType NetworkDefinitionCreationFlag OnnxParser ParserError
        ProfilingVerbosity Runtime TensorIOMode
    """
    assert set(expected.split()) <= set(seen)
    assert seen["IBuilderConfig"] >= 12
    assert seen["IExecutionContext"] >= 5


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16 is not in 11.4"),
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "EXPLICIT_BATCH is not in 11.4"),
        ("config.int8_calibrator = 1", "IBuilderConfig.int8_calibrator is not in 11.4"),
        ("parser.supports_model(b'')", "OnnxParser.supports_model is not in 11.4"),
        ("trt.Builder(0).platform_has_fast_fp16", "platform_has_fast_fp16 is not in 11.4"),
        ("builder.max_workspace_size = 1", "max_workspace_size is not in 10.0"),
        ("config.set_timing_cache(1, ignore=False)", "set_timing_cache has no ignore"),
        (
            "trt.Runtime(0).deserialize_cuda_engine(b'').create_execution_context().execute_async_v2(1)",
            "async_v2",
        ),
        (
            "trt.Runtime(0).deserialize_cuda_engine(b'').device_memory_size",
            "device_memory_size is not in 11.4",
        ),
        ("trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", "is not in 10.3"),
        ("trt.IInt8Calibrator", "module.IInt8Calibrator"),
    ],
)
def test_what_a_version_does_not_have_is_found(line: str, complaint: str) -> None:
    found, _ = complaints(f"def f(trt: Any, builder: Any, config: Any, parser: Any):\n    {line}\n")
    assert any(complaint in text for text in found), found


def test_a_guarded_name_may_be_missing_in_some_versions() -> None:
    guarded = (
        "def f(trt: Any, parser: Any, config: Any):\n"
        "    if hasattr(parser, 'set_builder_config'):\n        parser.set_builder_config(config)\n"
    )
    assert complaints(guarded)[0] == []
    assert complaints(guarded.replace("hasattr(parser, 'set_builder_config')", "True"))[0]


def test_methods_that_tensorrt_calls_have_the_parameters_it_passes() -> None:
    methods = {
        node.name: len(node.args.args) - 1
        for name in MODULES
        for node in ast.walk(ast.parse((SOURCES / name).read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    for classes in VERSIONS.values():
        assert methods["log"] == len(classes["ILogger"]["log"])
        for name in ("phase_start", "step_complete", "phase_finish"):
            assert methods[name] == len(classes["IProgressMonitor"][name])


def test_no_enum_is_stored_as_a_number() -> None:
    """Their values moved between 10 and 11: STRONGLY_TYPED is 1 in one and 0 in the other."""
    for name in MODULES:
        for node in ast.walk(ast.parse((SOURCES / name).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("create_network", "set_flag", "clear_flag")
            ):
                assert not any(isinstance(part, ast.Constant) for part in node.args), node.lineno
