"""The page, one HTML file with its script and style, and the policy that lets a browser run these alone."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from html import escape
from importlib.resources import files

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A page as a server sends it.

    Attributes:
        html: The page.
        policy: Its Content-Security-Policy.
    """

    html: str
    policy: str


def search_page(collection: str, videos: int) -> Page:
    """Return the page that searches a collection of `videos` videos."""
    html = (files("dreamprvr_ray.web") / "page.html").read_text(encoding="utf-8")
    return with_policy(html.replace("{videos}", str(videos), 1).replace("{collection}", escape(collection), 1))


def with_policy(html: str) -> Page:
    """Return a page with a policy that allows its own inline script and style by their hashes, and its own server."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script']) or chr(39) + 'none' + chr(39)};"
        f" style-src {' '.join(hashes['style']) or chr(39) + 'none' + chr(39)};"
        " img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return Page(html, policy)
