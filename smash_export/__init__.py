"""smash-export: from labelled images and a target device to a verified, served classifier.

Commands that work on images, networks and bundles are functions here, with the same name and defaults:

    import smash_export

    found = smash_export.search("digits", "runs/digits")
    smash_export.freeze("runs/digits/best.json", "digits", "bundle")
    smash_export.compile("bundle", "onnxruntime")
    print(smash_export.verify("bundle").to_json())
    for answer in smash_export.predict("bundle", "photos/*.png"):
        print(answer.source, answer.label)

:func:`load` opens a bundle once for many predictions. Importing this package costs nothing: numpy, Pillow and
a runtime are loaded by the first use of a name below, and torch only by the functions that train or trace.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smash_export.bundle.bundle import Bundle
    from smash_export.bundle.inspection import inspect
    from smash_export.compiling.compile import compile_bundle as compile
    from smash_export.deploy.bake import bake
    from smash_export.deploy.triton import write_repository as triton
    from smash_export.deploy.web import web
    from smash_export.device_search.reproduce import reproduce
    from smash_export.device_search.runs import runs
    from smash_export.device_search.search import search
    from smash_export.device_search.space import space
    from smash_export.export.adopt import adopt
    from smash_export.export.freeze import freeze
    from smash_export.measure.bench import bench
    from smash_export.measure.doctor import diagnose as doctor
    from smash_export.measure.evaluate import evaluate
    from smash_export.measure.verify import verify
    from smash_export.prediction.classifier import Classifier, load
    from smash_export.prediction.predict import predict
    from smash_export.report.compare import compare
    from smash_export.server.workers import serve
    from smash_search.data import describe as datasets
    from smash_targets.listing import targets

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Classifier",
    "__version__",
    "adopt",
    "bake",
    "bench",
    "compare",
    "compile",
    "datasets",
    "doctor",
    "evaluate",
    "freeze",
    "inspect",
    "load",
    "predict",
    "reproduce",
    "runs",
    "search",
    "serve",
    "space",
    "targets",
    "triton",
    "verify",
    "web",
]

# name -> "module:attribute", imported when the name is first used.
_PLACES = {
    "Bundle": "smash_export.bundle.bundle:Bundle",
    "Classifier": "smash_export.prediction.classifier:Classifier",
    "adopt": "smash_export.export.adopt:adopt",
    "bake": "smash_export.deploy.bake:bake",
    "bench": "smash_export.measure.bench:bench",
    "compare": "smash_export.report.compare:compare",
    "compile": "smash_export.compiling.compile:compile_bundle",
    "datasets": "smash_search.data:describe",
    "doctor": "smash_export.measure.doctor:diagnose",
    "evaluate": "smash_export.measure.evaluate:evaluate",
    "freeze": "smash_export.export.freeze:freeze",
    "inspect": "smash_export.bundle.inspection:inspect",
    "load": "smash_export.prediction.classifier:load",
    "predict": "smash_export.prediction.predict:predict",
    "reproduce": "smash_export.device_search.reproduce:reproduce",
    "runs": "smash_export.device_search.runs:runs",
    "search": "smash_export.device_search.search:search",
    "serve": "smash_export.server.workers:serve",
    "space": "smash_export.device_search.space:space",
    "targets": "smash_targets.listing:targets",
    "triton": "smash_export.deploy.triton:write_repository",
    "verify": "smash_export.measure.verify:verify",
    "web": "smash_export.deploy.web:web",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
