"""The shards of one or several collections that a model is trained on together.

    collections = Collections.open(("shards/qvh", "shards/charades"))
    collections.train()     # one split: the train videos of all
    collections.vals()      # {"charades": Split, "qvh": Split}

Several collections are in the order of their names, so that the order in which they were given does not matter. All
must have been made by one encoder: the features' names, sizes and types must be the same. Everything about a single
collection is as it is without this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from dreamprvr_ray.config import FULL_WEIGHT
from dreamprvr_ray.data.cache import local_shards, read_manifest
from dreamprvr_ray.data.locations import Locations, each_location
from dreamprvr_ray.data.manifest import SCHEMA_VERSION, Manifest, SplitRecord
from dreamprvr_ray.data.overlaps import Overlap, SharedCaptions, find_shared
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.errors import UserError, did_you_mean


def open_manifest(shards: Locations, log: Callable[[str], None] | None = None) -> Manifest:
    """Return the manifest of the shards of one or several collections.

    That of one at a URI is read without a copy of its shards. For several, their captions are compared, which takes a
    copy; `log` receives a line for each overlap. Raises `UserError` as `Collections`.
    """
    locations = each_location(shards)
    if len(locations) == 1:
        return read_manifest(locations[0])
    collections = Collections.open(locations)
    for shared in collections.shared:
        if log is not None:
            log(f"warning: {shared.line()}")
    return collections.manifest


class Collections:
    """The shards of one or several collections of one encoder, in the order of their names."""

    def __init__(self, shards: Sequence[ShardSet]) -> None:
        """Raises `UserError` if two are of different encoders, of the same collection, or the same shards."""
        for one, other in combinations(shards, 2):
            _check_same_encoder(one, other)
        self.parts = tuple(sorted(shards, key=lambda part: part.manifest.collection))

    @classmethod
    def of(cls, shards: ShardSet | Sequence[ShardSet] | Collections) -> Collections:
        """Return the collections of opened shards."""
        if isinstance(shards, Collections):
            return shards
        return cls([shards] if isinstance(shards, ShardSet) else shards)

    @classmethod
    def open(cls, shards: Locations) -> Collections:
        """Open the shards in directories or at URIs, of which this node's cache gets a copy.

        Raises `UserError` as `local_shards`, and if they cannot be trained on together.
        """
        locations = each_location(shards)
        if not locations:
            raise UserError("no shards were given")
        return cls([local_shards(location) for location in locations])

    @property
    def names(self) -> tuple[str, ...]:
        """The collections' names."""
        return tuple(part.manifest.collection for part in self.parts)

    @property
    def directories(self) -> str:
        """The directories, as a message shows them."""
        return ", ".join(str(part.directory) for part in self.parts)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of all: that of a single collection itself.

        Its protocol says where the train or val videos or queries of one collection are in the val or test of another.
        """
        if len(self.parts) == 1:
            return self.parts[0].manifest
        return _join([part.manifest for part in self.parts], self.shared)

    @cached_property
    def shared(self) -> tuple[SharedCaptions, ...]:
        """What the splits of one collection share with those of another, where that makes a result less than honest."""
        captions = {part.manifest.collection: part.captions() for part in self.parts} if len(self.parts) > 1 else {}
        return tuple(
            shared
            for one in captions
            for other in captions
            if one != other
            for first, second in (("train", "test"), ("train", "val"), ("val", "test"))
            if (shared := find_shared(captions, (one, first), (other, second)))
        )

    def train(self, with_val: bool = False) -> Split:
        """Map the train splits as one: the videos of the first collection, then those of the second, and so on.

        `with_val` adds each collection's val videos after its train videos. Raises `UserError` as `ShardSet.split`, or
        if val must not be trained on.
        """
        if with_val and len(self.parts) > 1:
            self.manifest.check_may_train_on("val", self.directories)
        splits = [part.joined("train", "val") if with_val else part.split("train") for part in self.parts]
        return Split.joined(splits)

    def vals(self) -> dict[str, Split]:
        """Map the val split of each collection, by the collection's name."""
        return {part.manifest.collection: part.split("val") for part in self.parts}

    def draw(self, weights: Mapping[str, float], with_val: bool = False) -> EpochDraw:
        """Return which videos of `train` an epoch draws with these weights by collection; without one it is 1.

        Raises `UserError` as `check_weights`, or if not a single video would be drawn.
        """
        check_weights(weights, self.manifest)
        splits = ("train", "val") if with_val else ("train",)
        sizes = [sum(part.manifest.splits[split].videos for split in splits) for part in self.parts]
        draw = EpochDraw(
            tuple(sizes),
            tuple(round(weights.get(name, FULL_WEIGHT) * size) for name, size in zip(self.names, sizes, strict=True)),
        )
        if not draw.count:
            shown = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
            raise UserError(f"data.weights: {{{shown}}}: no video would be drawn; one weight must be higher")
        return draw


@dataclass(frozen=True)
class EpochDraw:
    """How many of the videos of each collection an epoch is trained on, and which."""

    sizes: tuple[int, ...]  # the collections' numbers of videos, in order
    counts: tuple[int, ...]  # how many of them an epoch draws

    @property
    def count(self) -> int:
        """The number of videos of an epoch."""
        return sum(self.counts)

    def videos(self, seed: int, epoch: int) -> np.ndarray:
        """Return the numbers (count,) of an epoch's videos, ascending; none is drawn twice.

        They depend on (seed, epoch) only.
        """
        drawn, first = [], 0
        for number, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            own = np.arange(size)
            if count < size:
                own = np.sort(np.random.default_rng([seed, epoch, number]).permutation(size)[:count])
            drawn.append(first + own)
            first += size
        return np.concatenate(drawn)


@dataclass(frozen=True)
class JoinedManifest(Manifest):
    """What several collections that are trained on together have in common, and their sums."""

    joined: tuple[Manifest, ...] = ()

    def parts(self) -> tuple[Manifest, ...]:
        return self.joined

    def check_may_train_on(self, split: str, path: Path | str) -> None:
        for part in self.joined:
            part.check_may_train_on(split, f"{path}: {part.collection}")
        super().check_may_train_on(split, path)


def check_weights(weights: Mapping[str, float], manifest: Manifest) -> None:
    """Raise `UserError` if a weight is of a collection that is not trained on."""
    names = [part.collection for part in manifest.parts()]
    if unknown := [name for name in weights if name not in names]:
        raise UserError(
            *(
                f"data.weights.{name}: no such collection; the shards are of {', '.join(names)}"
                f"{did_you_mean(name, names)}"
                for name in unknown
            )
        )


def _check_same_encoder(one: ShardSet, other: ShardSet) -> None:
    """Raise `UserError` unless two shards can be trained on together."""
    both = f"{one.directory} and {other.directory}"
    first, second = one.manifest, other.manifest
    if first.fingerprint == second.fingerprint:
        raise UserError(f"{both}: the same shards twice")
    for what, values in (
        ("have features of one encoder", ("features", first.features, second.features)),
        ("have videos of one size", ("values per video row", first.video_size, second.video_size)),
        ("have queries of one size", ("values per query token", first.text_size, second.text_size)),
        ("be of one type", ("type", first.dtype, second.dtype)),
    ):
        name, ours, theirs = values
        if ours != theirs:
            raise UserError(f"{both}: to be trained on together, they must {what}: {name} {ours} and {theirs}")
    made, made_too = first.encoding, second.encoding
    if made is not None and made_too is not None and (differences := made.frames.differences(made_too.frames)):
        shown = "; ".join(differences).replace(" before, ", " and ").replace(" now", "")
        raise UserError(f"{both}: to be trained on together, they must be encoded alike: {shown}")
    check_different_collections((one, other))


def check_different_collections(shards: Sequence[ShardSet]) -> None:
    """Raise `UserError` if two shards are of one collection."""
    for one, other in combinations(shards, 2):
        if one.manifest.collection == other.manifest.collection:
            raise UserError(
                f"{one.directory} and {other.directory}: both are of the collection {one.manifest.collection}; results"
                " are told apart by its name"
            )


def _join(manifests: Sequence[Manifest], shared: Sequence[SharedCaptions]) -> JoinedManifest:
    parts = tuple(
        replace(manifest, protocol=", ".join([manifest.protocol, *_less_than_honest(manifest, shared)]))
        for manifest in manifests
    )
    protocols = {part.protocol for part in parts}
    first = manifests[0]
    return JoinedManifest(
        schema_version=SCHEMA_VERSION,
        collection=" + ".join(part.collection for part in parts),
        features=first.features,
        video_size=first.video_size,
        text_size=first.text_size,
        dtype=first.dtype,
        protocol=(
            protocols.pop()
            if len(protocols) == 1
            else "; ".join(f"{part.collection}: {part.protocol}" for part in parts)
        ),
        splits={
            name: SplitRecord(
                sum(part.splits[name].videos for part in parts if name in part.splits),
                sum(part.splits[name].queries for part in parts if name in part.splits),
                tuple(f"{part.collection}/{stem}" for part in parts for stem in part.splits[name].shards),
            )
            for name in first.splits
            if all(name in part.splits for part in parts)
        },
        preprocessing=first.preprocessing,
        conversion={},
        files={f"{part.collection}/{name}": record for part in parts for name, record in part.files.items()},
        overlaps={
            f"{first} and {second}": Overlap(
                sum(len(found.videos) for found in shared if (found.first, found.second) == (first, second)),
                sum(len(found.queries) for found in shared if (found.first, found.second) == (first, second)),
                0,
            )
            for first, second in (("train", "test"), ("train", "val"), ("val", "test"))
        },
        one_encoder=_all_of_one_encoder(parts),
        encoding=first.encoding if all(part.encoding == first.encoding for part in parts) else None,
        joined=parts,
    )


def _all_of_one_encoder(parts: Sequence[Manifest]) -> bool | None:
    """Return whether frames and queries of all come from one encoder; None if that is not known of each."""
    known = {part.one_encoder for part in parts}
    return False if False in known else None if None in known else True


def _less_than_honest(manifest: Manifest, shared: Sequence[SharedCaptions]) -> list[str]:
    """Return what the protocol of one of several collections does not say yet: what others share with it."""
    found = [f"{each.first} overlaps {each.second}" for each in shared if each.second_collection == manifest.collection]
    return [words for words in dict.fromkeys(found) if words not in manifest.protocol.split(", ")]
