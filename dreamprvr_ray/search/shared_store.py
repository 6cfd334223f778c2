"""Studies in a database (`store:`), where other searches and other machines reach them.

A study belongs to one search, which the study's user attribute `owner` names, and one driver at a time works on it. The
driver's claims are user attributes too: see `storage.lease`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.storages import BaseStorage, RDBStorage

from dreamprvr_ray.errors import UserError, redact_uri
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.lease import holding

OWNER = "owner"  # user attribute of a study
CLAIM = "driver-"  # how the names of the attributes with claims begin


def check_study(storage: BaseStorage, store: str, name: str, owner: str, *, is_new: bool) -> None:
    """Raise `UserError` if the database's study of this name belongs to another search.

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


@contextmanager
def driving(study: SearchStudy, store: str | None) -> Iterator[Callable[[], None]]:
    """Make this process the driver of a study while the block runs. A study in a file is protected by its directory.

    Yield what raises `LeaseLost` if another driver has taken over. Every change of the study does so as well. Raises
    `UserError` if there is another driver.
    """
    if store is None:
        yield lambda: None
        return
    from sqlalchemy import event

    name = study.study.study_name
    claims = StudyClaims(RDBStorage(store), name)  # its own connections: those of the study ask for the lease
    with holding(claims, f"store = {redact_uri(store)}", f"running the study '{name}'") as lease:
        study.study.set_user_attr(OWNER, study.owner)
        assert isinstance(study.storage, RDBStorage)

        def check(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
                lease.check()

        event.listen(study.storage.engine, "before_cursor_execute", check)
        try:
            yield lease.check
        finally:
            event.remove(study.storage.engine, "before_cursor_execute", check)


class StudyClaims:
    """Claims among the user attributes of a study in a database."""

    def __init__(self, storage: RDBStorage, name: str) -> None:
        self._storage, self._study = storage, storage.get_study_id_from_name(name)

    def claims(self) -> list[str]:
        """Return the names of all claims."""
        names = self._storage.get_study_user_attrs(self._study)
        return [name.removeprefix(CLAIM) for name in names if name.startswith(CLAIM)]

    def read(self, name: str) -> str | None:
        """Return a claim's content; None if it has been removed."""
        content = self._storage.get_study_user_attrs(self._study).get(CLAIM + name)
        return None if content is None else str(content)

    def write(self, name: str, content: str) -> None:
        """Write a claim."""
        self._storage.set_study_user_attr(self._study, CLAIM + name, content)

    def remove(self, name: str) -> None:
        """Remove a claim. Optuna itself cannot remove attributes."""
        from sqlalchemy import column, delete, table

        attributes = table("study_user_attributes", column("study_id"), column("key"))
        own = (attributes.c.study_id == self._study) & (attributes.c.key == CLAIM + name)
        with self._storage.engine.begin() as connection:
            connection.execute(delete(attributes).where(own))
