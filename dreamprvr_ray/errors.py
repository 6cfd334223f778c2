"""Errors that a command reports in one line instead of a traceback, and helpers to word them."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence

# What the system answers for a path that cannot be used as asked: a mistake of the user, unlike a full disk.
PATH_ERRORS = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENXIO,
    errno.EINVAL,
)
HIDDEN = "***"  # stands for a secret
# One slash is enough: a mistyped s3:/KEY:SECRET@bucket counts as a path.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:/{1,2}")
_COLON = re.compile(r":|%3[Aa]")
_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|KEY|CONNECTION_STRING)$")
_SHORTEST = 8  # characters of a secret in an environment variable; shorter values may be ordinary words
_LONGEST_LINE = 2000  # characters of a message
_LONGEST_NAME = 200  # characters of a name for which a similar one is looked up


class UserError(Exception):
    """One or more mistakes in what the user supplied: an option, a file, a value. A command exits with code 2.

    Each of `mistakes` is one line that says what is wrong, where, and what is allowed.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes

    def __reduce__(self) -> tuple[type[UserError], tuple[str, ...]]:
        # Exception's own version would pass the joined text as a single mistake.
        return type(self), self.mistakes


class ObjectStoreError(UserError):
    """A request to an object store failed. Unlike other user errors it may succeed when retried."""


class NotWritableError(OSError):
    """A path that cannot be written and that a retry will not help: read-only, a parent that is a file, and the like.

    A command treats it as a user's mistake (exit code 2) unless a caller handles it.
    """

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


class SearchInterrupted(Exception):
    """A search was stopped before all its trials or final runs had ended. It can be resumed.

    A command exits with code 130, as after Ctrl-C.
    """


class Failure(Exception):
    """Something failed at run time through no fault of the user's: a full disk, a lost node, a loss that diverged.

    The message is one line. A command exits with code 1.
    """


class StorageFailure(Failure):
    """A file system failed: it is full, its mount is missing, a node does not see it. Work on it can be resumed."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the allowed name closest to `name`, or an empty string if none is close."""
    allowed = list(allowed)
    folded = {full.casefold().strip(): full for full in allowed}
    if name.casefold().strip() in folded:  # difflib distinguishes case
        return f"; did you mean '{folded[name.casefold().strip()]}'?"
    if len(name) > _LONGEST_NAME:  # comparing takes a time that grows with the square of the length
        return ""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if not close:  # a key given without its section, as 'registers' for 'model.registers'
        close = [full for full in allowed if full.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f"; did you mean '{close[0]}'?" if close else ""


def redact_uri(location: str) -> str:
    """Return a location, which is a path or a URI, without what may be secret; the location need not be valid.

    Of `USER:PASSWORD@`, the password becomes `***`; a query string, which may hold access keys, is cut off. What lies
    between the first colon and the last `@` counts as the password, since secrets hold `/`, `?`, `#` and `@`.
    """
    scheme = _SCHEME.search(location)
    start = scheme.end() if scheme else 0
    credentials, at, path = location[start:].rpartition("@")
    colon = _COLON.search(credentials)
    rest = f"{credentials[: colon.start()]}:{HIDDEN}@{path}" if at and colon else location[start:]
    if scheme and scheme[0].endswith("//"):
        path, hash_mark, fragment = rest.partition("?")[0].partition("#")
        rest = path if "=" in fragment else path + hash_mark + fragment
    return location[:start] + rest


def redact(text: str) -> str:
    """Return a text without the secrets of the locations in it, and without those of environment variables.

    All that a command prints passes through here. A location is a word with a slash.
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    return re.sub(r"\S+", lambda match: redact_uri(match[0]) if "/" in match[0] else match[0], text)


def _secrets_of_environment() -> list[str]:
    """Return the values of environment variables whose names say that they are secret, the longest first."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(text: str) -> str:
    """Return a message as a terminal shows it in one line: control characters escaped, and not too long."""
    shown = "".join(character if character.isprintable() else _escaped(character) for character in text)
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[:_LONGEST_LINE]} ..."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def first_few(mistakes: Sequence[str], count: int = 3) -> list[str]:
    """Return the first `count` of many mistakes of the same kind, followed by a line with the number of the others."""
    if len(mistakes) <= count:
        return list(mistakes)
    return [*mistakes[:count], f"... and {len(mistakes) - count} more like these"]
