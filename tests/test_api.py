"""The public API: its names load lazily, hide no module, and do what docs/api.md shows."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import dreamprvr_ray
from dreamprvr_ray import api

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_public_name_loads() -> None:
    for name in dreamprvr_ray.__all__:
        assert getattr(dreamprvr_ray, name) is not None
        assert name in dir(dreamprvr_ray)
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = dreamprvr_ray.load_modle


def test_no_public_name_is_a_module() -> None:
    """Otherwise `from dreamprvr_ray import evaluate` would be the function or the command by the order of imports."""
    for name in set(dreamprvr_ray.__all__) - {"__version__"}:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"dreamprvr_ray.{name}")


def test_type_checkers_see_the_names_that_load() -> None:
    source = inspect.getsource(dreamprvr_ray)
    for name, module in dreamprvr_ray._DEFINED_IN.items():
        assert re.search(rf"from dreamprvr_ray\.{re.escape(module)} import [^)]*?\b{name}\b", source), name
    assert sorted([*dreamprvr_ray._DEFINED_IN, "__version__"]) == sorted(dreamprvr_ray.__all__)


def test_every_function_of_the_api_is_public_and_documented() -> None:
    functions = {
        name
        for name, function in vars(api).items()
        if inspect.isfunction(function) and function.__module__ == api.__name__ and not name.startswith("_")
    }
    assert functions == {name for name, module in dreamprvr_ray._DEFINED_IN.items() if module == "api"}
    page = PAGE.read_text(encoding="utf-8")
    for name in functions | {"write_shards", "load_experiment"}:
        assert f"`{name}" in page or f"{name}(" in page, f"docs/api.md does not mention {name}"
        assert getattr(dreamprvr_ray, name).__doc__


def run_script(script: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in its directory, with this checkout's package."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(script)]
    return subprocess.run(words, cwd=script.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_the_pages_examples_run(tmp_path: Path) -> None:
    """All blocks of docs/api.md, one after the other, in a new interpreter and an empty directory."""
    assert len(BLOCKS) == 6
    script = tmp_path / "example.py"
    script.write_text("\n".join(BLOCKS), encoding="utf-8")
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "40 training videos"
    assert re.fullmatch(
        r"best epoch [12] val SumR [\d.]+", next(line for line in lines if line.startswith("best epoch"))
    )
    assert lines[-1] == "2 registers"
    assert (tmp_path / "model" / "retrieve.py").exists()
    resumed = script.with_name("again.py")
    resumed.write_text(
        "from dreamprvr_ray import open_shards, train_model, UserError\n"
        "try:\n    train_model('demo', 'shards', 'run')\n"
        "except UserError as error:\n    print(error.mistakes)\n",
        encoding="utf-8",
    )
    done = run_script(resumed)
    assert done.stdout.strip() == "('run already exists; pass resume=True to continue its training',)", done.stderr


def test_training_does_not_resume_on_other_shards(demo_shards: Path, tmp_path: Path) -> None:
    shards = dreamprvr_ray.open_shards(demo_shards)
    tiny = {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 1}
    dreamprvr_ray.train_model("demo", shards, tmp_path / "run", overrides=tiny, log=None)
    other = dreamprvr_ray.ShardSet(demo_shards, replace(shards.manifest, collection="other"))
    with pytest.raises(
        dreamprvr_ray.UserError,
        match=r"last: was trained on other shards: the shards' collection was 'demo' and is 'other' now$",
    ):
        dreamprvr_ray.train_model("demo", other, tmp_path / "run", overrides=tiny, resume=True, log=None)
    again = dreamprvr_ray.train_model("demo", shards, tmp_path / "run", overrides=tiny, resume=True, log=None)
    assert again.metrics["epoch"] == 1


def test_the_result_of_each_query_is_written(demo_shards: Path, tmp_path: Path) -> None:
    tiny = {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 1}
    dreamprvr_ray.train_model("demo", demo_shards, tmp_path / "run", overrides=tiny, log=None)
    path = tmp_path / "queries.jsonl"
    result = dreamprvr_ray.evaluate_model(tmp_path / "run" / "best", demo_shards, queries=path)
    assert len(path.read_text().splitlines()) == result["queries"]
    with pytest.raises(dreamprvr_ray.UserError, match=r"already exists; choose another --queries$"):
        dreamprvr_ray.evaluate_model(tmp_path / "run" / "best", demo_shards, queries=path)
