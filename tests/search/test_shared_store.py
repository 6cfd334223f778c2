"""Studies in a database: one search each, one driver at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.searches import make_search, make_session, trial_epoch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.identity import SearchIdentity
from dreamprvr_ray.search.preconditions import check_directory, claim_directory
from dreamprvr_ray.search.shared_store import driving
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage import lease
from dreamprvr_ray.storage.lease import LeaseLost


def search_in(folder: Path, database: Path, **keys: Any) -> Search:
    folder.mkdir()
    return make_search(folder, store=f"sqlite:///{database}", **keys)


def start(search: Search, *, resume: bool = False) -> SearchStudy:
    """Do what a driver does before its first trial."""
    session = make_session(search)
    identity: SearchIdentity = check_directory(session.storage, search, resume=resume)
    claim_directory(search, session.copy, identity)
    return SearchStudy(search, session.copy.path, owner=identity.owner)


def test_a_study_belongs_to_one_search(tmp_path: Path) -> None:
    """Before, an unrelated search with a file of the same name took part, and `keep` counted over both."""
    database = tmp_path / "studies.db"
    one, two = (search_in(tmp_path / name, database) for name in ("one", "two"))
    study = start(one)
    with driving(study, one.settings.store):
        assert study.propose()
    with pytest.raises(UserError) as caught:
        start(two)
    assert str(caught.value) == (
        f"store = sqlite:///{database}: already has a study 'synthetic', of the search in {one.settings.out}; rename"
        " the search file, use another database, or resume that search"
    )
    assert not list(Path(two.settings.out).iterdir())
    again = start(one, resume=True)
    request = again.propose()
    assert request is not None and request.number == 0
    (tmp_path / "one").rename(tmp_path / "moved")  # the search's own directory, elsewhere
    (tmp_path / "moved" / "synthetic.yaml").write_text(
        (tmp_path / "moved" / "synthetic.yaml").read_text().replace("/one/", "/moved/")
    )
    moved = start(load_search(tmp_path / "moved" / "synthetic.yaml"), resume=True)
    request = moved.propose()
    assert request is not None and request.number == 0


def test_a_second_driver_of_a_study_is_refused_until_the_first_one_has_ended(tmp_path: Path) -> None:
    """Before, two hosts that use one path proposed each trial twice."""
    search = search_in(tmp_path / "one", tmp_path / "studies.db")
    study, store = start(search), search.settings.store
    with driving(study, store):
        again = start(search, resume=True)
        expected = f"process {os.getpid()} is running the study 'synthetic'; wait for it to finish, or stop it"
        with pytest.raises(UserError, match=expected), driving(again, store):
            pass
    with driving(again, store):
        assert again.propose()
    assert set(again.study.user_attrs) == {"objectives", "owner"}


def test_a_driver_that_another_one_followed_changes_nothing_in_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.LEASE_SECONDS, "0.5")
    monkeypatch.setattr(lease.Lease, "keep", lambda _: None)  # suspended
    search = search_in(tmp_path / "one", tmp_path / "studies.db")
    first, store = start(search), search.settings.store
    second = start(search, resume=True)
    with driving(first, store):
        assert first.propose()
        monkeypatch.setattr(lease, "_machine", lambda: "another machine")
        with driving(second, store):
            before = [trial.number for trial in second.trials()]
            for change in (
                first.propose,
                lambda: first.report(0, trial_epoch(1, 10.0)),
                lambda: first.finish(0, trial_epoch(1, 10.0, finished=True)),
                lambda: first.fail(0, "lost"),
            ):
                with pytest.raises(LeaseLost, match=f"store = {store}: process {os.getpid()} has taken over"):
                    change()
            assert second.propose()
            (trial,) = second.trials()
            assert [trial.number] == before and trial.state == TrialState.RUNNING and not trial.intermediate_values
