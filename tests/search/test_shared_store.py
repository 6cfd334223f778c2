"""Studies in a database: one search each, one driver at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.searches import make_search, make_session

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.identity import SearchIdentity
from dreamprvr_ray.search.preconditions import check_directory, claim_directory
from dreamprvr_ray.search.shared_store import DRIVER, STALE_SECONDS, driving
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.search.study import SearchStudy


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
    with driving(study.study, one.settings.store, study.owner):
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
    with driving(study.study, store, study.owner):
        expected = f"process {os.getpid()} on {socket.gethostname()} is running the study 'synthetic'; wait for it"
        with pytest.raises(UserError, match=expected):
            start(search, resume=True)
        with pytest.raises(UserError, match=expected), driving(study.study, store, study.owner):
            pass
    start(search, resume=True)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    elsewhere = {"host": "elsewhere", "process": 1}
    for driver, is_refused in (
        (elsewhere | {"time": time.time()}, True),
        (elsewhere | {"time": time.time() - STALE_SECONDS - 1}, False),
        ({"host": socket.gethostname(), "process": ended.pid, "time": time.time()}, False),  # killed
    ):
        study.study.set_user_attr(DRIVER, driver)
        if is_refused:
            with pytest.raises(UserError, match="process 1 on elsewhere is running the study 'synthetic'"):
                start(search, resume=True)
        else:
            start(search, resume=True)
