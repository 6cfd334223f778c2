"""Read a file that the user gave or may have edited: a regular file, in UTF-8, of bounded size."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from dreamprvr_ray.errors import UserError

MAX_JSON_BYTES = 2**28
_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # of a shell's `<(...)`, which a program is writing to


def read_user_text(path: Path, limit: int) -> str:
    """Return the content of a UTF-8 file of at most `limit` bytes, without its byte order mark.

    Raises `UserError` in one line that names the file: it does not exist, cannot be read, is not a regular file
    (opening a pipe would wait for a writer), is larger, or is not UTF-8.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: cannot be read: is a directory")
        if not stat.S_ISREG(mode) and not str(path).startswith(_PIPES):
            raise UserError(f"{path}: cannot be read: not a regular file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:  # of Python, for NUL in a path
        raise UserError(f"{os.fspath(path)!r}: not a valid path") from None
    if len(content) > limit:
        raise UserError(f"{path}: too large: must have at most {limit:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 at byte {error.start}") from None


def parse_user_json(text: str, source: str) -> Any:
    """Return the value of a JSON text. Raises `UserError` naming `source` if it is not valid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{source}: cannot be read: nested too deeply") from None
    except ValueError as error:  # also of integers with thousands of digits
        raise UserError(f"{source}: cannot be read: not valid JSON: {error}") from None
