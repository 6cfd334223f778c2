"""The README's commands, run as they stand there in a folder that has the source trees they name."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.source_trees import write_source

from dreamprvr_ray.config import load_experiment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
# Searches and trainings are shortened; everything else is run as it stands.
SHORTER = {"tune": " --trials 2 --set training.epochs=2 final.seeds=1", "train": " --set training.epochs=1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user's folder holds: the checkout, and TVR's features, made up, in their place."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("search_spaces", "Makefile", "pyproject.toml", "constraints.txt"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    write_source(folder / "data", "tvr", "i3d_resnet", 3072, 768, {"train": 10, "val": 10, "test": 10})
    return folder


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # A user's environment: without what the tests set for Ray Train.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_TRAIN_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_the_two_commands_are_there() -> None:
    assert COMMANDS[:2] == ["make search", "make test"]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python")])
def test_command(line: str, folder: Path) -> None:
    name = line.split("dreamprvr_ray.")[1].split()[0]
    done = run(line + SHORTER.get(name, ""), folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "--dry-run" in line:
        assert "37.62 M" in done.stdout and "GFLOP" in done.stdout and "at a time" in done.stdout


def test_make_search(folder: Path) -> None:
    # The environment that runs this test is taken for the one that `make install` makes.
    (folder / ".venv").mkdir()
    (folder / ".venv" / "installed").touch()
    done = run(
        f"make search BIN={Path(sys.executable).parent} SEARCH_FLAGS='--trials 2 --set training.epochs=2 final.seeds=1'",
        folder,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"winner: trial \d, val SumR [\d.]+ at epoch \d", done.stdout)
    assert re.search(r"trial 1 against paper: [+-][\d.]+ test SumR", done.stdout)
    assert re.search(r"the chosen model: .*demo/search/best", done.stdout)


def test_the_python_example(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "example.py").write_text(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0])
    monkeypatch.chdir(folder)
    runpy.run_path("example.py", run_name="__main__")
    assert float(capsys.readouterr().out.split()[0]) > 0


def test_the_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    mine, preset = load_experiment(str(tmp_path / "mine.yaml")), load_experiment("tvr")
    assert {key: value for key, value in mine.flat().items() if preset.flat()[key] != value} == {
        "model.registers": 6,
        "model.dropout": 0.3,
        "training.epochs": 60,
    }


def test_every_command_of_the_table_exists(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    rows = re.findall(r"^\| `([a-z.]+) ([A-Z]* ?(?:--|\[).*?)` \|", README, re.MULTILINE)
    assert len(rows) == 8
    for name, flags in rows:
        done = call(name, "--help")
        assert done.returncode == 0, done.stderr
        for flag in re.findall(r"--[a-z-]+", flags):
            assert flag in done.stdout, f"{name} {flag}"
