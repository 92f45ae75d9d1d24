"""A turn of the event loop: few sockets, those that came last first, and nobody forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import selectors
import socket
import time
from collections.abc import Iterator

import pytest

from smash_export.server.turns import TurnLoop, TurnSelector


class Pairs:
    """Connections of which one end is read through a selector."""

    def __init__(self, count: int, most: int, few: int) -> None:
        self.selector = TurnSelector(most, few)
        self.pairs = [socket.socketpair() for _ in range(count)]
        for number, (_, ours) in enumerate(self.pairs):
            self.selector.register(ours, selectors.EVENT_READ, number)

    def send(self, *numbers: int) -> None:
        """One byte from each of these clients."""
        for number in numbers:
            self.pairs[number][0].send(b"x")

    def turn(self) -> list[int]:
        """Read what the selector says is to be read; whose it was, in this order."""
        found = []
        for key, _ in self.selector.select(0):
            assert self.pairs[key.data][1].recv(1) == b"x"
            found.append(key.data)
        return found

    def waited(self, number: int) -> float:
        return self.selector.waited(self.pairs[number][1].fileno())


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs(12, 4, 2)
    yield made
    made.selector.close()
    for pair in made.pairs:
        for end in pair:
            with contextlib.suppress(OSError):
                end.close()


def test_few_are_read_at_once_and_have_not_waited(pairs: Pairs) -> None:
    pairs.send(3, 1)
    assert sorted(pairs.turn()) == [1, 3]
    assert pairs.waited(1) == pairs.waited(3) == 0
    assert pairs.turn() == []
    assert pairs.selector.average == 0


def test_of_many_the_last_come_first_and_the_first_are_not_forgotten(pairs: Pairs) -> None:
    for number in range(6):
        pairs.send(number)
    first = pairs.turn()
    assert len(first) == 4
    left = set(range(6)) - set(first)
    time.sleep(0.02)
    pairs.send(6, 7, 8, 9)
    second = pairs.turn()
    new, old = second[:2], second[2:]
    assert set(new) < {6, 7, 8, 9}
    assert set(old) == left
    assert all(pairs.waited(number) == 0 for number in new)
    assert all(pairs.waited(number) >= 0.02 for number in old)


def test_who_comes_again_and_again_shuts_nobody_out(pairs: Pairs) -> None:
    pairs.send(*range(12))
    read: set[int] = set()
    for _ in range(12):
        turn = pairs.turn()
        read.update(turn)
        pairs.send(*turn)  # each asks again as soon as it is answered
    assert read == set(range(12))


def test_waiting_shows_in_the_average_and_ends_with_it(pairs: Pairs) -> None:
    deadline = time.perf_counter() + 5
    pairs.send(*range(12))
    while pairs.selector.average < 0.01 and time.perf_counter() < deadline:
        time.sleep(0.02)
        pairs.send(*pairs.turn())
    assert pairs.selector.average >= 0.01
    assert len(pairs.turn()) == 2  # turns are short meanwhile
    while pairs.turn():
        pass
    time.sleep(0.3)
    pairs.turn()
    assert pairs.selector.average < 0.01


def test_a_descriptor_that_is_used_again_has_not_waited(pairs: Pairs) -> None:
    pairs.send(*range(6))
    first = pairs.turn()
    (late, *_) = set(range(6)) - set(first)
    ours = pairs.pairs[late][1]
    pairs.selector.unregister(ours)
    pairs.selector.register(ours, selectors.EVENT_READ, late)
    assert late in pairs.turn()
    assert pairs.waited(late) == 0


def test_the_kernel_tells_once_of_a_socket_that_waits(pairs: Pairs) -> None:
    pairs.send(*range(12))
    first = pairs.turn()
    kernel = select.epoll.fromfd(os.dup(pairs.selector.fileno()))
    assert kernel.poll(0) == []
    pairs.send(*first)
    assert len(kernel.poll(0)) == 4  # those that do not wait are told of as ever
    kernel.close()
    while pairs.turn():
        pass
    pairs.send(*range(4))
    assert sorted(pairs.turn()) == [0, 1, 2, 3]


def test_a_socket_that_waits_may_close_or_be_asked_for_something_else(pairs: Pairs) -> None:
    pairs.send(*range(12))
    first = pairs.turn()
    gone, written, *_ = sorted(set(range(12)) - set(first))
    pairs.pairs[gone][0].close()
    pairs.selector.modify(pairs.pairs[written][1], selectors.EVENT_WRITE, written)
    asked = {}
    for _ in range(12):
        for key, events in pairs.selector.select(0):
            pairs.pairs[key.data][1].recv(1)
            asked[key.data] = events
            if events & selectors.EVENT_WRITE:
                pairs.selector.unregister(key.fileobj)
    assert asked[gone] == selectors.EVENT_READ
    assert asked[written] == selectors.EVENT_WRITE
    assert set(asked) | set(first) == set(range(12))


def test_what_follows_a_turn_comes_before_the_next_one() -> None:
    """A socket that has something while the loop does what the turn asked for is read after that, and what
    was ready before the turn is read before it."""
    loop, told = TurnLoop(), []
    mine, other = socket.socketpair()

    def read() -> None:
        told.append(mine.recv(1))
        if len(told) == 1:
            loop.call_after_turn(after)

    def after() -> None:
        told.append(b"after")
        other.send(b"2")
        loop.call_soon(told.append, b"soon")
        loop.call_later(0.05, loop.stop)

    with mine, other:
        loop.add_reader(mine, read)
        other.send(b"1")
        loop.call_soon(lambda: None)
        loop.run_forever()
        loop.remove_reader(mine)
    loop.close()
    assert told == [b"1", b"after", b"soon", b"2"]
    assert isinstance(loop, asyncio.SelectorEventLoop)
