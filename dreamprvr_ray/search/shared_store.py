"""Studies in a database (`store:`), where other searches and other machines reach them.

A study belongs to one search, which the study's user attribute `owner` names, and one driver at a time works on it. The
driver records a sign of life in the user attribute `driver`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.storages import BaseStorage

from dreamprvr_ray.errors import UserError, redact_uri
from dreamprvr_ray.storage.locks import is_alive

OWNER, DRIVER = "owner", "driver"  # user attributes of a study
BEAT_SECONDS = 10.0  # between two signs of life
STALE_SECONDS = 60.0  # after the last one, a driver counts as dead
CLAIM_SECONDS = 0.5  # for which the sign of life must stay one's own, as two drivers may start at once


def check_study(storage: BaseStorage, store: str, name: str, owner: str, *, is_new: bool) -> None:
    """Raise `UserError` if the database's study of this name belongs to another search, or another driver uses it.

    `is_new` says that the search starts now: no study can be its own.
    """
    if name not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=name, storage=storage)
    owners = {study.user_attrs.get(OWNER)}
    if owners == {None}:  # of version 0.1.0, where each trial names its search
        owners = {trial.user_attrs.get("out") for trial in study.get_trials(deepcopy=False)} - {None}
    if owners and (is_new or owner not in owners):
        others = ", ".join(sorted(str(other).rpartition(" ")[0] or str(other) for other in owners))
        raise UserError(
            f"store = {redact_uri(store)}: already has a study '{name}', of the search in {others}; rename the search"
            " file, use another database, or resume that search"
        )
    _check_no_driver(study, store)


def _check_no_driver(study: optuna.Study, store: str) -> None:
    driver = study.user_attrs.get(DRIVER)
    if not isinstance(driver, dict) or not driver:
        return
    silent = time.time() - float(driver.get("time", 0.0))
    host, process = driver.get("host"), driver.get("process")
    is_dead = host == socket.gethostname() and isinstance(process, int) and not is_alive(process)
    if not is_dead and silent < STALE_SECONDS:
        raise UserError(
            f"store = {redact_uri(store)}: process {process} on {host} is running the study '{study.study_name}'; wait"
            f" for it to finish, or stop it (a driver that died is forgotten {STALE_SECONDS:.0f} s after it was last"
            " seen)"
        )


@contextmanager
def driving(study: optuna.Study, store: str | None, owner: str) -> Iterator[None]:
    """Make this process the driver of a study while the block runs. A study in a file is protected by its directory.

    Raises `UserError` if there is another driver.
    """
    if store is None:
        yield
        return
    _check_no_driver(study, store)
    driver = {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}

    def beat() -> None:
        study.set_user_attr(DRIVER, driver | {"time": time.time()})

    def keep_beating() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(Exception):  # the database may be back at the next beat, and the trials notice if it is not
                beat()

    beat()
    time.sleep(CLAIM_SECONDS)
    current: Any = study.user_attrs.get(DRIVER)
    if isinstance(current, dict) and current.get("id") != driver["id"]:
        _check_no_driver(study, store)
    study.set_user_attr(OWNER, owner)
    ended = threading.Event()
    thread = threading.Thread(target=keep_beating, name="driver-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            study.set_user_attr(DRIVER, {})
