"""Properties of every bad input: exit code 0, 1 or 2, one line per mistake, no traceback, and nothing changed.

`python -m benchmarks.fuzz_inputs` tries more inputs, each in a separate process.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks import simulated_search
from benchmarks.fuzz_inputs.correct_files import SPACE, write_base
from benchmarks.fuzz_inputs.kinds import command_line
from benchmarks.fuzz_inputs.trying import MODULES, changed_names, run_command, snapshot, without_ray
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.conditions import Condition
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.yaml_files import parse_yaml

LIMIT_SECONDS = 10  # of CPU time, which a busy machine does not change
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
bounded = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=SLOW,
)
few = settings(bounded, max_examples=40)

SYNTAX = "abx01.-+:,[]{}&*!|>'\"#%@?~<\n\t \\=_eE\x00\x85\ud800é"
TEXTS = st.text(SYNTAX, max_size=40)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([10**400, -(10**30), "9" * 999])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
TERMS = st.sampled_from(["model.registers", "model.initialization", "0", "1e9", "'a'", "99999999999", "model", "x.y"])
OPERATORS = st.sampled_from(
    ["+", "-", "*", "/", "%", "**", "<", "==", "!=", ">=", " and ", " or ", " in ", "<<", " is "]
)
CONDITIONS = st.recursive(
    TERMS,
    lambda inner: (
        st.builds(lambda left, sign, right: f"({left}{sign}{right})", inner, OPERATORS, inner)
        | inner.map(lambda text: f"not {text}")
        | inner.map(lambda text: f"-{text}")
    ),
    max_leaves=60,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Correct inputs of all kinds."""
    folder = tmp_path_factory.mktemp("base") / "base"
    folder.mkdir()
    write_base(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_ray() -> Iterator[None]:
    with without_ray():
        yield


def one_line_each(call: Any, *arguments: Any) -> Any:
    """Call a function; return its result, or None after checking that each mistake is one line of bounded length."""
    started = time.process_time()
    try:
        return call(*arguments)
    except UserError as error:
        for line in error.mistakes:
            assert line and "Traceback" not in line and len(line) < 3000
        return None
    finally:
        assert time.process_time() - started < LIMIT_SECONDS


def check_output(code: int, output: str) -> None:
    assert code in (0, 1, 2) and "Traceback" not in output and "bug in dreamprvr_ray" not in output, output
    if code:
        assert output.splitlines()[-1].startswith(("error: ", "failed: ")), output


@bounded
@given(TEXTS | st.lists(TEXTS, max_size=5).map("\n".join))
def test_any_text_is_yaml_or_one_line(text: str) -> None:
    value = one_line_each(parse_yaml, text, "here")
    assert value is None or len(repr(value)) < 10_000


@bounded
@given(st.dictionaries(st.sampled_from(["preset", "model", "loss", "training", "data"]) | TEXTS, VALUES, max_size=3))
def test_any_values_are_a_configuration_or_mistakes(values: dict[str, Any]) -> None:
    def load() -> Experiment:
        path = Path(f"/dev/shm/dreamprvr-config-{os.getpid()}.yaml")
        try:
            path.write_text(yaml.safe_dump({"preset": "demo"} | values), encoding="utf-8", errors="replace")
            return load_experiment(path)
        finally:
            path.unlink(missing_ok=True)

    experiment = one_line_each(load)
    assert experiment is None or isinstance(experiment, Experiment)


@bounded
@given(CONDITIONS | TEXTS)
def test_any_condition_is_evaluated_or_refused(text: str) -> None:
    values = {"model.registers": 4, "model.initialization": "paper", "model": 0, "x.y": 0.5}
    started = time.process_time()
    try:
        Condition.parse(text).holds(values | dict.fromkeys("abx_eE", 1))
    except ValueError as error:
        assert len(str(error)) < 500
    except KeyError:  # a name that is not in `values`, which a search file's reader refuses
        pass
    assert time.process_time() - started < 1


@few
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "space": st.dictionaries(
                st.sampled_from(["model.registers", "model.dropout", "loss.margin"]) | TEXTS,
                VALUES
                | st.fixed_dictionaries(
                    {},
                    optional={
                        "int": VALUES,
                        "float": st.lists(SCALARS, min_size=2, max_size=2),
                        "choice": st.lists(SCALARS, max_size=4),
                        "step": SCALARS,
                        "log": SCALARS,
                        "when": CONDITIONS | VALUES,
                    },
                ),
                max_size=3,
            ),
            "constraints": st.lists(CONDITIONS, max_size=3) | VALUES,
            "trial": VALUES,
            "pruning": st.dictionaries(st.sampled_from(["enabled", "grace_epochs", "reduction_factor"]), SCALARS),
            "sampler": VALUES,
            "final": VALUES,
            "store": VALUES,
            "trials": SCALARS,
        },
    )
)
def test_any_search_file_is_loaded_or_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    search = {"config": "demo", "shards": "shards", "out": "out", "trials": 4, "space": SPACE} | changes
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(search), encoding="utf-8", errors="replace")
    loaded = one_line_each(load_search, path)
    assert loaded is None or isinstance(loaded, Search)


@few
@given(
    st.sampled_from([name for name in MODULES if name not in ("verify", "data.demo")]),
    st.lists(
        st.sampled_from(
            ["--config", "--shards", "--out", "--space", "--set", "--json", "--resume", "--dry-run", "demo", "x"]
        )
        | TEXTS,
        max_size=5,
    ),
)
def test_any_arguments_are_one_line(base: Path, command: str, words: list[str]) -> None:
    folder = Path.cwd()
    before = snapshot(base)
    os.chdir(base)
    try:
        check_output(*run_command([command, *words, "--wrong"]))
    finally:
        os.chdir(folder)
    assert snapshot(base) == before


@pytest.mark.parametrize("kind", ["experiment", "checkpoint", "shards", "search", "condition"])
def test_damaged_files_are_one_line_and_stay_as_they_are(base: Path, tmp_path: Path, kind: str) -> None:
    @settings(few, max_examples=15)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        root, canary = tmp_path / "work", tmp_path / "executed"
        shutil.copytree(base, root)
        try:
            words = command_line(kind, root, random.Random(seed), canary)
            before = snapshot(root)
            started = time.process_time()
            with simulated_search.without_ray(simulated_search.refuse_trials):
                check_output(*run_command(words))
            assert time.process_time() - started < LIMIT_SECONDS, words
            assert not changed_names(kind, before, snapshot(root)) and not canary.exists()
        finally:
            shutil.rmtree(root)

    check()
