"""What every command shares: users' mistakes as one line each and exit code 2, and the final line of JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import dreamprvr_ray
from dreamprvr_ray.config import Section
from dreamprvr_ray.config_reference import help_text
from dreamprvr_ray.errors import Failure, NotWritableError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser with `--version` and `--json`, whose errors are one line. The command is `python -m PACKAGE.COMMAND`."""

    def __init__(self, command: str, description: str, package: str = "dreamprvr_ray") -> None:
        super().__init__(prog=f"python -m {package}.{command}", description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"dreamprvr_ray {dreamprvr_ray.__version__}")
        self.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
        self._documented_keys: tuple[tuple[str, type[Section]], ...] = ()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """Return the text of `--help`, which ends with the documented keys that `--set` accepts."""
        parts = [super().format_help().rstrip("\n"), *(help_text(*keys) for keys in self._documented_keys)]
        return "\n\n".join(parts) + "\n"

    def add_overrides(self, *documented_keys: tuple[str, type[Section]]) -> None:
        """Add `--set KEY=VALUE`, which may be given several times or with several pairs.

        `--help` ends with the keys of each given section, under the given heading.
        """
        self._documented_keys = documented_keys
        self.add_argument(
            "--set",
            action="extend",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="a key by its dotted name, as in model.registers=6",
        )


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command and exits: 0, 2 for a user's mistake, 1 for a failure, 130 when interrupted or asked to end, else `main`'s own code
    (a traceback exits 1)."""
    before = signal.signal(
        signal.SIGTERM, _interrupt
    )  # `ray job stop` and batch systems send it: it ends as after Ctrl-C
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        for mistake in error.mistakes:
            print(f"error: {mistake}", file=sys.stderr)
        code = 2
    except NotWritableError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Failure as failure:
        print(f"failed: {failure}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        code = 1
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)  # which Ray Tune handles in a way of its own


def print_json(values: dict[str, Any]) -> None:
    """One line of JSON on stdout, the last thing that a command with `--json` prints. NaN and infinities become null."""
    print(json.dumps(_plain(values)), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
