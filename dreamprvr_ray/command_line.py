"""What all commands share: argument parser, exit codes, one-line errors, progress on stderr, the final line of JSON."""

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
from dreamprvr_ray.errors import Failure, NotWritableError, SearchInterrupted, UserError


class Parser(argparse.ArgumentParser):
    """The argument parser of `python -m PACKAGE.COMMAND`: adds `--version` and `--json`, and raises `UserError`."""

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
        """Add `--set KEY=VALUE`, which can be given several times and with several pairs.

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
    """Run a command and exit with its code.

    The code is what `main` returns, else 0; 1 for a `Failure` or any other exception, 2 for a `UserError`, 130 after
    Ctrl-C or SIGTERM.
    """
    # `ray job stop` and batch systems send SIGTERM: end as after Ctrl-C.
    sigterm_handler = signal.signal(signal.SIGTERM, _interrupt)
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
    except (KeyboardInterrupt, SearchInterrupted):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has closed it, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit would fail again
        code = 1
    finally:
        signal.signal(signal.SIGTERM, sigterm_handler)
    sys.exit(code)


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)  # not KeyboardInterrupt: Ray Tune installs its own handler for SIGINT


def print_progress(line: str) -> None:
    """Print a line on stderr at once; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def print_json(values: dict[str, Any]) -> None:
    """Print one line of JSON on stdout, the last output of a command with `--json`. NaN and infinities become null."""
    print(json.dumps(_plain(values)), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
