"""Which queries a page of figures shows: those that the user names, or a random sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dreamprvr_ray.data.moments import MomentFiles
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.errors import UserError, did_you_mean, first_few
from dreamprvr_ray.report.figures.similarity import queries_with_moment

_SHOWN = 40  # characters of a sentence in a message


def find_queries(split: Split, wanted: Iterable[str]) -> list[int]:
    """Return the numbers of the queries that the user named, in this order and each once.

    A query is named by its id, its sentence, or a part of its sentence that no other query has; case does not matter in
    sentences. Raises `UserError` with a line for each that names no query or several.
    """
    numbers, mistakes = [], []
    by_id = {id: number for number, id in enumerate(split.queries)}
    sentences = [sentence.casefold().strip() for sentence in split.captions]
    for name in wanted:
        text = name.casefold().strip()
        matches = [by_id[name]] if name in by_id else _matches(sentences, text)
        if len(matches) == 1:
            numbers.append(matches[0])
        elif matches:
            ids = ", ".join(quoted(split.queries[number]) for number in matches[:3])
            more = f" and {len(matches) - 3} more" if len(matches) > 3 else ""
            mistakes.append(
                f"--query {quoted(name)}: {len(matches)} queries of {split.name} have it: {ids}{more}; give an id"
            )
        else:
            near = did_you_mean(name, [*split.queries, *filter(None, split.captions)])
            mistakes.append(f"--query {quoted(name)}: no query of {split.name} has this id or these words{near}")
    if mistakes:
        raise UserError(*first_few(mistakes))
    return list(dict.fromkeys(numbers))


def _matches(sentences: Sequence[str], text: str) -> list[int]:
    """Return the sentences that equal a text, else those that contain it."""
    if not text:
        return []
    equal = [number for number, sentence in enumerate(sentences) if sentence == text]
    return equal or [number for number, sentence in enumerate(sentences) if text in sentence]


def sample_queries(split: Split, files: MomentFiles, count: int, seed: int) -> list[int]:
    """Return a random sample of the queries, of those with a moment if there are any; ascending."""
    numbers = queries_with_moment(split, files) or list(range(len(split.queries)))
    drawn = np.random.default_rng(seed).choice(numbers, size=min(count, len(numbers)), replace=False)
    return sorted(map(int, drawn))
