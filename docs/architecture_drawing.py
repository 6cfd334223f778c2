"""The package's import graph, read from its source files, and the drawing of it in docs/architecture.md.

python docs/architecture_drawing.py    # writes the drawing into docs/architecture.md
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "dreamprvr_ray"
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawing: begin (make docs) -->\n", "<!-- drawing: end -->\n"

# The components from top to bottom. A file may import from lower layers only, and from its own component.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("commands",),
    ("api", "command_line"),
    ("report",),
    ("search",),
    ("runtime",),
    ("web",),
    ("training", "index"),
    ("evaluation",),
    ("checkpoints",),
    ("video",),
    ("model", "data"),
    ("storage", "distributed", "device", "cpus"),
    ("config",),
    ("errors",),
)
# Files that are commands although their name says otherwise, and single files that belong to a component.
COMPONENT_OF = {
    "report.__main__": "commands",
    "index.__main__": "commands",
    "data.demo": "commands",
    "video.demo": "commands",
    "video.baselines": "commands",
    "retrieval": "api",
    "config_reference": "config",
    "config_sections": "config",
    "streams": "command_line",
    "yaml_files": "config",
    "user_files": "config",
    "__init__": "api",
}
COMMANDS = ("extract", "convert", "train", "tune", "report", "evaluate", "export", "find", "serve", "verify")


@dataclass(frozen=True)
class Import:
    """The name `imported` that the module `module` imports; names of this package have no package prefix."""

    module: str
    imported: str
    line: int
    for_types: bool  # under `if TYPE_CHECKING`: never executed

    def __str__(self) -> str:
        return f"{self.module} (line {self.line}) imports {self.imported}"


def modules(root: Path = ROOT / PACKAGE) -> dict[str, Path]:
    """Return every module of the package by its dotted name, without the package's prefix."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else name] = path
    return found


def imports(module: str, source: str) -> Iterator[Import]:
    """Return all imports of a module: at its top, inside functions, and under `if TYPE_CHECKING`."""
    tree = ast.parse(source)
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, node in for_types)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield Import(module, f"{node.module}.{alias.name}", node.lineno, node in for_types)


def all_imports(root: Path = ROOT / PACKAGE) -> list[Import]:
    """Return the imports of every module of the package."""
    return [found for name, path in modules(root).items() for found in imports(name, path.read_text(encoding="utf-8"))]


def own_module(imported: str, known: dict[str, Path]) -> str | None:
    """Return the package's module that an imported name is or belongs to; None for names of other packages."""
    if imported != PACKAGE and not imported.startswith(f"{PACKAGE}."):
        return None
    name = imported.removeprefix(PACKAGE).removeprefix(".")
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or "__init__"


def component(module: str) -> str:
    """Return the component of a module."""
    if module in COMPONENT_OF:
        return COMPONENT_OF[module]
    first = module.split(".")[0]
    return "commands" if module in COMMANDS and first != "report" else first


def layer(name: str) -> int:
    """Return a component's layer, counted from the top. Raises `KeyError` for a component that LAYERS does not list."""
    for number, components in enumerate(LAYERS):
        if name in components:
            return number
    raise KeyError(name)


def arrows(root: Path = ROOT / PACKAGE) -> set[tuple[str, str]]:
    """Return the pairs of components of which the first imports from the second."""
    known = modules(root)
    found = set()
    for each in all_imports(root):
        target = own_module(each.imported, known)
        # The version, which every component may read, is in the package's `__init__`.
        if target is not None and target != "__init__" and component(each.module) != component(target):
            found.add((component(each.module), component(target)))
    return found


def drawing() -> str:
    """Return the components and their imports as a Mermaid flowchart, without arrows that follow from others."""
    found = arrows()
    reachable = {start: _reachable(start, found) for start in {start for start, _ in found}}
    direct = sorted(
        (start, end)
        for start, end in found
        if not any(end in reachable.get(middle, ()) for begin, middle in found if begin == start and middle != end)
    )
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {name}" for components in LAYERS for name in components]
    lines += [f"    {start} --> {end}" for start, end in sorted(direct, key=lambda pair: (layer(pair[0]), pair))]
    return "\n".join([*lines, "```", ""])


def _reachable(start: str, found: set[tuple[str, str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [end for begin, end in found if begin == start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [end for begin, end in found if begin == name]
    return seen


def with_drawing(text: str) -> str:
    """Return the document with the current drawing between the two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{drawing()}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_drawing(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
