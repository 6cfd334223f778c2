"""`checksums.json`: the SHA-256 of each file of a checkpoint, written with it and compared when a file is read.

It is a file of its own so that `metrics.json` keeps its content and is covered as well. Checkpoints of earlier versions
have none and are read without the comparison. Files that are added later, such as `test.json`, are not covered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.layout import CHECKSUMS
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import parse_json, read_json


def format_checksums(files: Mapping[str, bytes | memoryview]) -> bytes:
    """Return the content of `checksums.json` for files of these names and contents."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return (json.dumps({"sha256": digests}, indent=1) + "\n").encode()


def with_checksum(text: str, path: str, name: str, content: bytes | None) -> str:
    """Return the text of a `checksums.json` with the checksum of one more file; without one, if `content` is None.

    Raises `UserError` naming its `path` if it is damaged.
    """
    values = parse_json(text, path)
    digests = _digests(values, path)
    digests.pop(name, None)
    if content is not None:
        digests[name] = hashlib.sha256(content).hexdigest()
    return json.dumps(values, indent=1) + "\n"


def check_file(directory: Path, name: str) -> None:
    """Compare a checkpoint's file with its checksum. A file without one, or that does not exist, is not checked.

    Raises `UserError` if the file's content is not what was written.
    """
    path = directory / name
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise UserError(f"{path}: cannot be read: not a regular file")
    if not path.is_file() or not (directory / CHECKSUMS).is_file():
        return
    digests = _digests(read_json(directory / CHECKSUMS), str(directory / CHECKSUMS))
    if name not in digests:
        return
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if digest != digests[name]:
        raise UserError(f"{path}: damaged: its SHA-256 differs from the one in {CHECKSUMS}; use another checkpoint")


def _digests(values: dict[str, Any], path: str) -> dict[str, str]:
    digests = values.get("sha256")
    if not isinstance(digests, dict):
        raise UserError(f"{path}: damaged: must hold checksums by file name under 'sha256'")
    return digests
