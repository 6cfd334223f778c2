"""What a user is told in one line without a traceback: their own mistakes (exit code 2), and failures that are nobody's (exit code 1)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit


class UserError(Exception):
    """One or several mistakes of the user's.

    Each of `mistakes` is one line that names what is wrong, where, and what is allowed.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes

    def __reduce__(self) -> tuple[type[UserError], tuple[str, ...]]:
        return type(self), self.mistakes


class StoreError(UserError):
    """An object store did not answer as it should: trying again may help."""


class NotWritable(OSError):
    """A destination that cannot be written whatever is tried: the user's mistake, where nobody knows better."""

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


class Failure(Exception):
    """Something outside the program went wrong while it ran (a full disk, a lost machine, a loss that diverged); the message is one line."""


def near_miss(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the allowed name nearest to `name`, else an empty string."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if not close:  # a key written without its section: 'registers' for 'model.registers'
        close = [full for full in allowed if full.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f"; did you mean '{close[0]}'?" if close else ""


def without_password(url: str) -> str:
    """A database's URL as it may be shown and passed on."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def shown(text: str) -> str:
    """A text with the URIs in it as they may be shown and kept: without passwords and without options, among which keys may stand."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", lambda match: without_password(match[0]).partition("?")[0], text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
