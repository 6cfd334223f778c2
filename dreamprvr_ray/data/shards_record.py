"""The record of the shards that a model was trained on, kept with it so that it does not resume on other shards.

Checkpoints hold it in `metrics.json` under `shards`; those of earlier versions have none. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dreamprvr_ray.data.manifest import Manifest

KEY = "shards"  # in `metrics.json`
PROTOCOLS = "protocols"  # in `metrics.json`: by collection, if the model was trained on several


@dataclass(frozen=True)
class ShardsRecord:
    """What identifies shards, and what a message about other shards names."""

    fingerprint: str  # `Manifest.fingerprint`
    collection: str
    features: str
    dtype: str
    protocol: str
    splits: Mapping[str, Mapping[str, int]]  # numbers of videos and queries
    conversion: Mapping[str, Any]  # settings of the conversion

    @classmethod
    def of(cls, manifest: Manifest) -> ShardsRecord:
        """Return the record of shards with this manifest."""
        splits: dict[str, Mapping[str, int]] = {}
        conversion: dict[str, Any] = {}
        parts = manifest.parts()
        for part in parts:
            prefix = f"{part.collection} " if len(parts) > 1 else ""
            for name, split in part.splits.items():
                splits[f"{prefix}{name}"] = {"videos": split.videos, "queries": split.queries}
            settings = part.conversion.get("settings")
            if isinstance(settings, Mapping):
                conversion |= {f"{prefix}{name}": value for name, value in settings.items()}
        return cls(
            manifest.fingerprint,
            manifest.collection,
            manifest.features,
            manifest.dtype,
            manifest.protocol,
            splits,
            conversion,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> ShardsRecord:
        """Read what `to_dict` wrote. Raises ValueError if it is not such a record."""
        try:
            record = cls(**values)
            _flat(record.to_dict())
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a record of shards: {error}") from None
        return record

    def differences(self, now: ShardsRecord) -> list[str]:
        """Return what differs in the shards `now`, one line each; empty if their content is the same."""
        if now.fingerprint == self.fingerprint:
            return []
        old, new = _flat(self.to_dict()), _flat(now.to_dict())
        lines = [
            f"the shards' {key} was {old.get(key)!r} and is {new.get(key)!r} now"
            for key in dict.fromkeys((*old, *new))
            if old.get(key) != new.get(key)
        ]
        return lines or ["the shards' features or captions differ, although their counts and settings are the same"]


def shard_changes(metrics: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """Return what differs between the shards of a checkpoint with these metrics and the given ones, one line each.

    Of a checkpoint of an earlier version, only the collection and the protocol are known. Raises ValueError if the
    record is damaged.
    """
    now = ShardsRecord.of(manifest)
    if KEY in metrics:
        return ShardsRecord.from_dict(metrics[KEY]).differences(now)
    known = {"collection": now.collection, "protocol": now.protocol}
    return [
        f"the shards' {key} was {metrics[key]!r} and is {value!r} now"
        for key, value in known.items()
        if key in metrics and metrics[key] != value
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people can compare, by a name in words."""
    flat = {key: values[key] for key in ("collection", "features", "dtype", "protocol")}
    for split, counts in values["splits"].items():
        flat |= {f"number of {name} in {split}": count for name, count in counts.items()}
    return flat | {f"conversion setting {name}": value for name, value in values["conversion"].items()}
