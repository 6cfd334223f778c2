"""What splits have in common: a result on test is honest only as far as train and val do not hold it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from dreamprvr_ray.data.captions import Caption
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.errors import UserError

MOST = 0.5  # a val that shares more than this with test is no separate split
_NAMED = 3  # how many ids a note names
_FEW_SENTENCES = 20  # a collection with fewer different sentences repeats them in every split


@dataclass(frozen=True)
class Overlap:
    """What two splits share.

    Attributes:
        videos: Number of videos by id.
        queries: Number of queries of the first split that are in the second, by id or by video and sentence.
        sentences: Number of different sentences that occur in both, whichever video they describe.
    """

    videos: int
    queries: int
    sentences: int


class _Split:
    def __init__(self, captions: Iterable[Caption]) -> None:
        self.captions = list(captions)
        self.videos = dict.fromkeys(caption.video for caption in self.captions)
        self.queries = {caption.query for caption in self.captions}
        self.described = {(caption.video, _words(caption)) for caption in self.captions if caption.text}
        self.sentences = {_words(caption) for caption in self.captions if caption.text}

    def shared_queries(self, other: _Split) -> list[str]:
        return [
            caption.query
            for caption in self.captions
            if caption.query in other.queries or (caption.video, _words(caption)) in other.described
        ]

    def shared_videos(self, other: _Split) -> list[str]:
        return [video for video in self.videos if video in other.videos]


def find_overlaps(splits: Mapping[str, Sequence[Caption]]) -> dict[str, Overlap]:
    """Return what each two splits share, by `<split> and <split>` in the order of `splits`."""
    sets = {name: _Split(captions) for name, captions in splits.items()}
    return {
        f"{one} and {other}": Overlap(
            len(sets[one].shared_videos(sets[other])),
            len(sets[one].shared_queries(sets[other])),
            len(sets[one].sentences & sets[other].sentences),
        )
        for one, other in combinations(sets, 2)
    }


def overlap_notes(splits: Mapping[str, Sequence[Caption]]) -> list[str]:
    """Return a line for each overlap of train, val and test, apart from a val that is test itself."""
    sets = {name: _Split(captions) for name, captions in splits.items()}
    notes = []
    for one, other in (("val", "train"), ("test", "train"), ("val", "test")):
        if one not in sets or other not in sets or sets[one].queries == sets[other].queries:
            continue
        first, second = sets[one], sets[other]
        for kind, shared, count in (
            ("videos", first.shared_videos(second), len(first.videos)),
            ("queries", first.shared_queries(second), len(first.captions)),
        ):
            if shared:
                notes.append(f"{len(shared):,} of {count:,} {one} {kind} are also in {other}: {_some(shared)}")
        shared_sentences = len(first.sentences & second.sentences)
        if len(first.sentences) >= _FEW_SENTENCES and shared_sentences > MOST * len(first.sentences):
            notes.append(
                f"{shared_sentences:,} of {len(first.sentences):,} different sentences of {one} are also in {other}:"
                " are these the same queries under other ids?"
            )
    return notes


def protocol_with_overlaps(
    protocol: str, overlaps: Mapping[str, Overlap], counts: Mapping[str, tuple[int, int]]
) -> str:
    """Return the protocol with what makes a result on test less than honest, such as `own splits, val overlaps test`.

    Args:
        protocol: `own splits`, `dev` or `paper`.
        overlaps: As `find_overlaps` returns them.
        counts: The splits' numbers of videos and queries.
    """
    parts = [protocol]
    val = overlaps.get("val and test")
    if protocol != "paper" and val is not None and (val.videos or val.queries):
        parts.append("val is mostly test" if is_most(val, counts["val"], counts["test"]) else "val overlaps test")
    train = overlaps.get("train and test")
    if train is not None and train.queries:
        parts.append("train overlaps test")
    return ", ".join(parts)


def is_most(overlap: Overlap, *counts: tuple[int, int]) -> bool:
    """Return whether most videos or queries of one of the splits, given by their numbers, are in the other as well."""
    return any(overlap.videos > MOST * videos or overlap.queries > MOST * queries for videos, queries in counts)


@dataclass(frozen=True)
class SharedCaptions:
    """What a split of one collection shares with a split of another that the same model is trained on.

    Attributes:
        first_collection, first: The collection that is learnt or chosen from, and its split.
        second_collection, second: The other collection and its split, on which results are then too optimistic.
        videos: Ids of the second split's videos that are in the first.
        queries: Ids of its queries that are in the first, by id or by video and sentence.
    """

    first_collection: str
    first: str
    second_collection: str
    second: str
    videos: tuple[str, ...]
    queries: tuple[str, ...]

    def line(self) -> str:
        """Return a note for people."""
        shared = [
            f"{len(ids):,} {kind if len(ids) == 1 else plural} ({_some(ids)})"
            for kind, plural, ids in (("video", "videos", self.videos), ("query", "queries", self.queries))
            if ids
        ]
        return (
            f"{self.second} of {self.second_collection} shares {' and '.join(shared)} with {self.first} of"
            f" {self.first_collection}: results there are too optimistic"
        )


def find_shared(
    captions: Mapping[str, Mapping[str, Sequence[Caption]]], first: tuple[str, str], second: tuple[str, str]
) -> SharedCaptions | None:
    """Return what two splits, each a (collection, split) of `captions`, share by id; None if that is nothing."""
    (one, name), (other, other_name) = first, second
    if name not in captions[one] or other_name not in captions[other]:
        return None
    learnt, judged = _Split(captions[one][name]), _Split(captions[other][other_name])
    videos, queries = judged.shared_videos(learnt), judged.shared_queries(learnt)
    if not videos and not queries:
        return None
    return SharedCaptions(one, name, other, other_name, tuple(videos), tuple(queries))


def check_val_is_not_test(val: Sequence[Caption], test: Sequence[Caption], origin: str) -> None:
    """Raise `UserError` if most of val is in test, or most of test in val."""
    one, other = _Split(val), _Split(test)
    overlap = find_overlaps({"val": val, "test": test})["val and test"]
    if is_most(overlap, (len(one.videos), len(val)), (len(other.videos), len(test))):
        raise UserError(
            f"{origin}: val is not a separate split: {overlap.queries:,} of its {len(val):,} queries and"
            f" {overlap.videos:,} of its {len(one.videos):,} videos are also in test ({len(test):,} queries,"
            f" {len(other.videos):,} videos), so choosing by val would be choosing by test; leave val out, to have it"
            " chosen from train, or remove what the two share"
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(quoted, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")


def _words(caption: Caption) -> str:
    return " ".join(caption.text.casefold().split())
