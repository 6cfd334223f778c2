"""Where shards are: one location, or several whose collections are trained on together. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from dreamprvr_ray.errors import redact_uri
from dreamprvr_ray.storage.location import absolute

Locations = str | tuple[str, ...]
"""Where shards are: a directory or a URI, or one for each of several collections."""


def one_or_several(locations: Sequence[str]) -> Locations:
    """Return the locations that a command or a function was given."""
    return locations[0] if len(locations) == 1 else tuple(locations)


def each_location(shards: Locations) -> tuple[str, ...]:
    """Return the locations, one for each collection."""
    return (shards,) if isinstance(shards, str) else tuple(shards)


def absolute_locations(shards: Locations) -> Locations:
    """Return the locations with absolute paths; URIs stay as they are."""
    return absolute(shards) if isinstance(shards, str) else tuple(map(absolute, shards))


def redacted_locations(shards: Locations) -> Locations:
    """Return the locations without passwords and access keys."""
    return redact_uri(shards) if isinstance(shards, str) else tuple(map(redact_uri, shards))


def shown_locations(shards: Locations) -> str:
    """Return the locations as a message shows them, without passwords."""
    return ", ".join(map(redact_uri, each_location(shards)))
