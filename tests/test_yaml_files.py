"""Reading YAML that a person wrote, or edited, or damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.yaml_files import MAX_BYTES, MAX_VALUES, describe, parse_yaml, read_yaml


def mistake(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "here")
    (line,) = error.value.mistakes
    return line


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [*a{level - 1}, *a{level - 1}]}}\n" for level in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: !!int ''", ", line 2: not valid YAML: '' is not a valid int"),
        ("a: !!int [1]", ", line 1: expected a scalar node, but found sequence"),
        ("a: !!bool maybe", ", line 1: not valid YAML: 'maybe' is not a valid bool"),
        ("a: !!timestamp noon", ", line 1: not valid YAML: 'noon' is not a valid timestamp"),
        ("a: 2026-13-01", ", line 1: not valid YAML: '2026-13-01' is not a valid timestamp"),
        ("a: !!float ''", ", line 1: not valid YAML: '' is not a valid float"),
        ("a: !!set {b, c}", ", line 1: tag !!set is not supported"),
        ("a: !!binary aGk=", ", line 1: tag !!binary is not supported"),
        ("a: 1\n\n8: 2", ", line 3: a key must be a string: write '8' in quotes"),
        ("on: 2", ", line 1: a key must be a string: write 'on' in quotes"),
        ("? [a]\n: 2", ", line 1: a key must be a string, not a list or a mapping"),
        ("? {a: b}\n: 2", ", line 1: a key must be a string, not a list or a mapping"),
        ("e: 190:20:30", ", line 1: 190:20:30 is a number to base 60 in YAML; write it to base 10, or text in quotes"),
        ("a: 1:30.5", ", line 1: 1:30.5 is a number to base 60 in YAML; write it to base 10, or text in quotes"),
        ("a: 010", ", line 1: 010 is a number to base 8 in YAML; leave out the leading 0, or use quotes"),
        (f"a: {'9' * 400}", ", line 1: an integer must have at most 18 digits, not 400"),
        (f"a: 0x{'f' * 9999}", ", line 1: an integer must have at most 18 digits, not 10001"),
        ("a: &a [1, *a]", ", line 1: anchor 'a' contains itself"),
        ("a: &a\n  b: {c: [*a]}", ", line 2: anchor 'a' contains itself"),
        ("a: &a {<<: *a}", ", line 1: anchor 'a' contains itself"),
        (BOMB, ", line 4: more than 10,000 values, counting those that aliases repeat"),
        ("[" * 41 + "]" * 41, ", line 1: nested more than 40 levels deep"),
        ("[" * 9999, ", line 1: nested more than 40 levels deep"),
        (f"a: &a {'[' * 30}1{']' * 30}\nb: {'[' * 20}*a{']' * 20}", ", line 2: nested more than 40 levels deep"),
        ('a: "x\\0y"', ", line 1: a text must hold neither NUL nor half of a surrogate pair"),
        ('"x\\ud800y": 1', ", line 1: a text must hold neither NUL nor half of a surrogate pair"),
        ("a: 1\nb: \x00", ", line 2: contains the character U+0000"),
        ("a" * (MAX_BYTES + 1), ": too large: must have at most 262,144 characters"),
    ],
)  # fmt: skip
def test_what_is_no_plain_value_is_refused_with_its_line(text: str, expected: str) -> None:
    assert mistake(text) == f"here{expected}"


def test_a_bomb_of_merges_is_refused_at_once() -> None:
    started = time.monotonic()
    assert mistake(MERGE_BOMB).endswith("more than 10,000 values, counting those that aliases repeat")
    assert time.monotonic() - started < 5


def test_what_was_readable_stays_readable() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 0}\nc: [3e-4, 1_000, -7, 0x10, .inf, yes, 2026-11-26, '190:20:30', '010', ~]"
    values = parse_yaml(text, "here")
    assert values["b"] == {"x": 1, "y": 0}
    assert values["c"][:6] == [3e-4, 1000, -7, 16, float("inf"), True] and values["c"][7:] == ["190:20:30", "010", None]
    assert len(parse_yaml("\n".join(f"k{number}: 1" for number in range(MAX_VALUES // 2 - 1)), "here")) > 4000


@pytest.mark.skipif(os.getuid() == 0 and not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_a_device_a_directory_or_a_large_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for path, reason in (
        (tmp_path / "pipe", "cannot be read: not a regular file"),
        (Path("/dev/zero"), "cannot be read: not a regular file"),
        (tmp_path, "cannot be read: is a directory"),
        (tmp_path / "large.yaml", "too large: must have at most 262,144 bytes"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
    ):
        with pytest.raises(UserError) as error:
            read_yaml(path)
        assert error.value.mistakes == (f"{path}: {reason}",)


def test_messages_shorten_long_values() -> None:
    assert describe("x" * 1000) == f"'{'x' * 199}..." and describe(10**5000) == "an integer of more than 18 digits"
