"""Where the claims of `lease` are kept in a directory on a disk and in one in an object store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs

from dreamprvr_ray.storage.files import write_text, writing
from dreamprvr_ray.storage.locks import CLAIM, is_claim


@dataclass(frozen=True)
class DirectoryClaims:
    """Claims in a directory on a disk, which must exist."""

    directory: Path

    def claims(self) -> list[str]:
        # A client of NFS keeps a directory's entries for up to a minute, unless it changes the directory itself.
        with writing(self.directory):
            descriptor, probe = tempfile.mkstemp(prefix=f"{CLAIM}look.", dir=self.directory)
        os.close(descriptor)
        os.unlink(probe)
        return [name.removeprefix(CLAIM) for name in os.listdir(self.directory) if is_claim(name)]

    def read(self, name: str) -> str | None:
        try:
            return (self.directory / f"{CLAIM}{name}").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write(self, name: str, content: str) -> None:
        write_text(self.directory / f"{CLAIM}{name}", content)

    def remove(self, name: str) -> None:
        (self.directory / f"{CLAIM}{name}").unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectClaims:
    """Claims in a directory in an object store. `requests` turns errors of requests into errors for the user."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    requests: Callable[[], AbstractContextManager[None]]

    def claims(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        with self.requests():
            names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return [name.removeprefix(CLAIM) for name in names if is_claim(name)]

    def read(self, name: str) -> str | None:
        with self.requests():
            try:
                with self.filesystem.open_input_stream(f"{self.path}/{CLAIM}{name}", compression=None) as file:
                    return bytes(file.read()).decode(errors="replace")
            except FileNotFoundError:
                return None
            except OSError:  # pyarrow's answer if it was removed after the file was opened
                if name in self.claims():
                    raise
                return None

    def write(self, name: str, content: str) -> None:
        with (
            self.requests(),
            self.filesystem.open_output_stream(f"{self.path}/{CLAIM}{name}", compression=None) as file,
        ):
            file.write(content.encode())

    def remove(self, name: str) -> None:
        with self.requests(), suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{CLAIM}{name}")
