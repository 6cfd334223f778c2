"""The words that people read: no phrase that readers stumble over, and no line longer than 120 columns.

Docstrings, comments, messages, names of tests, `--help`, documentation and YAML comments are checked against a list of
phrases that are hard to read. When a reader stumbles over another one, add it to the list with a plain alternative.
"""

from __future__ import annotations

import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "extract", "convert", "train", "tune", "report", "evaluate", "export", "index", "find", "serve", "verify",
    "data.demo",
)  # fmt: skip
POSSESSIVE = "(one's|its|our|your|their|his|ours)"

# A phrase (a regular expression), and what to write instead.
FORBIDDEN = {
    r"anew": "again; retrain",
    r"(go|goes|going|went|gone) on": "continue; resume",
    r"(is|are|was|were|be|being) made up for": "is replaced automatically",
    r"made[- ]up": "synthetic",
    r"at work (there|in|on|beside)": "is using",
    r"work(s|ed)? (it |them )?out": "compute; evaluate",
    r"reckon\w*": "estimate",
    r"whatever is tried": "name the condition",
    r"nothing to (go on|resume) with": "nothing to resume",
    r"(is|are|was|were|be|been|as|when|than|being) told(?! apart)": "is reported; as configured",
    r"(is|are|was|were|be|been) said": "is reported",
    r"hears? (that|of|when)": "called when",
    r"what was found": "the results",
    r"left alone": "uninterrupted",
    rf"of {POSSESSIVE} own(?=$|[.,;:()!?]| (and|or|for|in|is|with|which|that|to|on|at|by)\b)": "its own X",
    r"(?<!not )so many": "this many; the number of",
    r"none of (them|these|those|it)": "no X",
    r"that (is|are) none": "not a X; invalid",
    r"(?<!if )(?<!whether )there (is|are) none": "if there is no X",
    r"where there (is|are|was|were)": "if there is",
    r"where (nothing|nobody|none|no one)": "if no",
    r"from (\d+|one|two|three) on\b": "at least",
    r"each by itself": "separately",
    r"(each|clipped|restarts?|ends?) by (itself|themselves)": "separately; automatically",
    r"(is|are|was|were) to be": "must be; will be",
    r"what there is": "what exists",
    r"that there (is|are|may be|might be)": "available",
    r"taken up again": "resumed",
    r"(is|are) taken for": "counts as",
    r"whom": "name the reader",
    r"for ever": "forever",
    r"whole or not at all": "atomically",
    r"(is|are|was|were) whole": "complete",
    r"(lies?|lay|lying) (there|in|under|beside)": "is stored in",
    r"(stands?|stood) (there|in|beside|under|at|on)": "is in",
    r"as (it|they) stands?(?! (is|it|for))": "as written",
    r"(do|does|did|doing) without": "does not need",
    r"knows? better": "say who decides",
    r"(therein|thereof|thereby|hitherto|whither|herein|thereupon)": "a plain word",
    r"all else": "everything else",
    r"in the end": "at the end; finally",
    r"not found out": "not investigated",
    r"in two minds": "with two purposes",
    r"beside": "next to; in addition to; in parallel with",
    r"nobody": "no one; drop it",
    r"for a person": "for the user",
    r"(speaks?|spoke) of": "describes",
    r"(nobody|no one)'s": "name the owner",
    r"all that (stays|is|are|was|were)": "what remains",
    r"(is|are) no text": "is not a string",
    r"worth (naming|saying)": "drop it",
    r"as it (is|was) (there|here)": "as it is",
    r"(it|they) (would|will) have,": "as an uninterrupted one",
}
PATTERNS = {re.compile(rf"\b(?:{phrase})(?!\w)", re.IGNORECASE): advice for phrase, advice in FORBIDDEN.items()}

EXEMPT = {ROOT / "tests" / "test_messages.py"}
HISTORY = {ROOT / "docs" / "lab-notes.md"}  # a dated log, which keeps its words


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_files() -> list[Path]:
    folders = ("dreamprvr_ray", "benchmarks", "cluster", "docs", "tests")
    return [path for name in folders for path in sorted((ROOT / name).rglob("*.py")) if path not in EXEMPT]


def text_files() -> list[Path]:
    prose = ("*.md", "docs/*.md", "cluster/*.md", "tests/**/*.md", "dreamprvr_ray/*.txt")
    comments = ("Makefile", ".ci/run", "constraints.txt", "pyproject.toml", "dreamprvr_ray/presets/*.yaml")
    yaml = ("search_spaces/*.yaml", "cluster/**/*.yaml", "cluster/**/*.yml")
    return sorted({path for pattern in (*prose, *comments, *yaml) for path in ROOT.glob(pattern)} - HISTORY)


def readable_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of comments and string literals; adjacent ones are joined, because a phrase may span them."""
    kinds = {tokenize.COMMENT: "comment", tokenize.STRING: "string"}
    if hasattr(tokenize, "FSTRING_MIDDLE"):  # Python 3.12 splits f-strings into tokens
        kinds |= {tokenize.FSTRING_MIDDLE: "string"}
    ignored = {tokenize.NL, tokenize.NEWLINE}
    ignored |= {getattr(tokenize, name) for name in ("FSTRING_START", "FSTRING_END") if hasattr(tokenize, name)}
    line, current, parts = 0, None, []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in ignored:
                continue
            kind = kinds.get(token.type)
            if kind != current or kind is None:
                if parts:
                    yield line, " ".join(parts)
                line, current, parts = token.start[0], kind, []
            if kind is not None:
                parts.append(without_markers(token.string))


def names_of_tests(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, words) of the test functions in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if name := re.match(r"def test_(\w+)", line):
            yield number, name[1].replace("_", " ")


def without_markers(token: str) -> str:
    """Strip the `#` of a comment, or the prefix and the quotes of a string."""
    return " ".join(re.sub(r"^#+|^[rbfu]*(\"\"\"|'''|\"|')|(\"\"\"|'''|\"|')$", "", token, flags=re.I).split())


def forbidden_phrases(text: str) -> list[str]:
    text = " ".join(text.split())
    return [f"{match[0]!r} ({advice})" for pattern, advice in PATTERNS.items() for match in pattern.finditer(text)]


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_code_has_no_forbidden_phrase(path: Path) -> None:
    texts = [*readable_texts(path), *names_of_tests(path)]
    faults = [f"line {line}: {fault}" for line, text in texts for fault in forbidden_phrases(text)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", text_files(), ids=relative)
def test_text_has_no_forbidden_phrase(path: Path) -> None:
    assert forbidden_phrases(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_forbidden_phrase(call: Callable[..., subprocess.CompletedProcess[str]], command: str) -> None:
    done = call(command, "--help")
    assert done.returncode == 0
    assert forbidden_phrases(done.stdout) == []


@pytest.mark.parametrize(
    "path", [path for path in [*python_files(), *text_files()] if path.suffix in (".py", ".md")], ids=relative
)
def test_lines_have_at_most_120_columns(path: Path) -> None:
    # Table rows in Markdown cannot be wrapped, and neither can output that is quoted in a fenced block.
    fenced, faults = False, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        unbreakable = path.suffix == ".md" and (fenced or line.startswith("|"))
        line = re.sub(r"\s+# (type|noqa|fmt)\b.*", "", line)  # for tools, not for readers
        if len(line) > 120 and not unbreakable:
            faults.append(f"line {number}: {len(line)} columns")
    assert not faults, "\n".join(faults)


def test_check_finds_phrases_across_lines(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('# It goes\n# on here.\nX = (\n    "it is trained "\n    f"anew {1}"\n)\n"""Left\nalone."""\n')
    faults = [fault for _, text in readable_texts(path) for fault in forbidden_phrases(text)]
    assert faults == ["'goes on' (continue; resume)", "'anew' (again; retrain)", "'Left alone' (uninterrupted)"]
    assert forbidden_phrases("A resumed search is trained again; there is no other trial.") == []
