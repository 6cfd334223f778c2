"""Secrets in locations and in environment variables reach neither a person nor a file."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.object_store import S3

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
        "/data/s3:/KEY:{}@bucket/run",
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


def test_a_search_and_a_training_leave_secrets_nowhere(
    command: Callable[..., subprocess.CompletedProcess[str]],
    demo_shards: Path,
    tmp_path: Path,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything that is printed or written is searched, Ray's logs and the bucket included."""
    bucket = Storage.of(s3.uri().replace("s3://", "s3://key:canary-1@"))
    bucket.upload_directory("shards", demo_shards, last="manifest.json")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, f"canary-2/{name}")
    database = f"sqlite:///file:{tmp_path}/study.db?uri=true&token=canary-3"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{tmp_path}/mlflow.db?uri=true&token=canary-4")
    logs = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, because Ray's sockets are in it
    monkeypatch.setenv("RAY_TMPDIR", str(logs))
    small = ("--set", "model.hidden_size=16", "model.branches=1", "training.epochs=1")
    space = tmp_path / "space.yaml"
    contents = {
        "config": "demo",
        "shards": (bucket / "shards").location,
        "out": (bucket / "out").location,
        "trials": 1,
        "store": database,
        "trackers": ["mlflow"],
        "space": {"model.registers": {"int": [0, 8]}},
    }
    space.write_text(yaml.safe_dump(contents))
    try:
        search = command("tune", "--space", space, "--json", *small)
        where = ("--shards", contents["shards"], "--out", (bucket / "run").location)
        training = command("train", "--config", "demo", *where, "--json", *small)
        refused = command(
            "train", "--config", "demo", "--shards", contents["shards"], "--out", "s3:/k:canary/5@b", *small
        )
        assert search.returncode == training.returncode == 0, search.stderr + training.stderr
        assert refused.returncode == 2 and "s3:/k:***@b: is neither a path nor a URI" in refused.stderr
        space.unlink()
        printed = search.stdout + search.stderr + training.stdout + training.stderr + refused.stdout + refused.stderr
        files = [path for folder in (logs, tmp_path) for path in folder.rglob("*") if path.is_file()]
        assert len([path for path in files if path.is_relative_to(logs)]) > 10  # otherwise it looks at the wrong place
        assert "canary" not in printed
        assert not [path for path in files if b"canary" in path.read_bytes()]
        copy = tmp_path / "bucket"
        for name in ("out", "run"):
            with (bucket / name).local_directory() as directory:
                shutil.copytree(directory, copy / name)
        files = [path for path in copy.rglob("*") if path.is_file()]
        assert files and not [path for path in files if b"canary" in path.read_bytes()]
    finally:
        shutil.rmtree(logs, ignore_errors=True)
