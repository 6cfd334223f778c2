"""Parallel parts: the order of results, the division of torch's threads, no gradients, and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from dreamprvr_ray.model.kernels.threads import run_parts


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("available", "used", "each"), [(1, 1, 1), (2, 2, 1), (5, 5, 1), (16, 5, 3)])
def test_parts_come_in_order_and_share_the_threads(available: int, used: int, each: int) -> None:
    torch.set_num_threads(available)
    weight = torch.ones(3, requires_grad=True)
    everyone_is_here = threading.Barrier(used)

    def part(thread: int, number: int) -> tuple[int, int, int, bool]:
        if number < used:
            everyone_is_here.wait(timeout=30)  # so they do run at a time
        return number, thread, torch.get_num_threads(), (weight * 2).requires_grad

    made = run_parts(part, 5)
    assert made == [(number, number % used, each, False) for number in range(5)]
    assert torch.get_num_threads() == available


@pytest.mark.parametrize("number", [0, 1])
def test_a_failure_of_any_part_is_raised(number: int) -> None:
    torch.set_num_threads(2)

    def part(thread: int, which: int) -> None:
        if which == number:
            raise ValueError(f"part {which}")

    with pytest.raises(ValueError, match=f"part {number}"):
        run_parts(part, 4)
    assert torch.get_num_threads() == 2
