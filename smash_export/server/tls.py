"""TLS of HTTP connections: a place from the first byte on, and a short time until both sides agree.

asyncio shakes hands before the server hears of a connection. Connections that never do so would be counted
nowhere and hold their files for a minute; so here they are plain ones that are counted first.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from smash_export.server.connections import Connections

HANDSHAKE_S = 10.0


class Handshake(asyncio.Protocol):
    """A connection until both sides have agreed on a key; then that of ``connection`` goes on. What is one
    server's are class attributes of a subclass: :func:`handshake_class`."""

    connection: Callable[..., asyncio.Protocol]
    context: ssl.SSLContext
    places: Connections
    seconds: float

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.address = ""
        self._arguments, self._keywords = arguments, keywords
        self._early: list[bytes] = []  # came with the client's last words of the handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        self._plain = transport
        self.places.admit(self)
        self._task = asyncio.get_running_loop().create_task(self._agree())

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def evict(self) -> None:
        """Make room for another connection."""
        self._plain.abort()

    def expire(self) -> None:
        """It owes no answer."""

    async def _agree(self) -> None:
        encrypted = None
        try:
            if not self._plain.is_closing():
                encrypted = await asyncio.get_running_loop().start_tls(
                    self._plain,
                    self,
                    self.context,
                    server_side=True,
                    ssl_handshake_timeout=self.seconds,
                    ssl_shutdown_timeout=self.seconds,
                )
        except OSError:  # no TLS, or too slow; closed already
            pass
        finally:
            self.places.leave(self)
        if encrypted is None:  # the client left
            return
        connection = self.connection(*self._arguments, **self._keywords)
        encrypted.set_protocol(connection)
        connection.connection_made(encrypted)
        if self._early:
            connection.data_received(b"".join(self._early))


def handshake_class(
    connection: Callable[..., asyncio.Protocol],
    context: ssl.SSLContext,
    places: Connections,
    body_seconds: float,
) -> type[Handshake]:
    """The class of connections of one server before TLS.

    Args:
        connection: makes what goes on when TLS is there.
        context: certificate and key.
        places: Places of all connections.
        body_seconds: bound of the time for headers, and for a handshake if it is shorter than the usual.
    """
    shared = {"connection": connection, "context": context, "places": places}
    return type("Handshake", (Handshake,), {**shared, "seconds": min(HANDSHAKE_S, body_seconds)})
