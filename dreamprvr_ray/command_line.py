"""What all commands share: argument parser, exit codes, one-line errors, progress on stderr, the final line of JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import dreamprvr_ray
from dreamprvr_ray.config_reference import help_text
from dreamprvr_ray.config_sections import Section
from dreamprvr_ray.errors import (
    PATH_ERRORS,
    Failure,
    NotWritableError,
    SearchInterrupted,
    UserError,
    did_you_mean,
    first_line,
    one_line,
    redact,
)
from dreamprvr_ray.streams import guarded_streams

DEBUG = "DREAMPRVR_RAY_DEBUG"  # environment variable: print the traceback of an unexpected error


class Parser(argparse.ArgumentParser):
    """The argument parser of `python -m PACKAGE.COMMAND`: adds `--version` and `--json`, and raises `UserError`."""

    def __init__(self, command: str, description: str, package: str = "dreamprvr_ray") -> None:
        super().__init__(prog=f"python -m {package}.{command}", description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"dreamprvr_ray {dreamprvr_ray.__version__}")
        self.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
        self._flags: list[str] = []  # those that were given
        self._documented_keys: tuple[tuple[str, type[Section]], ...] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. Raises `UserError` for wrong ones."""
        wrong = [argument for argument in (args or ()) if "\0" in argument]
        if wrong:  # Python cannot pass it to the system, whether as a path or as a URI
            raise UserError(*(f"{argument!r}: an argument must not contain NUL" for argument in wrong))
        self._flags = [argument.partition("=")[0] for argument in (args or ()) if argument.startswith("--")]
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = next((flag for flag in self._flags if flag != "--" and flag not in known), None)
        if unknown is not None:
            # A misspelt flag may be the one that argparse finds missing.
            if not message.startswith("unrecognized"):
                message = f"unrecognized arguments: {unknown}"
            message += did_you_mean(unknown, known)
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
    """Run a command and exit with its code, as `exit_code` returns it."""
    # `ray job stop` and batch systems send SIGTERM: end as after Ctrl-C.
    sigterm_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with guarded_streams():
            code = exit_code(main, sys.argv[1:])
    finally:
        signal.signal(signal.SIGTERM, sigterm_handler)
    sys.exit(code)


def exit_code(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Run a command, print what went wrong as single lines on stderr, and return the exit code.

    The code is what `main` returns, else 0; 2 for a `UserError` or a path that the system refuses; 1 for a `Failure`,
    for other refusals such as a full disk, and for a bug; 130 after Ctrl-C or SIGTERM. A traceback is never printed,
    except with DREAMPRVR_RAY_DEBUG=1: that of a bug is written to a file that the line names.
    """
    try:
        code = main(arguments) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _print_error(2, *error.mistakes)
    except NotWritableError as error:
        return _print_error(2, str(error))
    except Failure as failure:
        return _print_error(1, str(failure))
    except (KeyboardInterrupt, SearchInterrupted):
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        return _print_error(1, "out of memory")
    except OSError as error:
        return _print_refusal(error)
    except Exception as error:
        return _print_error(1, f"bug in dreamprvr_ray: {_describe(error)}{_record_traceback(error)}")


def _print_error(code: int, *messages: str) -> int:
    for message in messages:
        print(f"{'error' if code == 2 else 'failed'}: {one_line(redact(message))}", file=sys.stderr)
    return code


def _print_refusal(error: OSError) -> int:
    """Report what the system refused. A wrong path is a mistake of the user; anything else is a failure."""
    reason = error.strerror or first_line(error)
    if error.filename is None:  # of a write to a full disk, or of the network: only the traceback knows where
        return _print_error(1, f"{reason}{_record_traceback(error)}")
    path = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename)
    return _print_error(2 if error.errno in PATH_ERRORS else 1, f"{path}: {reason}")


def _describe(error: Exception) -> str:
    name, message = type(error).__name__, first_line(error)
    return name if message == name else f"{name}: {message}"


def _record_traceback(error: BaseException) -> str:
    """Write an error's traceback to a new file that only this user can read; return what the message says about it."""
    text = redact("".join(traceback.format_exception(error)))
    if os.environ.get(DEBUG):
        print(text, end="", file=sys.stderr)
        return ""
    try:
        descriptor, path = tempfile.mkstemp(prefix="dreamprvr-ray-traceback-", suffix=".txt")  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f" (set {DEBUG}=1 to see the traceback)"
    return f" (traceback: {path})"


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does now: Ray Tune and Ray Train install their own handlers of SIGINT.

    The handler is called. The signal itself would have no effect where SIGINT is ignored, as in each `command &` of a
    script.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def print_progress(line: str) -> None:
    """Print a line on stderr at once; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def print_json(values: dict[str, Any]) -> None:
    """Print one line of JSON on stdout, the last output of a command with `--json`.

    NaN and infinities become null, and secrets are hidden.
    """
    print(json.dumps(_plain(values)), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):  # here, and not in the finished line, which would lose quotes with a secret
        return redact(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
