"""Times of connections: one look at all of them instead of a timer for each request."""

from __future__ import annotations

import time

from smash_export.server.connections import Connections


class Line:
    """A connection that remembers what happened to it."""

    def __init__(self) -> None:
        self.address = "client"
        self.closed = False
        self.late = 0

    def evict(self) -> None:
        self.closed = True

    def expire(self) -> None:
        self.late += 1


def test_who_asks_for_nothing_is_closed_and_who_waits_for_an_answer_gets_one() -> None:
    places = Connections(8)
    _, served, asking, working = lines = [Line() for _ in range(4)]
    for line in lines:
        places.admit(line)
    places.sends(asking)
    places.works(working)
    places.works(served)
    time.sleep(0.05)
    places.rests(served)  # just now
    places.expire(rest_seconds=0.04, answer_seconds=60)
    assert [line.closed for line in lines] == [True, False, False, False]
    assert not working.late
    places.expire(rest_seconds=60, answer_seconds=0.04)
    assert [line.late for line in lines] == [0, 0, 0, 1]
    assert len(places) == 3
