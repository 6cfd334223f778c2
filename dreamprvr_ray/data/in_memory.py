"""Shards from features in memory, such as a notebook computes them.

    from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards

    train = FeatureSplit(videos={"v1": frames}, queries=[Query("v1#0", "v1", "a person opens a door", tokens)])
    shards = write_shards("shards/mine", collection="mine", splits={"train": train, "val": val, "test": test})

The result is the same, byte for byte, as converting a source tree with the same features and captions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from dreamprvr_ray.data.captions import Caption, KnownMoment, Moment, Query
from dreamprvr_ray.data.conversion import convert
from dreamprvr_ray.data.feature_files import RawFeatures
from dreamprvr_ray.data.manifest import FeatureType
from dreamprvr_ray.data.shard_plan import ConversionSettings
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import SPLITS, Source
from dreamprvr_ray.errors import UserError, did_you_mean, first_few, first_line

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """The videos and queries of a split.

    Attributes:
        videos: Frame features (n, Dv) by video id. Videos that no query names are left out.
        queries: The queries, each of a video in `videos`.
    """

    videos: Mapping[str, ArrayLike]
    queries: Sequence[Query]


def write_shards(
    directory: str | Path,
    *,
    collection: str,
    splits: Mapping[str, FeatureSplit],
    features: str = "features",
    dtype: FeatureType = "float16",
    protocol: Literal["dev", "paper"] = "dev",
    dev_fraction: float = 0.1,
    seed: int = 0,
    one_encoder: bool | None = None,
) -> ShardSet:
    """Pool and normalise features in memory, write them as shards into `directory`, and open these.

    Writing the same features with the same settings again does nothing.

    Args:
        directory: A new or empty directory.
        collection: Name of the collection.
        splits: `train` and at least one of `val` and `test`; without `train`, to evaluate only.
        features: Name of the video features, as recorded in the manifest.
        dtype: Type of the stored features.
        protocol: Without separate val and test splits, carve val from train (`dev`), or use test as val (`paper`).
        dev_fraction: Fraction of the train videos that `dev` makes the val split.
        seed: Seed of that choice.
        one_encoder: Whether one encoder made the features of frames and queries; None: to be measured.

    Raises:
        UserError: A video is missing, features have the wrong shape or are not finite, an id is used twice, a split is
            missing or empty, or `directory` holds anything else.
    """
    settings = ConversionSettings(
        dtype=dtype, protocol=protocol, dev_fraction=dev_fraction, seed=seed, one_encoder=one_encoder
    )
    source = _InMemorySource.from_splits(collection, features, splits)
    conversion = convert(source, Path(directory), settings, workers=1)
    for note in [*source.notes(), *conversion.notes]:
        _log.warning("%s", note)
    return ShardSet.open(directory)


class _ArrayFeatures:
    """A `FeatureReader` of arrays in memory."""

    def __init__(self, origin: str, kind: str, arrays: Mapping[str, ArrayLike]) -> None:
        self.origin = origin
        self.arrays = arrays
        self._kind = kind

    def shape(self, id: str) -> tuple[int, ...]:
        return self.read(id).shape

    def read(self, id: str) -> np.ndarray:
        try:
            # Contiguous, since the order in which rows are summed depends on it.
            with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused with its place
                return np.ascontiguousarray(np.asarray(self.arrays[id], dtype=np.float32))
        except (TypeError, ValueError, OverflowError) as error:
            where = f"{self.origin}: {self._kind} '{id}'"
            raise UserError(f"{where}: must be an array of numbers: {first_line(error)}") from None

    def subset(self, ids: Sequence[str]) -> _ArrayFeatures:
        return _ArrayFeatures(self.origin, self._kind, {id: self.arrays[id] for id in ids})


@dataclass(frozen=True, eq=False)
class _InMemorySource(Source):
    """A `Source` whose features and captions are in memory."""

    digest: str = ""

    @staticmethod
    def from_splits(collection: str, features: str, splits: Mapping[str, FeatureSplit]) -> _InMemorySource:
        """Raises `UserError` for missing and repeated ids and splits. Features are checked as they are read."""
        _check_splits(collection, splits)
        videos: dict[str, ArrayLike] = {}
        queries: dict[str, Query] = {}
        moments: dict[str, KnownMoment] = {}
        mistakes = []
        for name in SPLITS:
            for query in splits[name].queries if name in splits else ():
                where = f"{collection}: {name} query '{query.id}'"
                if query.video not in splits[name].videos:
                    mistakes.append(f"{where}: video '{query.video}' is not among the split's videos")
                    continue
                video = splits[name].videos[query.video]
                if not _same(videos.setdefault(query.video, video), video):
                    mistakes.append(f"{where}: video '{query.video}' has other features in another split")
                known = queries.setdefault(query.id, query)
                if not _same(known.tokens, query.tokens) or not _same_embedding(known, query):
                    mistakes.append(f"{where}: the id has other tokens in another split")
                mistakes += [
                    f"{where}: right video {video!r} is not among the split's videos"
                    for video in query.also
                    if video not in splits[name].videos
                ]
                if query.moment is not None:
                    moments[query.id] = _moment(query.moment, where)
        if mistakes:
            raise UserError(*first_few(mistakes))
        captions = {name: [_caption(query) for query in splits[name].queries] for name in SPLITS if name in splits}
        first = next(iter(captions.values()))
        arrays = _ArrayFeatures(collection, "video", videos)
        tokens = _ArrayFeatures(collection, "query", {id: query.tokens for id, query in queries.items()})
        sentences = _embeddings(collection, queries)
        return _InMemorySource(
            origin=collection,
            collection=collection,
            features=features,
            raw=RawFeatures(
                arrays,
                tokens,
                [caption.video for caption in first],
                [caption.query for caption in first],
                sentences,
            ),
            splits=captions,
            moments=moments or None,
            files=(),
            digest=_digest(captions, moments, arrays, tokens, *([sentences] if sentences else [])),
        )

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return the SHA-256 of all captions and features."""
        return {"features in memory": {"sha256": self.digest}}


def _check_splits(collection: str, splits: Mapping[str, FeatureSplit]) -> None:
    mistakes = [
        f"{collection}: unknown split '{name}': must be one of {', '.join(SPLITS)}{did_you_mean(name, SPLITS)}"
        for name in splits
        if name not in SPLITS
    ]
    if not splits:
        mistakes.append(f"{collection}: no splits: there must be one of {', '.join(SPLITS)}")
    for name, split in splits.items():
        if not split.queries:
            mistakes.append(f"{collection}: split '{name}' has no queries")
        mistakes += first_few(
            [
                f"{collection}: {name} query {query.id!r}: id, video and sentence must be strings,"
                " and `also` a list of strings"
                for query in split.queries
                if not isinstance(query.also, (list, tuple))
                or not all(isinstance(text, str) for text in (query.id, query.video, query.sentence, *query.also))
            ]
        )
        counts = Counter(query.id for query in split.queries)
        mistakes += first_few(
            [f"{collection}: {name} query id '{id}' is used {count} times" for id, count in counts.items() if count > 1]
        )
    if mistakes:
        raise UserError(*mistakes)


def _caption(query: Query) -> Caption:
    also = tuple(video for video in dict.fromkeys(query.also) if video != query.video)
    return Caption(query.id, query.video, query.sentence, also)


def _moment(moment: Moment | tuple[float, float, float], where: str) -> KnownMoment:
    try:
        start, end, duration = map(float, moment)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: moment must be (start, end, duration of the video) in seconds, not {moment}"
        ) from None
    return KnownMoment.of([(start, end)], duration, where)


def _same(one: ArrayLike, other: ArrayLike) -> bool:
    return one is other or np.array_equal(np.asarray(one), np.asarray(other))


def _same_embedding(one: Query, other: Query) -> bool:
    if one.embedding is None or other.embedding is None:
        return one.embedding is other.embedding
    return _same(one.embedding, other.embedding)


def _embeddings(collection: str, queries: Mapping[str, Query]) -> _ArrayFeatures | None:
    """Return the embeddings of whole sentences; None if no query has one. Raises `UserError` if only some have."""
    given = {id: query.embedding for id, query in queries.items() if query.embedding is not None}
    if not given:
        return None
    if missing := [id for id in queries if id not in given]:
        raise UserError(
            f"{collection}: query '{missing[0]}' has no embedding, but others have: give it for all queries or for none"
        )
    return _ArrayFeatures(collection, "embedding of query", given)


def _digest(
    captions: Mapping[str, Sequence[Caption]], moments: Mapping[str, KnownMoment], *readers: _ArrayFeatures
) -> str:
    """Return the SHA-256 of everything on which the shards depend, in hexadecimal."""
    texts = {
        # As in earlier versions where no query has other right videos.
        name: [(caption.query, caption.video, caption.text, *caption.also) for caption in own]
        for name, own in captions.items()
    }
    fractions = {query: moment.fraction for query, moment in moments.items()}
    windows = {query: moment.windows for query, moment in moments.items()}
    # Without moments as in earlier versions.
    digest = hashlib.sha256(json.dumps([texts, fractions, *([windows] if windows else [])]).encode())
    for reader in readers:
        for id in reader.arrays:
            rows = reader.read(id)
            digest.update(json.dumps([id, rows.shape]).encode())
            digest.update(rows.data)
    return digest.hexdigest()
