"""The standard streams of a command: closed, full and ASCII ones do not end its work, and they get no secrets."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from dreamprvr_ray.errors import redact


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard `sys.stdout` and `sys.stderr` while the block runs."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stderr = cast(TextIO, _GuardedStream(sys.stderr, "stderr"))
    sys.stdout = cast(TextIO, _GuardedStream(sys.stdout, "stdout"))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Open the standard descriptors that were closed, as by `>&-`. The next file would get the number of one of them,
    and whatever a library or a child process prints would be written into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(descriptor, True)


class _GuardedStream:
    """A stream whose errors end no work: after the first one, its output is discarded.

    Characters that it cannot encode are written as escapes. Secrets are hidden, see `errors.redact`.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream if stream is not None else io.StringIO()
        self._name = name
        self._is_broken = stream is None
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or stream.encoding.lower() != "utf-8"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, unless writing failed before."""
        if not self._is_broken:
            try:
                self._stream.write(redact(text))
            except OSError as error:
                self._discard(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless writing failed before."""
        if not self._is_broken:
            try:
                self._stream.flush()
            except OSError as error:
                self._discard(error)

    def _discard(self, error: OSError) -> None:
        self._is_broken = True
        with suppress(OSError, ValueError):  # or Python's flush at exit would fail again
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if self._name == "stdout" and error.errno != errno.EPIPE:  # EPIPE: the reader has enough, as in `| head`
            print(f"warning: stdout cannot be written: {error.strerror}; its text is lost", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
