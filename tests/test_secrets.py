"""Secrets in locations and in environment variables reach neither a person nor a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dreamprvr_ray.errors import UserError, redact, redact_uri
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.search.preconditions import check_directory, claim_directory
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.location import Storage

PASSWORDS = ("canary", "can/ary", "can?ary", "can#ary", "c@n@ry", "can:ary", "can%2Fary", "c/a?n#a@r:y", "can]ary[")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "form",
    [
        "s3://KEY:{}@bucket/run",
        "s3://KEY%3A{}@bucket/run",
        "s3://[KEY:{}@bucket/run",
        "s3://KEY:{}@bucket:port/run",
        "s3:/KEY:{}@bucket/run",
        "s3//KEY:{}@bucket/run",
        "/work/s3:/KEY:{}@bucket/run",
        "1s3://KEY:{}@bucket/run",
        "://KEY:{}@bucket/run",
        "postgresql+psycopg://me:{}@host:5432/run",
        "s3://bucket/run?secret_key={}",
        "s3://bucket/run#secret_key={}",
        "gs://KEY:{}@bucket/run?token=canary",
    ],
)
def test_a_location_is_shown_without_its_secrets(form: str, password: str) -> None:
    location = form.format(password)
    for shown in (redact_uri(location), redact(f"cannot read '{location}': no answer"), redact(f"out={location}")):
        assert not any(part in shown for part in (password, "canary", "ary", "n@r")), shown
        assert "run" in shown or password not in ("canary",), shown


@pytest.mark.parametrize(
    "location",
    [
        "/data/tvr",
        "/data/a@b/tvr",
        "s3://bucket/run",
        "s3://bucket/a@b",
        "s3://bucket/run#1",
        "abfs://container@account.dfs.core.windows.net/run",
        "sqlite:////data/study.db",
        "postgresql://me@host:5432/study",
        "http://127.0.0.1:8265",
    ],
)
def test_a_location_without_secrets_is_shown_as_it_is(location: str) -> None:
    assert redact_uri(location) == location
    text = f"{location}: already exists; R@1: 5.0, R@10: 20.0 (val/SumR 3)"
    assert redact(text) == text


def test_secrets_of_environment_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "PGPASSWORD", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.setenv(name, "canary+of/an-hour")
        assert redact("refused canary+of/an-hour: wrong") == "refused ***: wrong"
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")  # an ordinary word
    assert redact("a test") == "a test"


def test_a_search_records_no_secret_and_is_compared_without(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    contents = {
        "config": "demo",
        "shards": "s3://KEY:canary/1@bucket/shards",
        "out": str(tmp_path / "out"),
        "trials": 2,
        "source": {"directory": "s3://KEY:canary@bucket/source", "collection": "demo"},
        "space": {"model.registers": {"int": [0, 8]}},
    }
    contents["store"] = f"sqlite:///file:{tmp_path}/study.db?uri=true&token=canary"
    space.write_text(yaml.safe_dump(contents))
    search = load_search(space)
    storage = Storage(str(tmp_path / "out"))
    claim_directory(search, WorkingCopy(storage, tmp_path / "out", print))
    recorded = (tmp_path / "out" / "search.yaml").read_text()
    assert "canary" not in recorded and "s3://KEY:***@bucket/shards" in recorded and "study.db" in recorded
    check_directory(storage, search, resume=True)
    other = load_search(space, {"store": "sqlite:///another.db?secret=canary"})
    with pytest.raises(UserError, match=r"store was 'sqlite:.*study\.db' and is 'sqlite:///another\.db' now"):
        check_directory(storage, other, resume=True)


def test_the_report_asks_for_the_password_that_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "search.yaml").write_text(
        yaml.safe_dump({"experiment": {}, "search": {"store": "mysql+nowhere://me:***@host/study"}, "name": "x"})
    )
    with pytest.raises(UserError, match=r"mysql\+nowhere://me:\*\*\*@host/study: .* set DREAMPRVR_RAY_STORE to"):
        read_search(tmp_path)
    monkeypatch.setenv("DREAMPRVR_RAY_STORE", "mysql+nowhere://me:canary@host/study")
    with pytest.raises(UserError) as error:
        read_search(tmp_path)
    assert "canary" not in str(error.value) and "set DREAMPRVR_RAY_STORE" not in str(error.value)
