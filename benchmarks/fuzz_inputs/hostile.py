"""Values, YAML, conditions and locations that no file and no command line should hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECRET = "CANARYSECRET"  # of a location: no output may have it
CONDITIONS = [
    *(
        "'a' * 99999999999",
        " and ".join(["model.registers > 0"] * 1500),
        "1 / model.registers > 0",
        "9**9**9 > model.heads",
    ),
    *(
        "-" * 900 + "model.registers",
        "(" * 300,
        "model.registers > 'x'",
        "model.initialization * 3 == 'x'",
        "model.registers",
    ),
    *(
        "not " * 200 + "model.registers",
        "1 % (model.registers - 3)",
        "model.registers << 999999999",
        "lambda: model.registers",
    ),
    *(
        "[model.registers for x in y]",
        "model.registers if 1 else 2",
        "f'{model.registers}'",
        "model.registers is 1",
        "\x00",
        "",
    ),
    *(
        "1e400 > model.registers",
        "model..registers > 0",
        "model.registers.real > 0",
        "a" * 5000,
        "model.registers > 0 #\n",
    ),
]
LOCATIONS = [
    *(
        "",
        ".",
        "/",
        "~",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/x",
        "x" * 300,
        "/" + "a/" * 3000,
        "a\x00b",
        "\udcff",
    ),
    *(
        "s3://",
        "s3://[",
        "s3://b ucket/x",
        "http://x",
        "file://",
        "file:///absent",
        "nosuch://x",
        "s3://x?region=",
        "gs:///",
        ":",
    ),
    *(
        f"s3://AKIA:{SECRET}@[bucket/x",
        f"nosuch://me:{SECRET}@host/x",
        f"s3://me:{SECRET}@/x?secret_key={SECRET}",
        "-",
        "--",
        "@",
    ),
]


def hostile_values(canary: Path) -> list[Any]:
    """Return values that no file should hold."""
    return [
        *(
            None,
            True,
            -1,
            0,
            3.5,
            "",
            "x",
            [],
            {},
            [[]],
            {"a": {"b": []}},
            [None],
            "190:20:30",
            "\x00",
            "\n",
            "é" * 300,
        ),
        *(10**400, -(10**30), 1e308, float("nan"), float("inf"), "9" * 5000, "x" * 20_000, "../../etc", "%s%n{0}${x}"),
        f"__import__('os').system('touch {canary}')",
        f"$(touch {canary})",
        f"postgresql://me:{SECRET}@localhost/x",
    ]


def hostile_yaml(canary: Path) -> list[str]:
    """Return pieces of YAML that no file should hold."""
    bomb = "b0: &b0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"b{n}: &b{n} [{','.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 11)
    )
    return [
        *(
            "!!int ''",
            "!!float ''",
            "!!bool x",
            "!!set {a}",
            "!!binary x",
            "!!timestamp x",
            "? [a]\n: b",
            "8: 1",
            "~: 1",
        ),
        *(
            "&a [*a]",
            "&a {a: *a}",
            "[" * 5000,
            "{a: " * 500,
            "'",
            '"\\ud800"',
            "*missing",
            "a: b: c",
            "\t- x",
            "%YAML 9.9",
        ),
        *(
            ".nan",
            "1e999",
            "0o9",
            "010",
            "190:20:30",
            "9" * 400,
            "0x" + "f" * 4000,
            "on",
            "---\n---\n",
            "<<: [1]",
            bomb,
        ),
        f"!!python/object/apply:os.system ['touch {canary}']",
        f"!!python/object/new:os.system ['touch {canary}']",
    ]
