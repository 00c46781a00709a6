"""What a contestant of `tools.bench.device` makes beforehand, in parallel, and times afterwards."""

import math
import statistics
import time

TOGETHER = 0.03  # seconds that calls last which are waited for together, at least
LEAST = 3  # of such bundles
MOST = 64  # calls in one
LONE = 7  # calls that are waited for one by one


class Jobs:
    """Cases that are made in the background, and what is asked of them.

    Args:
        pool: executor that makes them.
        makers: list of functions without arguments; what they return has a `time(seconds)`, that
            gives a dict.
        worker: executor that times. Defaults to `None`, for the calling thread.
    """

    def __init__(self, pool, makers, worker=None):
        self.pool, self.worker = pool, worker
        self.seconds = {}
        self.futures = [pool.submit(self._make, i, make) for i, make in enumerate(makers)]

    def _make(self, number, make):
        start = time.perf_counter()
        made = make()
        self.seconds[number] = time.perf_counter() - start
        return made

    def answers(self):
        """The questions that a process of it answers, for `processes.serve`."""
        return {"made": self.made, "stop": self.stop, "time": self.time}

    def made(self):
        """For each case "waiting", "making", "made" or why it could not be."""
        return [self._state(future) for future in self.futures]

    def _state(self, future):
        if future.cancelled():
            return "stopped"
        if not future.done():
            return "making" if future.running() else "waiting"
        return "made" if future.exception() is None else _why(future.exception())

    def stop(self):
        """No further case is made."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        return True

    def time(self, number, seconds):
        """The figures of a case, with "made_s"; "refused" says why there are none."""
        future = self.futures[number]
        try:
            case = future.result(timeout=0)
            if self.worker is None:
                found = case.time(seconds)
            else:
                found = self.worker.submit(case.time, seconds).result()
        except Exception as error:
            return {"refused": _why(error)}
        return {**found, "made_s": self.seconds[number]}


def _why(error):
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def times(call, wait, seconds):
    """{"times": milliseconds a call, of calls waited for together; "lone_ms": of one by itself}.

    What a processor does to start a call is hidden behind the calls before it, as it is in a
    network or a training; a call by itself has it in its time.

    Args:
        call: function that starts something and returns what is waited for.
        wait: function of what a call returned.
        seconds: float, how long it is called for, but for what the least number of calls takes.
    """
    wait(call())
    wait(call())
    lone = statistics.median(_milliseconds(call, wait, 1) for _ in range(LONE))
    count = max(1, min(MOST, math.ceil(1000 * TOGETHER / lone)))
    found, end = [], time.perf_counter() + seconds
    while len(found) < LEAST or time.perf_counter() < end:
        found.append(_milliseconds(call, wait, count))
    return {"times": found, "lone_ms": lone}


def _milliseconds(call, wait, count):
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    wait(result)
    return 1000 * (time.perf_counter() - start) / count


def rate(product, wait, size):
    """TFLOP/s of a product of two square matrices: of the quickest bundle."""
    return 2 * size**3 / min(times(product, wait, 0.15)["times"]) / 1e9
