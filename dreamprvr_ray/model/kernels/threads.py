"""Independent parts of a computation, each on its own thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_parts(part: Callable[[int, int], Result], count: int) -> list[Result]:
    """Return part(thread, number) for every number below `count`, in order, computed without gradients.

    Torch's threads are divided among the parts that run at the same time. Inside an operation, threads synchronise
    after some ten microseconds of work, and they share one interpreter; parts never wait for each other. Thread t
    always runs the parts t, t + threads, t + 2 * threads, ..., whichever finishes first, so that sums by thread are
    added in the same order every time.

    Raises whatever a part raises.
    """
    available = torch.get_num_threads()
    threads = max(1, min(available, count))

    def run_thread(thread: int) -> list[Result]:
        torch.empty(0)  # a new thread's first operation resets its number of threads to the default
        torch.set_num_threads(available // threads)
        with torch.no_grad():
            return [part(thread, number) for number in range(thread, count, threads)]

    try:
        with ThreadPoolExecutor(threads) as pool:  # starts only the threads that it needs
            futures = [pool.submit(run_thread, thread) for thread in range(1, threads)]
            results = [run_thread(0), *(future.result() for future in futures)]
    finally:
        torch.set_num_threads(available)
    return [results[number % threads][number // threads] for number in range(count)]
