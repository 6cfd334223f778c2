"""What every pipeline of Ray Data needs: its settings, and its errors as single lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from dreamprvr_ray.errors import Failure, UserError, one_line


@contextmanager
def data_context(
    object_store_memory: int, block_bytes: int, *, keep_order: bool = False, skip_errors: bool = False
) -> Iterator[None]:
    """Set what Ray Data needs to know for the datasets that the block makes.

    Args:
        object_store_memory: Bytes that the blocks under way may occupy.
        block_bytes: Size of a block.
        keep_order: Whether rows come in the order of their input.
        skip_errors: Whether blocks that fail are left out.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = block_bytes
    if skip_errors:
        context.max_errored_blocks = -1
    context.execution_options.preserve_order = keep_order
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=object_store_memory
    )
    # Ray Data's own progress stays in Ray's logs.
    handlers = [each for each in logging.getLogger("ray.data").handlers if isinstance(each, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context), warnings.catch_warnings():
            # `max_restarts` and `max_task_retries` have no other name in this release of Ray.
            warnings.filterwarnings("ignore", message=r".*ray_remote_args.* is deprecated")
            yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn errors of Ray's into one line: of what cannot be loaded on a node, or of processes of `what` that do not
    start."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, UserError):
            raise UserError(*cause.mistakes) from None
        last = one_line(str(error).strip().splitlines()[-1])
        raise Failure(f"a process of {what} could not start or continue: {last}") from None
