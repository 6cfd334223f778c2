"""Writing `final.json`: the final result, with the versions and the command that are needed to reproduce it."""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import dreamprvr_ray
from dreamprvr_ray.errors import redact, redact_uri
from dreamprvr_ray.search.final_result import FinalRecord, FinalResult
from dreamprvr_ray.search.layout import FINAL
from dreamprvr_ray.storage.files import write_text

if TYPE_CHECKING:
    from dreamprvr_ray.data.manifest import Manifest

PACKAGES = ("torch", "ray", "optuna")  # whose versions are recorded


def write_final_record(result: FinalResult, manifest: Manifest, directory: Path, name: str = FINAL) -> None:
    """Write `final.json` into `directory`, or the file of another name."""
    record = FinalRecord("test", manifest.collection, manifest.protocol, result, installed_versions(), (_command(),))
    write_text(directory / name, json.dumps(record.to_dict(), indent=1, default=str) + "\n")


def installed_versions() -> dict[str, str]:
    """Return the installed versions, by package, of what the numbers depend on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"dreamprvr_ray": dreamprvr_ray.__version__, **packages, "python": platform.python_version()}


def _command() -> str:
    return redact(" ".join(["python", "-m", "dreamprvr_ray.tune", *map(redact_uri, sys.argv[1:])]))
