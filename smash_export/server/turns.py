"""The event loop of a server: a few sockets at a time, those that came last first.

asyncio reads every socket that has something before anything else runs. With hundreds of clients that do not
wait, an answer that is ready waits until all of their requests are read, and each of these has waited for
those before it. So a turn of this loop takes a few sockets only: half of them those that came last, whose
requests can still be answered in time, and half of them those that wait longest, so that nobody is forgotten
("adaptive LIFO" of B. Maurer, "Fail at Scale", ACM Queue 13/8, 2015). How long each has waited is told to
those who decide what is too old to be worth running.

A long turn fills the batches of a network, a short one lets answers out sooner: turns are short while sockets
wait for long.
"""

from __future__ import annotations

import math
import selectors
import time
from itertools import islice
from typing import Any

TURN = 32  # sockets of one turn
SHORT_TURN = 8  # while they wait for long
_LONG_S = 0.004  # that the longest wait, averaged, may take before turns are short
_AVERAGE_S = 0.1  # time constant of the average wait


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
        self._waiting: dict[int, float] = {}  # descriptor -> when it was first seen; longest first
        self._waited: dict[int, float] = {}  # of this turn, where it is not 0
        self._asked = time.perf_counter()

    def waited(self, descriptor: int) -> float:
        """Seconds that what is read in this turn has waited since it was first seen; 0 for what is new."""
        return self._waited.get(descriptor, 0.0)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As every selector; what is not returned comes in a later turn."""
        ready = super().select(timeout)
        now = time.perf_counter()
        waiting = self._waiting
        most = self._few if self.average > _LONG_S else self._most
        if len(ready) <= most and not waiting:
            if self._waited:
                self._waited = {}
            self._count(now, now)
            return ready
        found = {key.fd: (key, events) for key, events in ready}
        for descriptor in [descriptor for descriptor in waiting if descriptor not in found]:
            del waiting[descriptor]
        for descriptor in found:
            waiting.setdefault(descriptor, now)
        self._count(now, next(iter(waiting.values()), now))
        if len(ready) > most:
            half = most // 2
            chosen = [*islice(reversed(waiting), half), *islice(waiting, most - half)]
        else:
            chosen = list(waiting)
        self._waited = {descriptor: now - waiting.pop(descriptor) for descriptor in chosen}
        return [found[descriptor] for descriptor in chosen]

    def _count(self, now: float, oldest: float) -> None:
        kept = math.exp((self._asked - now) / _AVERAGE_S)
        self.average = kept * self.average + (1 - kept) * (now - oldest)
        self._asked = now

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As every selector; the next one with its descriptor is another."""
        key = super().unregister(fileobj)
        self._waiting.pop(key.fd, None)
        return key
