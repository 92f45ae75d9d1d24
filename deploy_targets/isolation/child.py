"""The child of :mod:`smash_targets.isolation.parent`; run as a file, by any interpreter that has NumPy."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smash_base.json_values import JsonObject


def main() -> None:
    """Serve one parent."""
    _adopt("smash_base", "smash_targets")
    from smash_targets.isolation.answers import answer_all

    answer_all(sys.argv[1], _Runtime(sys.argv[1]).answer)


def _adopt(*packages: str) -> None:
    """Make these packages importable from here without the rest of the folder that they lie in, which
    may be the site-packages of another interpreter."""
    for name in packages:
        folder = Path(__file__).absolute().parents[2] / name
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"{folder} is not a package")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


class _Runtime:
    """One target, and the file that it holds open."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._session: Any = None

    def answer(self, message: dict[str, Any], array: Any, send: Any) -> tuple[JsonObject, Any]:
        """Compile, open or run, as ``do`` says."""
        from smash_targets.base import SessionOptions

        if message["do"] == "compile":
            target = _target(self._name)
            target.on_progress = lambda *progress: send({"progress": progress})
            request = _request(message["request"], array)
            written = target.compile(request, Path(message["destination"]))
            return {"main": written.main, "notes": dict(written.notes)}, None
        if message["do"] == "open":
            signature = _signature(message["signature"])
            options = SessionOptions(**message["options"])
            self._session = _target(self._name).open(Path(message["path"]), signature, options)
            return {"info": vars(self._session.info)}, None
        assert self._session is not None
        started = time.perf_counter()
        result = self._session.run(array)
        return {"seconds": time.perf_counter() - started}, result


def _target(name: str) -> Any:
    from smash_targets.base import get_target

    if ":" not in name:
        return get_target(name)
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def _signature(values: dict[str, Any]) -> Any:
    from smash_targets.base import ModelSignature

    shapes = {"input_shape": tuple(values["input_shape"]), "batch": tuple(values["batch"])}
    return ModelSignature(**{**values, **shapes})


def _request(values: dict[str, Any], calibration: Any) -> Any:
    from smash_targets.base import CompileRequest

    paths = {
        key: Path(values[key]) for key in ("onnx", "torchscript", "torch_program") if values[key] is not None
    }
    return CompileRequest(
        **{**values, **paths, "signature": _signature(values["signature"]), "calibration": calibration}
    )


if __name__ == "__main__":
    main()
