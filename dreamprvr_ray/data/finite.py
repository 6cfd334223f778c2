"""The search for features that are NaN or infinite, for messages: it reads a whole split."""

from __future__ import annotations

from dreamprvr_ray.data.shards import Split


def find_not_finite(split: Split) -> str | None:
    """Name the first video or query of a split whose features are not finite; None if all are."""
    for number, video in enumerate(split.videos):
        if not (split.clips(number).isfinite().all() and split.frames(number).isfinite().all()):
            return f"video '{video}'"
    for number, query in enumerate(split.queries):
        if not all(rows.isfinite().all() for rows in split.tokens(number, number + 1)):
            return f"query '{query}'"
    return None
