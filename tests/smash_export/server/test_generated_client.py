"""A client that a generator makes from /openapi.json works: names and schemas are as it needs them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openapi_python_client")
pytestmark = pytest.mark.slow  # the generator takes seconds


@pytest.fixture(scope="module")
def generated(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("client")
    description = folder / "openapi.json"
    description.write_bytes(server.call("GET", "/openapi.json")[2])
    (folder / "settings.yml").write_text(
        "project_name_override: digits-client\npackage_name_override: digits_client\npost_hooks: []\n"
    )
    words = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(description)]
    words += ["--config", str(folder / "settings.yml"), "--output-path", str(folder / "made")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder / "made"))
    yield lambda name: importlib.import_module(f"digits_client.{name}" if name else "digits_client")
    sys.path.remove(str(folder / "made"))


def test_a_generated_client_asks_and_understands(
    generated: Any, server: Any, tensor: np.ndarray, logits: np.ndarray
) -> None:
    client = generated("").Client(base_url=f"http://{server.host}:{server.port}")
    ready = generated("api.default.get_v2_health_ready").sync_detailed(client=client)
    assert ready.status_code == 200
    models = generated("models")
    about = generated("api.default.get_v2_models_model").sync(client=client, model="digits")
    assert isinstance(about, models.ModelMetadata)
    assert about.versions == ["1", "2"]
    request = models.InferRequest.from_dict(
        {
            "inputs": [
                {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": [1, 1, 8, 8],
                    "data": tensor[0].ravel().tolist(),
                }
            ]
        }
    )
    infer = generated("api.default.post_v2_models_model_infer")
    answer = infer.sync(client=client, model="digits", body=request)
    assert isinstance(answer, models.InferResponse)
    np.testing.assert_allclose(answer.outputs[0].data, logits[0], atol=1e-4)
    wrong = infer.sync(client=client, model="letters", body=request)
    assert isinstance(wrong, models.Error)
    assert "no model 'letters'" in wrong.error


def test_every_schema_and_operation_has_a_name(server: Any) -> None:
    description = json.loads(server.call("GET", "/openapi.json")[2])
    assert {"Error", "InferRequest", "InferResponse", "PredictResponse"} <= set(
        description["components"]["schemas"]
    )
    operations = [
        item for path in description["paths"].values() for item in path.values() if isinstance(item, dict)
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names)) > 20
    text = json.dumps(description)
    for name in description["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text
