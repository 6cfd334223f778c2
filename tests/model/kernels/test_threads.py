"""Parallel parts: the order of results, the division of torch's threads, no gradients, and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from dreamprvr_ray.model.kernels.threads import run_parts


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("available", "used", "per_part"), [(1, 1, 1), (2, 2, 1), (5, 5, 1), (16, 5, 3)])
def test_results_are_in_order_and_threads_are_divided(available: int, used: int, per_part: int) -> None:
    torch.set_num_threads(available)
    weight = torch.ones(3, requires_grad=True)
    all_threads = threading.Barrier(used)

    def part(thread: int, number: int) -> tuple[int, int, int, bool]:
        if number < used:
            all_threads.wait(timeout=30)  # passes only if all threads run at the same time
        return number, thread, torch.get_num_threads(), (weight * 2).requires_grad

    results = run_parts(part, 5)
    assert results == [(number, number % used, per_part, False) for number in range(5)]
    assert torch.get_num_threads() == available


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_in_any_part_is_raised(failing: int) -> None:
    torch.set_num_threads(2)

    def part(thread: int, number: int) -> None:
        if number == failing:
            raise ValueError(f"part {number}")

    with pytest.raises(ValueError, match=f"part {failing}"):
        run_parts(part, 4)
    assert torch.get_num_threads() == 2
