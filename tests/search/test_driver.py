"""What a search leaves behind when it cannot begin, without Ray."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.searches import make_search_settings

from dreamprvr_ray.errors import NotWritableError, UserError
from dreamprvr_ray.search import driver as run
from dreamprvr_ray.search.space import Search


class TrialStarted(Exception):
    """The search has come to its study."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> None:
        raise TrialStarted

    monkeypatch.setattr(run, "ray_session", lambda **_: nullcontext())
    monkeypatch.setattr(run, "Gauges", lambda _: nullcontext())
    monkeypatch.setattr(run, "plan_trials", lambda *_: SimpleNamespace(group=SimpleNamespace(workers=1)))
    monkeypatch.setattr(run, "_check_shared", lambda _: None)
    monkeypatch.setattr(run, "SearchStudy", begin)


def begin(search: Search) -> None:
    run.run_search(search, resume=False, say=lambda line: None)


def test_a_store_that_cannot_be_used_leaves_nothing_that_is_in_the_way(demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for store in ("foo", "postgresql://127.0.0.1:1/studies", "sqlite:////nowhere/at/all.db"):
        with pytest.raises(UserError, match="cannot be used"):
            begin(make_search_settings(tmp_path, shards=str(demo_shards), store=store))
        assert not list(out.iterdir())
    out.rmdir()
    search = make_search_settings(
        tmp_path, shards=str(demo_shards), store=f"sqlite:///{out / 'studies.db'}"
    )  # in the directory itself
    out.rmdir()
    with pytest.raises(TrialStarted):
        begin(search)
    assert {path.name for path in out.iterdir()} == {"search.yaml", "studies.db"}


def test_a_directory_that_cannot_be_written_is_named(demo_shards: Path, tmp_path: Path) -> None:
    for store in (None, "sqlite://"):
        with pytest.raises(NotWritableError, match=r"^/proc/x: cannot be written"):
            begin(make_search_settings(tmp_path, shards=str(demo_shards), out="/proc/x", store=store))
