"""The command convert: its output, interrupts, full disks and mistakes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamprvr_ray import convert
from dreamprvr_ray.data import shard_plan, shard_workers
from dreamprvr_ray.data.conversion import Progress
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import Failure, UserError

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "data"


def _arguments(out: Path, *more: str) -> list[str]:
    return ["--source", str(GOLDEN), "--collection", "mini", "--out", str(out), "--workers", "1", *more]


def test_json_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    convert.main(_arguments(out, "--json", "--dtype", "float32"))
    printed = capsys.readouterr()
    values = json.loads(printed.out.splitlines()[-1])
    assert values["splits"] == {
        "train": {"videos": 8, "queries": 23},
        "val": {"videos": 4, "queries": 7},
        "test": {"videos": 4, "queries": 14},
    }
    assert (values["protocol"], values["dtype"], values["already_converted"]) == ("own splits", "float32", False)
    assert values["bytes"] == sum(path.stat().st_size for path in out.glob("*.arrow"))
    assert "converted: train 8 videos and 23 queries" in printed.out
    assert "16/16 videos" in printed.err
    assert ShardSet.open(out).manifest.dtype == "float32"
    convert.main(_arguments(out, "--json", "--dtype", "float32"))
    printed = capsys.readouterr()
    assert "already converted" in printed.out
    assert json.loads(printed.out.splitlines()[-1])["already_converted"] is True


def test_protocol_paper_is_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mini"
    for path in (GOLDEN / "mini").rglob("*"):
        if path.is_file() and "minitest" not in path.name:
            copy = source / path.relative_to(GOLDEN / "mini")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    convert.main(
        [
            "--source",
            str(source),
            "--collection",
            "mini",
            "--out",
            str(tmp_path / "out"),
            "--workers",
            "1",
            "--protocol",
            "paper",
        ]
    )
    assert "val IS test" in capsys.readouterr().out


def test_an_interrupted_conversion_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_plan, "SMALLEST_SHARD_BYTES", 1)

    def interrupt(display: convert._Display, progress: Progress) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert._Display, "__call__", interrupt)
        convert.main(_arguments(tmp_path / "out"))
    assert "run the same command again to resume" in capsys.readouterr().err
    convert.main(_arguments(tmp_path / "out", "--json"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept_shards"] == 1


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # The message does not claim that finished shards remain.
    with pytest.raises(UserError, match=r"file/out: cannot be written: Not a directory$"):
        convert.main(_arguments(tmp_path / "file" / "out"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_plan, "SMALLEST_SHARD_BYTES", 1)
    tasks = []

    def fail_at_first_and_third(task: shard_workers.ShardTask) -> shard_workers.FinishedShard:
        tasks.append(task)
        if len(tasks) in (1, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        return make_shard(task)

    make_shard = shard_workers.make_shard
    monkeypatch.setattr(shard_workers, "make_shard", fail_at_first_and_third)
    with pytest.raises(Failure, match=r"out: No space left on device$"):
        convert.main(_arguments(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        Failure, match=r"out: No space left on device; finished shards remain: run the same command again to resume$"
    ):
        convert.main(_arguments(tmp_path / "out"))


def test_a_uri_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"^s3://bucket/x: must be a local directory; copy it to the object store afterwards$",
    ):
        convert.main(["--source", str(GOLDEN), "--collection", "mini", "--out", "s3://bucket/x?secret_key=hush"])
    assert not list(tmp_path.iterdir())


def test_invalid_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 0"):
        convert.main(_arguments(tmp_path, "--workers", "0"))
    with pytest.raises(UserError, match="--collection"):
        convert.main(["--source", str(GOLDEN), "--out", str(tmp_path)])


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dreamprvr_ray.convert",
        "--source",
        str(GOLDEN),
        "--collection",
        "minni",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "did you mean 'mini'?" in done.stderr
    assert not (tmp_path / "out").exists()


def test_importing_the_command_imports_no_torch() -> None:
    script = "import sys, dreamprvr_ray.convert; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_no_process_of_a_conversion_imports_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)

    script = (
        "import sys\n"
        "from dreamprvr_ray import convert\n"
        "from dreamprvr_ray.data import shard_plan, shard_workers\n"
        "shard_plan.SMALLEST_SHARD_BYTES = shard_workers.PROCESS_BYTES = 1\n"
        "convert.main(sys.argv[1:])\n"
    )
    done = run(script, *_arguments(tmp_path / "out")[:-1], "2")
    assert done.returncode == 0, done.stderr
    assert "16/16 videos" in done.stderr and len(ShardSet.open(tmp_path / "out").manifest.files) > 20
    assert "torch was imported" in run("import dreamprvr_ray.data.shards").stderr  # the check can fail
