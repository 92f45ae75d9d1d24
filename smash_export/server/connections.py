"""Who may be connected: a bound on all connections and on those of one address, and who goes first.

When there is no room, the connection that has asked for nothing for longest is closed: one that idles
between two requests, one whose answer is sent and whose body still drips, one that never spoke. Then the one
that has been sending a request for longest. Who did either for less than a second goes last or not at all,
and one whose request is being worked on never.

If nobody can go, a newcomer gets a place in a small share beside the bound, where only health is answered:
an orchestrator must not restart a server for having too many clients.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from typing import Protocol

from smash_export.server.logs import Throttle

HEALTH_SHARE = 32
_PATIENCE_S = 1.0  # a request that has been coming for longer may be given up for another's sake


class Closable(Protocol):
    """A connection.

    Attributes:
        address: Address of the client.
    """

    address: str

    def evict(self) -> None:
        """Close at once."""

    def expire(self) -> None:
        """The answer that it owes is late."""


class Connections:
    """The connections of one server.

    Args:
        most: Most connections of all clients together.
        per_address: Most connections of one client's address.
    """

    def __init__(self, most: int, per_address: int | None = None) -> None:
        self.most = most
        self.per_address = per_address or most
        self._by_address: Counter[str] = Counter()
        self._members: set[Closable] = set()
        self._resting: dict[Closable, float] = {}  # since when; longest first
        self._sending: dict[Closable, float] = {}  # since when; longest first
        self._working: dict[Closable, float] = {}  # since when; longest first
        self._extra: dict[Closable, None] = {}
        self._log = Throttle(1, 10.0)

    def __len__(self) -> int:
        return len(self._members) + len(self._extra)

    def admit(self, connection: Closable) -> bool:
        """Take a new connection. False: it has a place where only health is answered."""
        address = connection.address
        here = self._by_address[address] >= self.per_address
        if (here and not self._make_room(address)) or (
            len(self._members) >= self.most and not self._make_room(None)
        ):
            self._log.log(logging.WARNING, "too many connections", open=len(self), address=address)
            self._extra[connection] = None
            if len(self._extra) > HEALTH_SHARE:
                self._drop(next(iter(self._extra)))
            return False
        self._members.add(connection)
        self._by_address[address] += 1
        self._resting[connection] = time.monotonic()
        return True

    def sends(self, connection: Closable) -> None:
        """A request begins to come."""
        if connection in self._members:
            self._resting.pop(connection, None)
            self._sending.setdefault(connection, time.monotonic())

    def works(self, connection: Closable) -> None:
        """A request is there; its answer is owed."""
        self._sending.pop(connection, None)
        self._resting.pop(connection, None)
        self._working.setdefault(connection, time.monotonic())

    def rests(self, connection: Closable) -> None:
        """Every answer is sent."""
        self._working.pop(connection, None)
        if connection in self._members:
            self._sending.pop(connection, None)
            self._resting.pop(connection, None)
            self._resting[connection] = time.monotonic()

    def leave(self, connection: Closable) -> None:
        """It is closed."""
        self._resting.pop(connection, None)
        self._sending.pop(connection, None)
        self._working.pop(connection, None)
        self._extra.pop(connection, None)
        if connection in self._members:
            self._members.discard(connection)
            self._by_address[connection.address] -= 1
            if not self._by_address[connection.address]:
                del self._by_address[connection.address]

    def drop_resting(self, count: int) -> None:
        """Close connections that ask for nothing, the longest first."""
        for connection in list(self._resting)[:count]:
            self._drop(connection)

    def expire(self, rest_seconds: float, answer_seconds: float) -> None:
        """Close what has asked for nothing for too long, and give up answers that take too long. One look at
        all of them now and then costs less than a timer for each request."""
        now = time.monotonic()
        while (idle := _first(self._resting, now - rest_seconds, None)) is not None:
            self._drop(idle)
        for connection, since in list(self._working.items()):
            if since >= now - answer_seconds:
                break
            connection.expire()

    def _make_room(self, address: str | None) -> bool:
        late = time.monotonic() - _PATIENCE_S
        victim = (
            _first(self._resting, late, address)
            or _first(self._sending, late, address)
            or _first(self._resting, math.inf, address)
        )
        if victim is None:
            return False
        self._drop(victim)
        return True

    def _drop(self, connection: Closable) -> None:
        self.leave(connection)
        connection.evict()


def _first(connections: dict[Closable, float], before: float, address: str | None) -> Closable | None:
    """The one that has been there longest, since before that time."""
    for connection, since in connections.items():
        if since >= before:
            return None
        if address in (None, connection.address):
            return connection
    return None
