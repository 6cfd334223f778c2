"""Who may use the server, and what every response says: an ASGI middleware around the application.

- Without a token, only requests from this machine to a name of this machine are answered. Another site's page cannot
  reach the server under its own name, even if that name leads to 127.0.0.1 (DNS rebinding).
- With a token, a request must carry it: `Authorization: Bearer TOKEN`, or once `?token=TOKEN`, which sets a cookie.
- Pages of other sites can neither send feedback (Origin) nor embed videos (Cross-Origin-Resource-Policy).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreamprvr_ray.errors import UserError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
COOKIE = "dreamprvr_ray"
SHORTEST_TOKEN = 16  # characters
LARGEST_BODY = 64 * 1024  # bytes
OPEN_PATHS = ("/health",)  # for load balancers and probes; they disclose no videos
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"  # of what is not a page


@dataclass(frozen=True)
class Access:
    """Who may use a server.

    Attributes:
        digest: Of the token, by `token_digest`; None if the server needs none. The token itself is not kept.
        hosts: Names under which the server may be called; None: under any.
    """

    digest: str | None = None
    hosts: frozenset[str] | None = LOCAL_NAMES


def token_digest(token: str) -> str:
    """Return what is kept of a token. Raises `UserError` if it is too short to be safe, or not plain."""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"token: must be at least {SHORTEST_TOKEN} ASCII characters without spaces; for example, the output of:"
            ' python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return _digest(token)


class AccessMiddleware:
    """Refuses requests that `Access` does not allow, and bodies that are too large."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", NO_CONTENT_POLICY)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            body = None if scope["method"] in ("GET", "HEAD") else await _read_body(headers, receive)
            if isinstance(body, Response):
                refusal = body
            elif body is not None:
                receive = _replay(body, receive)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the response to a request that is not allowed, None if it is."""
        host = headers.get("host", "")
        if self._access.digest is None and not _is_loopback(scope):
            return _error(403, "without a token, this server answers its own machine only")
        if self._access.hosts is not None and _name(host) not in self._access.hosts:
            return _error(421, "this server is not called by this name")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and origin.partition("://")[2] != host:
            return _error(403, "requests of other sites are refused")
        if self._access.digest is None or scope["path"] in OPEN_PATHS:
            return None
        return self._check_token(self._access.digest, scope, headers)

    def _check_token(self, digest: str, scope: Scope, headers: Headers) -> Response | None:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(_digest(bearer.strip()), digest):
            return None
        cookie = _cookie(headers)
        if cookie is not None and hmac.compare_digest(_digest(cookie), _digest(_cookie_value(digest))):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = next((value for name, value in query if name == "token"), None)
        if token is not None and hmac.compare_digest(_digest(token), digest):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            path = "/" + scope["path"].lstrip("/")  # "//host" would lead to another one
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            response.set_cookie(COOKIE, _cookie_value(digest), httponly=True, samesite="strict")
            return response
        return _error(401, "this server needs its token", {"WWW-Authenticate": "Bearer"})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _cookie_value(digest: str) -> str:
    """Return what the cookie holds, from which the token cannot be computed."""
    return hmac.new(digest.encode(), b"cookie", hashlib.sha256).hexdigest()


def _cookie(headers: Headers) -> str | None:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def _is_loopback(scope: Scope) -> bool:
    try:
        return ipaddress.ip_address((scope.get("client") or ("",))[0]).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """Return a Host header's name without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def _error(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)


async def _read_body(headers: Headers, receive: Receive) -> bytes | Response:
    """Return a request's body, or the response if it is too large."""
    too_large = _error(413, f"the body must have at most {LARGEST_BODY} bytes", {"Connection": "close"})
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > LARGEST_BODY:
        return too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client has gone
            return _error(400, "the request ended early")
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return too_large
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read, and then what follows."""
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
