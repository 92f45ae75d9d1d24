"""The child of :mod:`smash_targets.isolation.parent`; run as a file, by any interpreter that has NumPy.

It answers until its input ends. Runtimes print to stdout as they like, so answers go to a descriptor of
their own and stdout goes where stderr goes.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any


def main() -> None:
    """Serve one parent."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _end_with_parent()
    _adopt("smash_base", "smash_targets")
    _serve(sys.argv[1], sys.stdin.buffer, answers)


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


def _end_with_parent() -> None:
    """A runtime that hangs never reads the end of its input; a parent that was killed cannot say so."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(name: str, questions: IO[bytes], answers: IO[bytes]) -> None:
    import numpy as np

    from smash_base.errors import SmashError
    from smash_targets import base

    def send(answer: dict[str, Any], content: bytes = b"") -> None:
        data = json.dumps(answer, default=str).encode()
        answers.write(b"%8d" % len(data) + data + content)
        answers.flush()

    target = _target(name)
    target.on_progress = lambda *progress: send({"progress": progress})
    session: base.Session | None = None
    for line in iter(questions.readline, b""):
        message = json.loads(line)
        array = None
        if message["shape"] is not None:
            size = int(np.prod(message["shape"])) * 4
            array = np.frombuffer(questions.read(size), np.float32).reshape(message["shape"])
        result = None
        try:
            if message["do"] == "compile":
                written = target.compile(_request(message["request"], array), Path(message["destination"]))
                answer: dict[str, Any] = {"main": written.main, "notes": dict(written.notes)}
            elif message["do"] == "open":
                signature = _signature(message["signature"])
                options = base.SessionOptions(**message["options"])
                session = target.open(Path(message["path"]), signature, options)
                answer = {"info": vars(session.info)}
            else:
                assert session is not None
                assert array is not None
                started = time.perf_counter()
                result = np.ascontiguousarray(session.run(array), np.float32)
                answer = {"seconds": time.perf_counter() - started}
        except SmashError as error:
            answer = {"error": {"kind": type(error).__name__, **vars(error)}}
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is an answer, not the end
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            answer = {
                "error": {
                    "kind": "disk full" if full else "VerificationError",
                    "what": f"{name} failed at {message['do']}",
                    "expected": None,
                    "received": f"{type(error).__name__}: {error}",
                    "hint": None,
                }
            }
        answer["shape"] = None if result is None else result.shape
        send(answer, b"" if result is None else result.tobytes())


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

    paths = {key: Path(values[key]) for key in ("onnx", "torchscript", "exported") if values[key] is not None}
    return CompileRequest(
        **{**values, **paths, "signature": _signature(values["signature"]), "calibration": calibration}
    )


if __name__ == "__main__":
    main()
