"""The event loop of a server: a few sockets at a time, those that came last first, then what they ask for.

asyncio reads every socket that has something before anything else runs. With hundreds of clients that do not
wait, an answer that is ready waits until all of their requests are read, and each of these has waited for
those before it. So a turn of this loop takes a few sockets only: half of them those that came last, whose
requests can still be answered in time, and half of them those that wait longest, so that nobody is forgotten
("adaptive LIFO" of B. Maurer, "Fail at Scale", ACM Queue 13/8, 2015). How long each has waited is told to
those who decide what is too old to be worth running.

A long turn fills the batches of a network, a short one lets answers out sooner: turns are short while sockets
wait for long.

The kernel is asked again only about sockets that it has not told of: with 256 of them waiting, a turn of 8
that asked for all took longer to ask than to answer.

What is run in the loop itself is run between two turns (:meth:`TurnLoop.call_after_turn`), so that a turn
reads what has come up to its begin: asyncio alone would ask for sockets, run the network, and only then read
those that it had asked for, while newer ones have come.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import selectors
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

TURN = 32  # sockets of one turn
SHORT_TURN = 8  # while they wait for long
_LONG_S = 0.004  # that the longest wait, averaged, may take before turns are short
_AVERAGE_S = 0.1  # time constant of the average wait


class _Waiting(NamedTuple):
    """A socket that is ready and was not returned yet.

    Attributes:
        since: when it was first seen.
        key, events: as a selector returns them.
    """

    since: float
    key: selectors.SelectorKey
    events: int


class TurnSelector(selectors.DefaultSelector):
    """A selector that returns a few of the sockets that are ready.

    Args:
        most: Sockets of one turn.
        few: Sockets of a turn while others wait for long.

    Attributes:
        average: seconds that the one that waits longest has waited, averaged over a tenth of a second.
    """

    def __init__(self, most: int = TURN, few: int = SHORT_TURN) -> None:
        super().__init__()
        self.average = 0.0
        self._most, self._few = most, few
        self._waiting: dict[int, _Waiting] = {}  # by descriptor; longest first
        self._waited: dict[int, float] = {}  # of this turn, where it is not 0
        self._asked = time.perf_counter()
        self._held = False
        # The same set of sockets, whose events can be taken out and put back without asyncio's noticing.
        self._epoll: select.epoll | None = None
        if hasattr(select, "epoll") and isinstance(self, selectors.EpollSelector):
            self._epoll = select.epoll.fromfd(os.dup(self.fileno()))

    def waited(self, descriptor: int) -> float:
        """Seconds that what is read in this turn has waited since it was first seen; 0 for what is new."""
        return self._waited.get(descriptor, 0.0)

    def hold(self) -> None:
        """Return nothing the next time: something is to be run before anything else is read."""
        self._held = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As every selector; what is not returned comes in a later turn."""
        if self._held:
            self._held = False
            return []
        waiting = self._waiting
        ready = super().select(0 if waiting else timeout)
        now = time.perf_counter()
        most = self._few if self.average > _LONG_S else self._most
        if len(ready) <= most and not waiting:
            if self._waited:
                self._waited = {}
            self._count(now, now)
            return ready
        for key, events in ready:
            before = waiting.get(key.fd)
            waiting[key.fd] = _Waiting(now if before is None else before.since, key, events)
        self._count(now, next(iter(waiting.values())).since)
        if len(waiting) > most:
            half = most // 2
            chosen = [*islice(reversed(waiting), half), *islice(waiting, most - half)]
        else:
            chosen = list(waiting)
        turn = [waiting.pop(descriptor) for descriptor in chosen]
        self._waited = {one.key.fd: now - one.since for one in turn if one.since != now}
        self._tell(turn, ready)
        return [(one.key, one.events) for one in turn]

    def _tell(self, turn: list[_Waiting], ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Let the kernel tell of sockets that are read now, and no longer of those that wait."""
        epoll = self._epoll
        if epoll is None:
            return
        for one in turn:
            if one.key.fd in self._waited:
                epoll.modify(one.key.fd, _mask(one.key.events))
        for key, _ in ready:
            waiting = self._waiting.get(key.fd)
            if waiting is not None and waiting.since == self._asked:
                epoll.modify(key.fd, 0)

    def _count(self, now: float, oldest: float) -> None:
        kept = math.exp((self._asked - now) / _AVERAGE_S)
        self.average = kept * self.average + (1 - kept) * (now - oldest)
        self._asked = now

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As every selector; a socket that waits is asked for again."""
        key = super().modify(fileobj, events, data)
        if self._waiting.pop(key.fd, None) is not None and self._epoll is not None:
            self._epoll.modify(key.fd, _mask(events))
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As every selector; the next one with its descriptor is another."""
        key = super().unregister(fileobj)
        self._waiting.pop(key.fd, None)
        return key

    def close(self) -> None:
        """As every selector."""
        super().close()
        if self._epoll is not None:
            self._epoll.close()


def _mask(events: int) -> int:
    """Events of a selector as epoll names them."""
    mask = select.EPOLLIN if events & selectors.EVENT_READ else 0
    return mask | (select.EPOLLOUT if events & selectors.EVENT_WRITE else 0)


class TurnLoop(asyncio.SelectorEventLoop):
    """The loop that goes with the selector.

    Attributes:
        turns: the selector.
    """

    def __init__(self) -> None:
        self.turns = TurnSelector()
        super().__init__(self.turns)

    def call_after_turn(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call something when what this turn reads is read, and before anything else is."""
        self.turns.hold()
        self.call_soon(callback, *arguments)


def call_after_turn(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """:meth:`TurnLoop.call_after_turn`, or as soon as another kind of loop can."""
    if isinstance(loop, TurnLoop):
        loop.call_after_turn(callback)
    else:
        loop.call_soon(callback)
