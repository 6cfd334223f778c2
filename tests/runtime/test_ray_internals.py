"""Private names of Ray: each exists in the installed Ray, all are in one place, and another Ray is refused."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from functools import reduce
from pathlib import Path

import pytest
import ray
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.runtime import ray_internals, ray_version
from dreamprvr_ray.runtime.ray_internals import PRIVATE_NAMES, trainers
from dreamprvr_ray.runtime.ray_version import REQUIREMENT, TESTED_RAY, check_version

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(ray_internals.__file__).parent.glob("*.py"))


def resolve(name: str) -> object:
    module, _, attributes = name.partition(":")
    return reduce(getattr, attributes.split("."), importlib.import_module(module))


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_the_installed_ray_has_each_private_name(name: str) -> None:
    assert resolve(name) is not None


def test_a_name_that_ray_does_not_have_fails_the_test_above() -> None:
    with pytest.raises(AttributeError):
        resolve("ray._private.utils:read_ray_adress")
    with pytest.raises(ModuleNotFoundError):
        resolve("ray._private.utilities:read_ray_address")


def test_every_private_import_is_listed() -> None:
    imports = [
        f"{node.module}:{alias.name}".replace("ray._private:", "ray._private.")
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray.")
        for alias in node.names
    ]
    assert len(imports) >= 5
    for name in imports:
        assert any(listed == name or listed.startswith(f"{name}:") for listed in PRIVATE_NAMES), name


@pytest.mark.parametrize(
    ("subclass", "base"),
    [
        (trainers.Trainer, "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer"),
        (trainers.CommandTrainer, "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer"),
        (trainers.LocalScalingPolicy, "ray.train.v2._internal.execution.scaling_policy:FixedScalingPolicy"),
    ],
)
def test_every_overridden_method_is_listed(subclass: type, base: str) -> None:
    assert issubclass(subclass, resolve(base))  # type: ignore[arg-type]
    overridden = [name for name in vars(subclass) if not name.startswith("__") and callable(getattr(subclass, name))]
    assert overridden
    assert {f"{base}.{name}" for name in overridden} <= set(PRIVATE_NAMES)


@pytest.mark.parametrize("installed", ["2.61.0", "2.59.3", "3.0.0", "2.6.0", "2.610.0"])
def test_another_minor_release_of_ray_is_refused(installed: str) -> None:
    with pytest.raises(UserError) as error:
        check_version(installed)
    assert error.value.mistakes == (
        f"Ray {installed} is installed, but dreamprvr_ray supports Ray 2.60 only; "
        "run: pip install 'ray[data,default,train,tune]>=2.60,<2.61'",
    )


@pytest.mark.parametrize("installed", [ray.__version__, "2.60.0", "2.60.7", "2.60.0rc1"])
def test_patch_releases_of_the_tested_ray_are_accepted(installed: str) -> None:
    check_version(installed)


def test_a_command_refuses_another_ray_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamprvr_ray.runtime.session import ray_session

    monkeypatch.setattr(ray_version, "TESTED_RAY", "2.1")
    with pytest.raises(UserError, match=r"but dreamprvr_ray supports Ray 2\.1 only"), ray_session(dashboard=False):
        pass


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ray._private.utils:read_ray_address", "ray_internals"),
        ("ray.train.v2._internal.execution.scaling_policy:FixedScalingPolicy", "ray_internals.trainers"),
    ],
)
def test_a_ray_without_a_private_name_is_refused_in_one_line(name: str, module: str) -> None:
    lacking, _, attribute = name.partition(":")
    main = f"def main(arguments):\n  import dreamprvr_ray.runtime.{module}"
    program = (
        f"import {lacking} as lacking\ndel lacking.{attribute}\n"
        f"from dreamprvr_ray.command_line import run\n{main}\nrun(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: Ray {ray.__version__} is installed, but dreamprvr_ray supports Ray 2.60 only"
    )
    assert len(done.stderr.splitlines()) == 1


def test_the_tested_ray_is_the_one_that_is_required() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [dependency for dependency in dependencies if dependency.startswith("ray")] == [REQUIREMENT]
    assert f">={TESTED_RAY},<" in REQUIREMENT
    (constraint,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    assert constraint.startswith(f"ray=={TESTED_RAY}.")


class DatasetsCallback:
    pass


class OtherCallback:
    pass


def test_a_callback_is_left_out() -> None:
    other = OtherCallback()
    assert trainers.without_callback("DatasetsCallback", [DatasetsCallback(), other]) == [other]


def test_a_callback_that_ray_renamed_is_an_error_that_names_the_installed_ray() -> None:
    with pytest.raises(Failure, match=rf"^Ray {ray.__version__} does not use DatasetsCallback, .* with Ray 2\.60$"):
        trainers.without_callback("DatasetsCallback", [OtherCallback()])


def test_ray_still_adds_the_callbacks_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "is_loopback_only", lambda: True)
    rays_own = DataParallelTrainer(lambda: None)._create_default_callbacks()
    ours = trainers.CommandTrainer(lambda: None)._create_default_callbacks()
    names = [{type(callback).__name__ for callback in callbacks} for callbacks in (rays_own, ours)]
    assert names[0] - names[1] == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
