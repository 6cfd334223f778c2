"""What must hold before a search starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.searches import make_search, make_session

from dreamprvr_ray.data.cache import read_manifest
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.identity import SearchIdentity
from dreamprvr_ray.search.preconditions import check_directory, claim_directory, with_shard_sizes


def test_final_trainings_that_must_not_learn_from_val_are_refused_at_the_start(
    demo_shards: Path, tmp_path: Path
) -> None:
    """Before, the search ran to its end and the first final training failed."""
    shards = tmp_path / "shards"
    shutil.copytree(demo_shards, shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["val"], manifest["protocol"] = manifest["splits"]["test"], "paper"
    (shards / "manifest.json").write_text(json.dumps(manifest))
    search = make_search(tmp_path, shards=str(shards), final={"with_val": True})
    with pytest.raises(UserError) as caught:
        with_shard_sizes(search)
    reason = f"{shards}: cannot train on val: it is the test split (protocol: paper)"
    assert str(caught.value) == f"final.with_val: {reason}"
    for final in (None, {"with_val": False}):  # such searches may run
        with_shard_sizes(make_search(tmp_path, shards=str(shards), final=final))
    assert search.settings.final is not None
    separate = replace(search, settings=search.settings.model_copy(update={"shards": str(demo_shards)}))
    with_shard_sizes(separate)


def test_a_resumed_search_has_the_name_that_it_started_with(tmp_path: Path) -> None:
    """Before, a renamed search file began another study, and all trials were deleted."""
    search = make_search(tmp_path)
    session = make_session(search)
    claim_directory(search, session.copy)
    renamed = replace(search, name="renamed")
    assert check_directory(session.storage, renamed, resume=True).name == "synthetic"
    record = yaml.safe_load((tmp_path / "out" / "search.yaml").read_text())
    for name in (None, 5, ""):
        (tmp_path / "out" / "search.yaml").write_text(yaml.safe_dump(record | {"name": name}))
        with pytest.raises(UserError, match=r"out/search.yaml: name must be a string"):
            check_directory(session.storage, search, resume=True)
    for text in ("[]", "experiment: {}", "search: 5\nexperiment: {}"):
        (tmp_path / "out" / "search.yaml").write_text(text)
        with pytest.raises(UserError, match=r"out/search.yaml: must have the sections experiment and search"):
            check_directory(session.storage, search, resume=True)


def test_a_search_is_not_resumed_on_other_shards(demo_shards: Path, tmp_path: Path) -> None:
    """Before, shards that were converted again with another dev split were used silently."""
    shards = tmp_path / "shards"
    shutil.copytree(demo_shards, shards)
    search = make_search(tmp_path, shards=str(shards))
    session, manifest = make_session(search), read_manifest(str(shards))
    identity = SearchIdentity.new(search, session.storage, manifest)
    claim_directory(search, session.copy, identity)
    assert check_directory(session.storage, search, resume=True, manifest=manifest) == identity
    contents = json.loads((shards / "manifest.json").read_text())
    contents["protocol"], contents["splits"]["val"] = "paper", contents["splits"]["test"]
    (shards / "manifest.json").write_text(json.dumps(contents))
    with pytest.raises(UserError) as caught:
        check_directory(session.storage, search, resume=True, manifest=read_manifest(str(shards)))
    protocol = f"{manifest.protocol!r} and is 'paper' now"
    assert f"out: cannot resume: the shards' protocol was {protocol}" in caught.value.mistakes[0]

    record = yaml.safe_load((tmp_path / "out" / "search.yaml").read_text())
    del record["shards"], record["owner"]  # as version 0.1.0 wrote it
    (tmp_path / "out" / "search.yaml").write_text(yaml.safe_dump(record))
    earlier = check_directory(session.storage, search, resume=True, manifest=manifest)
    assert earlier == SearchIdentity("synthetic", str(session.storage), identity.shards)


def test_a_searched_hidden_size_of_zero_stays_one_of_its_choices(demo_shards: Path, tmp_path: Path) -> None:
    """Before, the first trial's value became that of the features, which is no choice."""
    config = tmp_path / "features.yaml"
    config.write_text("preset: demo\nmodel: {hidden_size: 0}\n")
    keys = {"shards": str(demo_shards), "config": str(config)}
    searched = with_shard_sizes(make_search(tmp_path, {"model.hidden_size": {"choice": [0, 32]}}, **keys))
    assert searched.paper_setting == {"model.hidden_size": 0}
    other = with_shard_sizes(make_search(tmp_path, {"model.registers": {"int": [0, 4]}}, **keys))
    assert other.experiment.model.hidden_size == other.experiment.data.video_size
