"""What `train` checks before it starts Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamprvr_ray import train
from dreamprvr_ray.command_line import exit_code
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime import run_directory, session
from dreamprvr_ray.storage.location import Storage


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(dashboard: bool) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(session, "ray_session", started)


def train_mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert exit_code(train.main, ["--config", "demo", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_train_looks_at_its_paths_before_it_starts_ray(
    no_ray: None, capsys: pytest.CaptureFixture[str], demo_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("")
    absent, new = tmp_path / "absent", tmp_path / "new"
    for shards, out, words, reason in (
        (absent, new, (), f"{absent}: "),
        (demo_shards, tmp_path / "used", (), "already exists"),
        (demo_shards, tmp_path / "file", (), "already exists"),
        (demo_shards, tmp_path / "file" / "run", (), f"{tmp_path}/file is not a directory"),
        (demo_shards, tmp_path / ("x" * 300), (), "File name too long"),
        (demo_shards, new, ("--resume",), "nothing to resume"),
        (demo_shards, "s3://[bucket/run", (), "not a usable storage location"),
    ):
        line = train_mistake(capsys, "--shards", shards, "--out", out, *words)
        assert line.startswith("error: ") and reason in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]


def test_a_directory_that_must_not_be_written_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_directory.os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(UserError, match=f"cannot be written: {tmp_path} does not allow it"):
        run_directory.check_new(Storage.of(tmp_path / "run"))
