"""What `search.yaml` records of a search besides its settings: which study, trials and shards are its own.

The file that a search was started from may be renamed, and its directory moved or copied; these stay.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import SEARCH
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.yaml_files import parse_yaml

NAME, OWNER, SHARDS = "name", "owner", "shards"  # in `search.yaml`


@dataclass(frozen=True)
class SearchIdentity:
    """The identity of a search."""

    name: str  # of its study
    owner: str  # of its trials, in a database that holds other searches' as well
    shards: ShardsRecord | None = None  # None for a search of version 0.1.0

    @classmethod
    def new(cls, search: Search, storage: Storage, manifest: Manifest | None = None) -> SearchIdentity:
        """Return the identity of a search that starts."""
        return cls(search.name, f"{storage} {uuid.uuid4().hex}", ShardsRecord.of(manifest) if manifest else None)

    def to_dict(self) -> dict[str, Any]:
        """Return its keys of `search.yaml`."""
        values: dict[str, Any] = {NAME: self.name, OWNER: self.owner}
        return values | ({SHARDS: self.shards.to_dict()} if self.shards else {})


def read_record(storage: Storage) -> dict[str, Any]:
    """Return what `search.yaml` holds. Raises `UserError` if it is not the record of a search."""
    where = f"{storage}/{SEARCH}"
    record = parse_yaml(storage.read_text(SEARCH), where)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("experiment", "search")):
        raise UserError(f"{where}: must have the sections experiment and search")
    return record


def recorded_identity(record: dict[str, Any], search: Search, storage: Storage) -> SearchIdentity:
    """Return the identity in a record. Searches of version 0.1.0 are identified by name and location.

    Raises `UserError` if it is damaged.
    """
    name, owner, shards = record.get(NAME, search.name), record.get(OWNER, str(storage)), None
    for key, value in ((NAME, name), (OWNER, owner)):
        if not isinstance(value, str) or not value:
            raise UserError(f"{storage}/{SEARCH}: {key} must be a string")
    if SHARDS in record:
        try:
            shards = ShardsRecord.from_dict(record[SHARDS])
        except ValueError as error:
            raise UserError(f"{storage}/{SEARCH}: {SHARDS}: {error}") from None
    return SearchIdentity(name, owner, shards)
