"""Loading weights from the Hugging Face hub, without waiting for a hub that cannot be reached."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
_SECONDS = 5.0  # to wait for a connection


@contextmanager
def hub() -> Iterator[None]:
    """The context in which a library loads weights.

    If the hub cannot be reached, the libraries use their cache or fail at once. Without this, they try each of several
    files six times, for a minute or more. Their progress bars and logs are switched off: they would mix with those of
    the command.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    offline, hidden = constants.HF_HUB_OFFLINE, are_progress_bars_disabled()
    weights = sys.modules["transformers"].utils.logging if "transformers" in sys.modules else None
    weights_hidden = weights is None or not weights.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    disable_progress_bars()
    log_level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    if weights is not None:
        weights.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(log_level)
        if not hidden:
            enable_progress_bars()
        if weights is not None and not weights_hidden:
            weights.enable_progress_bar()


def _reachable(endpoint: str) -> bool:
    """Whether a connection to the hub can be opened; assumed if there is a proxy."""
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_SECONDS):
            return True
    except (OSError, UnicodeError):
        return False
