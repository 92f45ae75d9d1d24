"""The queue: what waits runs together, what is too much is refused, nothing is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from smash_base.errors import InvalidInputError, VerificationError
from smash_export.server.batching import (
    Batcher,
    BusyError,
    LoopRequest,
    QueuedRequest,
    QueueLimits,
    ThreadRequest,
)
from smash_export.server.grpc_service import _to_grpc
from smash_export.server.middleware import to_http


class Runner:
    """Doubles its input and remembers batch sizes; can be held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.running = threading.Event()

    def __call__(self, tensor: np.ndarray) -> np.ndarray:
        self.running.set()
        assert self.go.wait(10)
        self.sizes.append(len(tensor))
        return tensor * 2


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    made.go.set()


def request(*values: float) -> ThreadRequest:
    return ThreadRequest(np.array(values, np.float32)[:, None])


def hold(runner: Runner, batcher: Batcher) -> ThreadRequest:
    """Occupy the worker."""
    runner.go.clear()
    first = request(0)
    batcher.submit(first)
    assert runner.running.wait(10)
    return first


def test_what_gathered_while_the_worker_was_busy_runs_together(runner: Runner) -> None:
    seen: list[QueuedRequest] = []
    batcher = Batcher(runner, QueueLimits(max_batch=4), observe=seen.extend)
    first = hold(runner, batcher)
    requests = [request(1), request(2, 3), request(4, 5), request(6)]
    for waiting in requests:
        batcher.submit(waiting)
    assert batcher.waiting == 6
    runner.go.set()
    assert first.wait(5).tolist() == [[0]]
    assert [waiting.wait(5).ravel().tolist() for waiting in requests] == [[2], [4, 6], [8, 10], [12]]
    assert runner.sizes == [1, 3, 3]  # the second pair did not fit into the first four
    batcher.close()
    assert batcher.waiting == 0
    assert [item.batch for item in seen] == [1, 3, 3, 3, 3]


def test_an_idle_worker_waits_for_no_company(runner: Runner) -> None:
    batcher = Batcher(runner, QueueLimits())
    for number in range(20):
        waiting = request(number)
        batcher.submit(waiting)
        waiting.wait(5)
        assert waiting.waited < 0.1
    batcher.close()
    assert runner.sizes == [1] * 20


def test_a_delay_fills_the_batch(runner: Runner) -> None:
    batcher = Batcher(runner, QueueLimits(max_batch=3, delay=5.0))
    requests = [request(1), request(2), request(3)]
    started = time.perf_counter()
    for waiting in requests:
        batcher.submit(waiting)
        time.sleep(0.02)
    for waiting in requests:
        waiting.wait(5)
    assert time.perf_counter() - started < 4  # full before the delay was over
    batcher.close()
    assert runner.sizes == [3]


def test_a_runtime_that_fails_is_no_fault_of_the_request() -> None:
    def crash(tensor: np.ndarray) -> np.ndarray:
        raise VerificationError("the process of litert crashed (SIGSEGV) at run")

    batcher = Batcher(crash, QueueLimits())
    waiting = request(1)
    batcher.submit(waiting)
    with pytest.raises(Exception, match="SIGSEGV") as caught:
        waiting.wait(5)
    batcher.close()
    assert to_http(caught.value).status == 500
    assert _to_grpc(caught.value)[0].name == "INTERNAL"


def test_a_full_queue_refuses_at_once_and_recovers(runner: Runner) -> None:
    batcher = Batcher(runner, QueueLimits(max_batch=2, queue_size=3))
    hold(runner, batcher)
    batcher.submit(request(1, 2))
    assert not batcher.full
    with pytest.raises(BusyError, match="at most 3 images"):
        batcher.submit(request(3, 4))
    last = request(5)
    batcher.submit(last)
    assert batcher.full
    runner.go.set()
    assert last.wait(5).tolist() == [[10]]
    again = request(6)
    batcher.submit(again)
    assert again.wait(5).tolist() == [[12]]
    batcher.close()


def test_who_waited_too_long_is_refused_and_who_left_is_not_run(runner: Runner) -> None:
    batcher = Batcher(runner, QueueLimits(timeout=0.05))
    hold(runner, batcher)
    late = request(1)
    batcher.submit(late)
    time.sleep(0.1)
    gone, fresh = request(2), request(3)
    gone.abandoned = True
    batcher.submit(gone)
    batcher.submit(fresh)
    runner.go.set()
    with pytest.raises(BusyError, match="waited too long"):
        late.wait(5)
    assert fresh.wait(5).tolist() == [[6]]
    batcher.close()
    assert sum(runner.sizes) == 2


def test_a_failed_run_fails_its_requests_and_no_others() -> None:
    def run(tensor: np.ndarray) -> np.ndarray:
        if (tensor == 13).any():
            raise ValueError("the runtime broke")
        return np.where(tensor == 7, np.nan, tensor)

    batcher = Batcher(run, QueueLimits())
    for value, error in ((13, ValueError), (7, InvalidInputError)):
        bad = request(value)
        batcher.submit(bad)
        with pytest.raises(error):
            bad.wait(5)
    good = request(1)
    batcher.submit(good)
    assert good.wait(5).tolist() == [[1]]
    batcher.close()


@pytest.mark.parametrize("poison", [13, 7])
def test_a_poisoned_batch_fails_only_who_poisoned_it(runner: Runner, poison: float) -> None:
    """13 breaks the run, 7 overflows; both share a batch with others."""

    def run(tensor: np.ndarray) -> np.ndarray:
        answer = runner(tensor)
        if (tensor == 13).any():
            raise ValueError("the runtime broke")
        return np.where(tensor == 7, np.inf, answer)

    seen: list[QueuedRequest] = []
    batcher = Batcher(run, QueueLimits(max_batch=8), observe=seen.extend)
    hold(runner, batcher)
    requests = [request(1), request(2, poison), request(3), request(4, 5)]
    for waiting in requests:
        batcher.submit(waiting)
    runner.go.set()
    assert [requests[number].wait(5).ravel().tolist() for number in (0, 2, 3)] == [[2], [6], [8, 10]]
    error = ValueError if poison == 13 else InvalidInputError
    with pytest.raises(error, match="broke" if poison == 13 else "image 1 of the input"):
        requests[1].wait(5)
    batcher.close()
    assert [item.error is None for item in seen] == [True, True, False, True, True]


def test_closing_runs_what_waits_and_refuses_what_comes(runner: Runner) -> None:
    batcher = Batcher(runner, QueueLimits(max_batch=2))
    hold(runner, batcher)
    requests = [request(number) for number in range(9)]
    for waiting in requests:
        batcher.submit(waiting)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    runner.go.set()
    closer.join(5)
    assert [waiting.wait(0).item() for waiting in requests] == [2 * number for number in range(9)]
    with pytest.raises(BusyError, match="closed"):
        batcher.submit(request(1))


def test_coroutines_wait_without_blocking_their_loop(runner: Runner) -> None:
    async def main() -> None:
        batcher = Batcher(runner, QueueLimits(max_batch=8))
        runner.go.clear()
        requests = [LoopRequest(np.full((1, 1), number, np.float32)) for number in range(12)]
        for waiting in requests:
            batcher.submit(waiting)
        tasks = [asyncio.create_task(waiting.wait()) for waiting in requests]
        await asyncio.sleep(0.01)
        tasks[5].cancel()
        await asyncio.sleep(0)
        assert requests[5].abandoned
        runner.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(5), asyncio.CancelledError)
        assert [value.item() for value in results] == [2 * n for n in range(12) if n != 5]
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())


def in_loop_requests(batcher: Batcher, *sizes: int) -> list[LoopRequest]:
    """Requests of so many images, submitted in one turn of the running loop."""
    requests = [LoopRequest(np.full((size, 1), number, np.float32)) for number, size in enumerate(sizes)]
    for waiting in requests:
        batcher.submit(waiting)
    return requests


def test_a_loop_runs_short_batches_itself(runner: Runner) -> None:
    threads: list[bool] = []

    def run(tensor: np.ndarray) -> np.ndarray:
        threads.append(threading.current_thread() is threading.main_thread())
        return runner(tensor)

    async def main() -> None:
        batcher = Batcher(run, QueueLimits(max_batch=8, in_loop=4))
        requests = in_loop_requests(batcher, 1, 2, 1, 3)
        assert batcher.waiting == 7
        assert [(await waiting.wait()).ravel().tolist() for waiting in requests] == [
            [0],
            [2, 2],
            [4],
            [6, 6, 6],
        ]
        assert (runner.sizes, batcher.waiting) == ([4, 3], 0)
        (large,) = in_loop_requests(batcher, 5)  # would hold up the loop
        await large.wait()
        assert threads == [True, True, False]
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())


def test_a_loop_leaves_its_batch_to_the_thread_that_is_running_another(runner: Runner) -> None:
    async def main() -> None:
        batcher = Batcher(runner, QueueLimits(max_batch=8, in_loop=8))
        first = hold(runner, batcher)
        requests = in_loop_requests(batcher, 1, 2)
        await asyncio.sleep(0.01)  # the loop goes on
        assert not first.logits
        runner.go.set()
        assert [len(await waiting.wait()) for waiting in requests] == [1, 2]
        assert runner.sizes == [1, 3]
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())


def test_a_loop_under_lasting_overload_keeps_its_queue_short() -> None:
    def run(tensor: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return tensor

    async def main() -> None:
        batcher = Batcher(run, QueueLimits(max_batch=1, queue_size=64, standing=2, in_loop=1))
        burst = in_loop_requests(batcher, *[1] * 40)
        for waiting in burst[:30]:
            await waiting.wait()
        assert batcher.full
        with pytest.raises(BusyError, match="at most 2 images"):
            in_loop_requests(batcher, 1)
        for waiting in burst[30:]:
            await waiting.wait()
        await asyncio.sleep(0.3)  # idle again
        assert len(in_loop_requests(batcher, *[1] * 10)) == 10
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())


def test_under_lasting_overload_the_queue_is_kept_short(runner: Runner) -> None:
    def run(tensor: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return runner(tensor)

    settings = QueueLimits(max_batch=1, queue_size=64, standing=2, patience=0.2)
    batcher = Batcher(run, settings)
    burst = [request(number) for number in range(60)]
    for waiting in burst:
        batcher.submit(waiting)  # the worker was idle: a burst may fill the queue
    results: list[float] = []
    for waiting in burst:
        try:
            results.append(waiting.wait(10).item())
        except BusyError:
            continue  # it waited too long in what turned out to be no burst
    assert 5 <= len(results) < 60
    running = request(1)
    runner.go.clear()  # the queue stands still while the test fills it
    runner.running.clear()
    batcher.submit(running)
    two, third = [request(2), request(3)], request(4)
    assert runner.running.wait(5)
    for waiting in two:
        batcher.submit(waiting)
    assert batcher.full
    with pytest.raises(BusyError, match="at most 2 images"):
        batcher.submit(third)
    runner.go.set()
    assert [waiting.wait(5).item() for waiting in (running, *two)] == [2, 4, 6]
    time.sleep(0.3)  # idle again
    large = request(*range(50))
    batcher.submit(request(0))
    batcher.submit(large)
    assert len(large.wait(5)) == 50
    batcher.close()


def test_a_thread_runs_the_model_itself_when_it_is_free(runner: Runner) -> None:
    threads: list[str] = []

    def run(tensor: np.ndarray) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return runner(tensor)

    batcher = Batcher(run, QueueLimits(), name="worker")
    first = request(1)
    batcher.run(first)
    assert first.wait(0).item() == 2
    runner.running.clear()
    hold(runner, batcher)
    second = request(2)
    batcher.run(second)  # waits its turn like any other
    runner.go.set()
    assert second.wait(5).item() == 4
    assert threads == [threading.current_thread().name, "batch-worker", "batch-worker"]
    batcher.close()
    with pytest.raises(BusyError, match="closed"):
        batcher.run(request(3))
