"""Schemathesis on the server's own description: whatever it sends, no 5xx but 503, and documented answers."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis")

BUDGET_S = 15.0


def test_every_endpoint_survives_generated_requests(server: Any) -> None:
    schema = schemathesis.openapi.from_dict(json.loads(server.call("GET", "/openapi.json")[2]))
    schema.config.update(base_url=f"http://{server.host}:{server.port}")
    operations = [result.ok() for result in schema.get_all_operations()]
    counts = {operation.label: 0 for operation in operations}
    assert len(counts) >= 16
    started = time.monotonic()
    for position, operation in enumerate(operations):
        deadline = started + BUDGET_S * (position + 1) / len(operations)
        for mode in schemathesis.GenerationMode:  # requests that fit the description, and others
            drive(operation, operation.as_strategy(generation_mode=mode), counts, deadline)
    assert all(counts.values()), counts
    for name in ("digits", "other"):  # generated requests may have unloaded them
        assert server.call("POST", f"/v2/repository/models/{name}/load")[0] == 200
    assert server.call("GET", "/v2/health/ready")[0] == 200


def drive(operation: Any, strategy: Any, counts: dict[str, int], deadline: float) -> None:
    documented = operation.definition.raw["responses"]

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        if time.monotonic() > deadline and counts[operation.label]:
            return
        response = case.call(timeout=10)
        counts[operation.label] += 1
        status = response.status_code
        assert status < 500 or status == 503, (operation.label, response.text)
        assert str(status) in documented, (operation.label, status, response.text[:300])
        if status == 200:
            case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])
        elif case.method != "HEAD" and operation.path != "/v2/health/ready":
            assert response.json()["error"]

    with contextlib.suppress(Unsatisfiable):  # a mode that an operation without parameters lacks
        send()
