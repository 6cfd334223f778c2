"""Independent parts of a computation, each on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")


def side_by_side(part: Callable[[int, int], Part], count: int) -> list[Part]:
    """part(thread, number) of each number below `count`, in their order, without gradients.

    torch's threads are shared out among the parts that run at a time. Within an operation, they meet after some ten microseconds of work, and
    the interpreter is one; between parts, they never wait for each other. Thread t takes the parts t, t + threads, t + 2 threads, .. whichever
    ends first, so that what is summed by thread is summed in the same order every time.
    """
    available = torch.get_num_threads()
    threads = max(1, min(available, count))

    def parts(thread: int) -> list[Part]:
        torch.empty(0)  # its first operation gives a thread all of torch's threads
        torch.set_num_threads(available // threads)
        with torch.no_grad():
            return [part(thread, number) for number in range(thread, count, threads)]

    try:
        with ThreadPoolExecutor(threads) as others:  # which starts as many as are wanted
            started = [others.submit(parts, thread) for thread in range(1, threads)]
            made = [parts(0), *(other.result() for other in started)]
    finally:
        torch.set_num_threads(available)
    return [made[number % threads][number // threads] for number in range(count)]
