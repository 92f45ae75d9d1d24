"""The container's own probe speaks what the server speaks."""

from __future__ import annotations

import socket
from typing import Any

from smash_export.server.healthcheck import is_ready


def test_a_ready_server_is_seen_and_an_empty_port_is_not(server: Any) -> None:
    assert is_ready(server.port)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert not is_ready(port)
