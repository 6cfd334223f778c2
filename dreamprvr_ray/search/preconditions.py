"""What must hold before a search starts: its directory, its database, a shared file system, Ray's State API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_placement_groups

from dreamprvr_ray.config import build_experiment
from dreamprvr_ray.data.collections import open_manifest
from dreamprvr_ray.data.locations import each_location, redacted_locations, shown_locations
from dreamprvr_ray.data.manifest import MANIFEST, Manifest
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.errors import UserError, first_line, redact, redact_uri
from dreamprvr_ray.runtime.run_directory import check_new
from dreamprvr_ray.search.identity import SearchIdentity, read_record, recorded_identity
from dreamprvr_ray.search.layout import SEARCH
from dreamprvr_ray.search.settings import RESUME_MAY_CHANGE
from dreamprvr_ray.search.shared_store import check_study
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.study import open_storage
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.files import write_text, writing
from dreamprvr_ray.storage.location import Storage, is_uri
from dreamprvr_ray.training.loop import with_feature_sizes
from dreamprvr_ray.yaml_files import parse_yaml

HIDDEN_SIZE = "model.hidden_size"


def with_shard_sizes(search: Search) -> Search:
    """Return the search with its shards' feature sizes.

    Raises `UserError` if there are no shards, if a searched choice is not valid for them, or if the final trainings
    would learn from val although it shares videos or queries with test.
    """
    search.check_shards()
    manifest = open_manifest(search.settings.shards)
    if search.settings.final and search.settings.final.with_val:
        try:
            manifest.check_may_train_on("val", shown_locations(search.settings.shards))
        except UserError as error:
            raise UserError(*(f"final.with_val: {mistake}" for mistake in error.mistakes)) from None
    for parameter in search.parameters:
        bounds = [parameter.high] if parameter.key == "evaluation.encoder_weight" else []
        for choice in parameter.choices or bounds:
            with_feature_sizes(search.experiment.with_values({parameter.key: choice}), manifest)
    experiment = with_feature_sizes(search.experiment, manifest)
    if any(parameter.key == HIDDEN_SIZE for parameter in search.parameters):
        # The values of the search file stay: 0, the size of the features, may be one of them.
        experiment = experiment.with_values({HIDDEN_SIZE: search.experiment.model.hidden_size})
    return replace(search, experiment=experiment)


def planned_sizes(search: Search) -> tuple[Search, str]:
    """Return the search with the feature sizes of its shards if they exist, and where the sizes are from.

    Raises `UserError` if there are shards that cannot be read.
    """
    shards = shown_locations(search.settings.shards)
    if not all(is_uri(each) or (Path(each) / MANIFEST).exists() for each in each_location(search.settings.shards)):
        return search, f"the configuration {search.settings.config}, because there are no shards in {shards}"
    return with_shard_sizes(search), f"the shards in {shards}"


def check_directory(
    storage: Storage, search: Search, *, resume: bool, manifest: Manifest | None = None
) -> SearchIdentity:
    """Raise `UserError` unless the search's directory is new or, with `resume`, holds the same search.

    Return the search's identity: that of the directory if it is resumed. With `manifest`, that of the shards, the
    directory's trials must have been trained on these.
    """
    if not resume:
        check_new(storage)
        return SearchIdentity.new(search, storage, manifest)
    if not storage.exists(SEARCH):
        raise UserError(f"{storage}: nothing to resume: {SEARCH} does not exist")
    before = read_record(storage)
    # Of an earlier version: what it does not hold has the default value.
    before["experiment"] = build_experiment(before["experiment"], f"{storage}/{SEARCH}: experiment").model_dump()
    identity = recorded_identity(before, search, storage)
    now = parse_yaml(search.to_yaml(), "search")
    for record in (before, now):  # the password itself is not recorded; version 0.1.0 recorded it
        record["search"]["store"] = redact_uri(record["search"].get("store") or "")
    changes = [
        change
        for part in ("experiment", "search")
        for key in now[part]
        if key not in RESUME_MAY_CHANGE
        for change in _changes(key, before[part].get(key), now[part][key])
    ]
    if manifest is not None and identity.shards is not None:
        changes += identity.shards.differences(ShardsRecord.of(manifest))
    if changes:
        raise UserError(*(redact(f"{storage}: cannot resume: {change}") for change in changes))
    if identity.shards is None and manifest is not None:  # of version 0.1.0: checked from now on
        identity = replace(identity, shards=ShardsRecord.of(manifest))
    return identity


def _changes(key: str, before: Any, now: Any) -> list[str]:
    """Return one line per difference between two values of a key, or between the keys of two sections."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = before | now
        return [change for inner in keys for change in _changes(f"{key}: {inner}", before.get(inner), now.get(inner))]
    return [] if before == now else [f"{key} was {before!r} and is {now!r} now"]


def claim_directory(search: Search, copy: WorkingCopy, identity: SearchIdentity | None = None) -> None:
    """Write `search.yaml`, from which on the directory is this search's. Without `identity`, it gets a new one.

    Raises `UserError` if the search's database cannot be used, or its study is another search's. That is checked first:
    otherwise the corrected search would find its directory in use.
    """
    identity = identity or SearchIdentity.new(search, copy.storage)
    _check_database(search, identity, copy.path)
    # Without passwords and access keys, which may be part of locations. A resumed search gets them from its user again.
    settings = search.settings
    locations = {"out": settings.out, "store": settings.store}
    shown: dict[str, Any] = {key: redact_uri(location) for key, location in locations.items() if location is not None}
    shown["shards"] = redacted_locations(settings.shards)
    if settings.source is not None:
        directory = redact_uri(settings.source.directory)
        shown["source"] = settings.source.model_copy(update={"directory": directory})
    recorded = replace(search, settings=settings.model_copy(update=shown))
    identified = parse_yaml(recorded.to_yaml(), SEARCH) | identity.to_dict()
    write_text(copy.path / SEARCH, yaml.safe_dump(identified, sort_keys=False))
    copy.push()


def _check_database(search: Search, identity: SearchIdentity, directory: Path) -> None:
    store = search.settings.store
    if store is not None:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)  # the database may be a file in it
        is_new = not (directory / SEARCH).exists()
        check_study(open_storage(store, directory), store, identity.name, identity.owner, is_new=is_new)


def check_shared(storage: Storage) -> None:
    """Raise `UserError` if another node that may run trials does not see the search's directory.

    This concerns a directory on this node's disk. Trials on nodes that join later check it themselves.
    """
    if storage.directory is None:
        return
    driver_node = ray.get_runtime_context().get_node_id()
    other_nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != driver_node
    ]
    check = ray.remote(num_cpus=0)(Storage.check_visible)
    try:
        ray.get(
            [
                check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                    storage, SEARCH
                )
                for node in other_nodes
            ]
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def check_state_api() -> None:
    """Raise `UserError` if Ray's State API does not answer.

    Without it, nested runs that the scheduler stops would keep their resources forever.
    """
    try:
        list_placement_groups(limit=1)
    except Exception as error:  # the types of the HTTP client and of Ray have no common base
        raise UserError(
            f"trial.workers above 1 requires Ray's State API, which does not answer: {first_line(error)};"
            " start the cluster with its dashboard, or set trial.workers to 1"
        ) from None
