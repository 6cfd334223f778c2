"""Who is answered: names of this machine without a token, anyone with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("fastapi", reason="the server requires dreamprvr_ray[serve]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.web.access import COOKIE, LARGEST_BODY, Access, AccessMiddleware, token_digest

TOKEN = "correct-horse-battery"


@pytest.fixture
def connect() -> Callable[..., TestClient]:
    async def echo(request: Request) -> Response:
        return JSONResponse({"path": request.url.path, "query": request.url.query, "size": len(await request.body())})

    inner = Starlette(routes=[Route("/{rest:path}", echo, methods=["GET", "POST", "HEAD"])])

    def connect(access: Access, host: str = "localhost:8000", client: str = "127.0.0.1") -> TestClient:
        app = AccessMiddleware(inner, access)
        return TestClient(app, f"http://{host}", client=(client, 50000), follow_redirects=False)

    return connect


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_names_of_this_machine_are_answered(connect: Callable[..., TestClient], host: str) -> None:
    assert connect(Access(), host).get("/a").json()["path"] == "/a"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
def test_other_names_are_refused(connect: Callable[..., TestClient], host: str) -> None:
    """A page of another site whose name was made to lead to 127.0.0.1."""
    answer = connect(Access()).get("/", headers={"Host": host})
    assert answer.status_code == 421


def test_other_machines_are_refused_without_a_token(connect: Callable[..., TestClient]) -> None:
    assert connect(Access(), client="192.0.2.7").get("/").status_code == 403
    assert connect(Access(token_digest(TOKEN), None), client="192.0.2.7").get("/").status_code == 401


def test_a_token_is_required(connect: Callable[..., TestClient]) -> None:
    client = connect(Access(token_digest(TOKEN), None), host="search.example")
    assert client.get("/").status_code == 401
    assert client.get("/health").status_code == 200
    for wrong in ("Bearer wrong", "Bearer", "Basic " + TOKEN, f"Bearer {TOKEN}x", "Bearer \xff"):
        assert client.get("/", headers={"Authorization": wrong.encode("latin-1")}).status_code == 401  # type: ignore[dict-item]
    for cookie in (TOKEN, token_digest(TOKEN), "", "x"):
        assert client.get("/", headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_token_in_the_address_becomes_a_cookie(connect: Callable[..., TestClient]) -> None:
    client = connect(Access(token_digest(TOKEN), None))
    answer = client.get(f"/page?a=1&token={TOKEN}&b=%26")
    assert answer.status_code == 303 and answer.headers["location"] == "/page?a=1&b=%26"
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert client.get("/page").status_code == 200
    # A path that begins with two slashes would be another server's.
    other = connect(Access(token_digest(TOKEN), None)).get(f"http://localhost//evil.example/?token={TOKEN}")
    assert other.headers["location"].startswith("/evil.example")


def test_weak_tokens_are_refused() -> None:
    for token in ("", "short", "spaces in the token", "sübstantially-long-token"):
        with pytest.raises(UserError, match="at least 16"):
            token_digest(token)
    assert TOKEN not in token_digest(TOKEN)


def test_other_sites_can_send_nothing(connect: Callable[..., TestClient]) -> None:
    client = connect(Access())
    assert client.post("/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/", headers={"Origin": "null"}).status_code == 403
    assert client.post("/", headers={"Origin": "http://localhost:8000"}).status_code == 200
    assert client.get("/", headers={"Origin": "http://evil.example"}).status_code == 200  # without CORS, unreadable


def test_large_bodies_are_refused(connect: Callable[..., TestClient]) -> None:
    client = connect(Access())
    assert client.post("/", content=b"x" * LARGEST_BODY).json()["size"] == LARGEST_BODY
    assert client.post("/", content=b"x" * (LARGEST_BODY + 1)).status_code == 413
    parts = (b"x" * 10_000 for _ in range(10))  # without a Content-Length
    assert client.post("/", content=parts).status_code == 413
    assert client.post("/", headers={"Content-Length": "9" * 30}, content=b"").status_code == 413


def test_every_response_has_the_headers(connect: Callable[..., TestClient]) -> None:
    for answer in (connect(Access()).get("/"), connect(Access()).get("/", headers={"Host": "evil"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
