"""What a search leaves behind if it cannot start, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.searches import make_search, make_session

from dreamprvr_ray.errors import NotWritableError, UserError
from dreamprvr_ray.search.preconditions import claim_directory, with_shard_sizes
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.study import SearchStudy


def start(search: Search) -> None:
    """Claim the search's directory and open its study."""
    session = make_session(with_shard_sizes(search))
    claim_directory(session.search, session.copy)
    SearchStudy(session.search, session.copy.path)


def test_a_database_that_cannot_be_used_leaves_the_directory_empty(demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for store in ("foo", "postgresql://127.0.0.1:1/studies", "sqlite:////nowhere/at/all.db"):
        with pytest.raises(UserError, match="cannot be used"):
            start(make_search(tmp_path, shards=str(demo_shards), store=store))
        assert not list(out.iterdir())
    out.rmdir()
    database = f"sqlite:///{out / 'studies.db'}"  # in the directory itself
    search = make_search(tmp_path, shards=str(demo_shards), store=database)
    out.rmdir()
    start(search)
    assert {path.name for path in out.iterdir()} == {"search.yaml", "studies.db"}


def test_a_directory_that_cannot_be_written_is_named(demo_shards: Path, tmp_path: Path) -> None:
    for store in (None, "sqlite://"):
        with pytest.raises(NotWritableError, match=r"^/proc/x: cannot be written"):
            start(make_search(tmp_path, shards=str(demo_shards), out="/proc/x", store=store))
