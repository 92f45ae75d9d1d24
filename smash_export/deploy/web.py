"""A static folder that classifies in the browser: the baked ONNX file, onnxruntime-web, and a page.

    OUT/index.html  page.css  page.mjs  picture.mjs  orientation.mjs  model.onnx  model.json
        and three files of the runtime

Any server of static files serves it; pictures stay in the browser. The runtime comes from the npm package
``onnxruntime-web``, which the user has: nothing is fetched, neither here nor by the page, whose
Content-Security-Policy forbids it as well. ``picture.mjs`` is the second implementation of the preprocessing,
since a browser has no Pillow; the tests hold it against the first one in Chromium.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from smash_base import files
from smash_base.errors import MissingRuntimeError, UsageError
from smash_base.preprocess import PRESENT
from smash_export.bundle.bundle import Bundle, opened
from smash_export.deploy.bake import bake_graph, verify_baked
from smash_export.deploy.baked_runtimes import onnxruntime_run

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
MODEL = "model.json"  # what the page reads first
PAGE = Path(__file__).with_name("web_page")
ORIENTATION = Path(__file__).parents[1] / "prediction" / "orientation.mjs"  # the server's page has it as well
INSTALL = "npm install onnxruntime-web, then --runtime node_modules/onnxruntime-web"


def web(
    bundle: Bundle | Path | str, destination: Path | str, runtime: Path | str, *, force: bool = False
) -> Path:
    """Write the folder, once its network has answered all test images as PyTorch did.

    Args:
        bundle: an opened bundle or its path.
        destination: the folder to write.
        runtime: folder of the npm package onnxruntime-web, or its ``dist``.
        force: replace the folder.

    Returns:
        The folder.

    Raises:
        MissingRuntimeError: the package's files are not there.
        UsageError: the folder exists, or the network takes no pictures of a browser.
        VerificationError: the file does not answer as the network does.
    """
    bundle, destination = opened(bundle), Path(destination)
    distribution = check(bundle, destination, Path(runtime), force=force)  # before the work
    import onnx

    model = onnx.load_model_from_string(bundle.onnx.read_bytes())
    baked = bake_graph(model, bundle.preprocessing, bundle.signature, doubt_below=bundle.doubt_below)
    with files.new_folder(destination, replace=force, mark=MODEL) as folder:
        files.write_bytes(folder / "model.onnx", baked.SerializeToString(deterministic=True))
        verify_baked(bundle, "fp32", "onnxruntime", onnxruntime_run(folder / "model.onnx"))
        for file in (*sorted(PAGE.iterdir()), ORIENTATION):
            shutil.copyfile(file, folder / file.name)
        for name in RUNTIME:
            shutil.copyfile(distribution / name, folder / name)
        files.write_json(
            folder / MODEL,
            {
                "labels": list(bundle.labels),
                "preprocessing": bundle.preprocessing.to_json(),
                "present_from": PRESENT if bundle.signature.outputs == "sigmoid" else None,
                "doubt_below": bundle.doubt_below,
                "architecture": bundle.manifest.architecture,
                "onnxruntime-web": _version(distribution),
            },
        )
    return destination


def check(bundle: Bundle, destination: Path, runtime: Path, *, force: bool) -> Path:
    """The folder that holds the runtime's files, where nothing keeps :func:`web` from writing its own; raises
    what it would.
    """
    distribution = find_runtime(runtime)
    check_browser(bundle)
    files.refuse_existing(destination, replace=force, mark=MODEL)
    return distribution


def find_runtime(folder: Path) -> Path:
    """The folder that holds the runtime's files; raises MissingRuntimeError."""
    for place in (folder / "dist", folder, folder / "onnxruntime-web" / "dist"):
        if all((place / name).is_file() for name in RUNTIME):
            return place
    raise MissingRuntimeError(
        f"{folder} does not hold onnxruntime-web", expected=", ".join(RUNTIME), hint=f"Get it: {INSTALL}"
    )


def check_browser(bundle: Bundle) -> None:
    """Raise UsageError unless a browser's pictures are what the network takes, one at a time."""
    preprocessing, (least, _, _) = bundle.preprocessing, bundle.signature.batch
    if preprocessing.depth is not None or preprocessing.channels not in (1, 3):
        raise UsageError(
            "this network takes no pictures",
            expected="1 or 3 channels of two axes",
            received=preprocessing.sample_shape,
        )
    if least != 1:
        raise UsageError("this network takes several images at once only", expected="one", received=least)


def _version(distribution: Path) -> str:
    """Version of the npm package, "" where its package.json is not beside it."""
    path = distribution.parent / "package.json"
    try:
        return str(json.loads(path.read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
