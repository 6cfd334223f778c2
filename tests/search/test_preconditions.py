"""What must hold before a search starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.searches import make_search

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.preconditions import with_shard_sizes


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
