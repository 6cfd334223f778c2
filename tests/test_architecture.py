"""The structure that docs/architecture.md describes: which component may import which, and where Ray is allowed."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys

import architecture_drawing
import pytest
from architecture_drawing import LAYERS, PACKAGE, ROOT, all_imports, component, imports, layer, modules, own_module

RAY_COMPONENTS = {"commands", "search", "runtime"}
# Parts of search/ that `report` and scripts read without Ray.
WITHOUT_RAY = {"results", "final_result", "seeds", "layout", "comparison", "space", "conditions", "working_copy"}
PRIVATE_RAY = ("runtime.ray_internals", "runtime.ray_internals.trainers")
LONGEST = 400  # lines of a file
# Directories of runs and searches, which docs/architecture.md names in addition to those of the package.
IN_OUTPUT = {"checkpoints/", "tensorboard/", "ray/", "best/", "final/", "FeatureData/", "TextData/", "extraction/",
             "parts/", "source/"}  # fmt: skip
HEAVY = {"torch", "ray", "numpy", "pyarrow", "yaml", "pydantic", "optuna"}


MODULES = modules()


def breaks_layers(module: str, imported: str) -> str | None:
    """Why a module may not import a name, or None."""
    target = own_module(imported, MODULES)
    if target is None or target == "__init__":
        return None
    above, below = component(module), component(target)
    if above == below or layer(below) > layer(above):
        return None
    return f"{module} ({above}) must not import {target} ({below})"


def imports_ray(imported: str) -> bool:
    return imported.split(".")[0] == "ray"


def is_private(imported: str) -> bool:
    """Whether a name of Ray's has a private part: `ray._private.services`, `ray.train.v2._internal.callbacks`."""
    return imports_ray(imported) and any(part.startswith("_") for part in imported.split("."))


def test_every_component_has_a_layer() -> None:
    assert {component(module) for module in modules()} <= {name for components in LAYERS for name in components}


def test_arrows_point_downwards() -> None:
    assert [found for each in all_imports() if (found := breaks_layers(each.module, each.imported))] == []


def test_an_arrow_upwards_is_found() -> None:
    (found,) = imports("storage.files", "def read():\n    from dreamprvr_ray.search.driver import run_search\n")
    message = "storage.files (storage) must not import search.driver (search)"
    assert breaks_layers(found.module, found.imported) == message
    (found,) = imports("data.shards", "from dreamprvr_ray.model import attention")
    assert breaks_layers(found.module, found.imported)
    (found,) = imports("search.driver", "from dreamprvr_ray.storage.files import write_text")
    assert breaks_layers(found.module, found.imported) is None


def test_no_two_modules_import_each_other() -> None:
    known = modules()
    graph: dict[str, set[str]] = {name: set() for name in known}
    for each in all_imports():
        target = own_module(each.imported, known)
        if target is not None and target not in (each.module, "__init__") and not each.for_types:
            graph[each.module].add(target)
    assert cycle(graph) is None
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A path of modules that ends where it begins, or None."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for target in sorted(graph[name]):
            if found := visit(target, [*path, name]):
                return found
        finished.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


def test_ray_is_imported_by_the_commands_search_and_runtime_alone() -> None:
    wrong = [
        str(each)
        for each in all_imports()
        if imports_ray(each.imported)
        and (component(each.module) not in RAY_COMPONENTS or each.module.removeprefix("search.") in WITHOUT_RAY)
    ]
    assert wrong == []
    (found,) = imports("training.loop", "import ray.train")
    assert imports_ray(found.imported) and component(found.module) not in RAY_COMPONENTS


def test_private_names_of_ray_are_in_one_package() -> None:
    private = [each for each in all_imports() if is_private(each.imported)]
    assert [str(each) for each in private if each.module not in PRIVATE_RAY] == []
    assert private, "runtime/ray_internals imports nothing private: it can go"
    (found,) = imports("search.driver", "from ray._private import ray_constants")
    assert is_private(found.imported) and found.module not in PRIVATE_RAY


@pytest.mark.parametrize(
    "name",
    sorted({each.imported for each in all_imports() if imports_ray(each.imported) and each.module in PRIVATE_RAY}),
)
def test_every_private_name_exists_in_the_installed_ray(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        assert hasattr(importlib.import_module(module), attribute) if module else importlib.import_module(name)
    except ImportError:
        importlib.import_module(name)


def test_files_are_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def loaded_by(statement: str) -> set[str]:
    """The top-level names of the modules that a statement loads in a new interpreter."""
    script = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by(f"import {PACKAGE}") & HEAVY == set()


@pytest.mark.parametrize("module", ["convert", "data.demo", "search.layout"])
def test_what_computes_nothing_imports_no_torch(module: str) -> None:
    assert loaded_by(f"import {PACKAGE}.{module}") & {"torch", "ray"} == set()
    assert "torch" in loaded_by(f"import {PACKAGE}.model.dreamprvr")


def test_no_module_acts_when_it_is_imported() -> None:
    """A module's top level holds definitions only: no call stands by itself there."""
    acting = []
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                acting.append(f"{name}, line {node.lineno}: {ast.unparse(node)[:60]}")
    # PyYAML has no other way to teach a loader class of one's own a new notation.
    assert [each for each in acting if "add_implicit_resolver" not in each] == []


def test_the_drawing_is_of_todays_imports() -> None:
    text = architecture_drawing.DOCUMENT.read_text(encoding="utf-8")
    assert architecture_drawing.with_drawing(text) == text, "docs/architecture.md is stale: run `make docs`"


def test_the_document_names_files_and_functions_that_exist() -> None:
    """docs/architecture.md stays true: each file that it names exists, and each function is in the package."""
    names = re.findall(r"`([^`\n]+)`", architecture_drawing.DOCUMENT.read_text(encoding="utf-8"))
    files = {name for name in names if re.fullmatch(r"[\w/]+\.py|[\w/]+/", name)}
    missing = [name for name in files if not (ROOT / name).exists() and not (ROOT / PACKAGE / name).exists()]
    assert sorted(set(missing) - IN_OUTPUT) == []
    source = "\n".join(path.read_text(encoding="utf-8") for path in modules().values())
    identifiers = {name for name in names if re.fullmatch(r"[A-Za-z_]+(\.[A-Za-z_]+)*", name)}
    unknown = [name for name in identifiers if not re.search(rf"\b{name.rsplit('.')[-1]}\b", source)]
    assert unknown == []
    assert (ROOT / "docs" / "model.md").exists()
