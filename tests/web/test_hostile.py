"""Hostile requests: no file outside of the collection, nothing but a plain refusal, and never a 500."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("av", reason="decoding videos requires PyAV")
pytest.importorskip("fastapi", reason="the server requires dreamprvr_ray[serve]")

from support.web_collection import Collection

COUNT = 200
SECRET = "canary-8d2f"
PATHS = ["../../secret", "..%2f..%2fsecret", "%2e%2e/secret", "/etc/passwd", "//etc/passwd", "red/clip/../../secret",
         "red%2Fclip.mp4", "red/clip\\..\\..\\secret", "file:///etc/passwd", "red%00/clip", "%ff%fe", "%c0%ae%c0%ae/",
         "concat:/etc/passwd", "\u202e4pm.pilc", "a" * 5000, "", ".", "%252e%252e%252fsecret", "?", "#"]  # fmt: skip
RANGES = ["bytes=-", "bytes=0-18446744073709551616", "bytes=-99999999999999999999", "bytes=5-1", "bytes=1-2,3-4",
          "bytes=" + ",".join(f"{n}-" for n in range(900)), "bytes=\x00-", "lines=1-2", "bytes=1e3-", "bytes=0--1",
          "bytes= 0-1", "bytes=999999999-", "b" * 4000]  # fmt: skip
TIMES = ["nan", "inf", "-inf", "-1", "1e308", "1e999", "0x10", "", "one", "1;2", "9" * 400, "999999", "-0.0", "0"]
SENTENCES: list[Any] = [
    "", " ", "\0", "\ud800", "<script>alert(1)</script>", "'; DROP TABLE videos; --", "{{7*7}}", "${jndi:ldap://x}",
    "a" * 1001, "\u202e\u0000", "🎬" * 1000, 5, None, True, ["red"], {"$ne": 1}, "\n\r\t", "%s%n", "../../secret",
    "\ufeff", "\x1b[31m", "red " * 200,
]  # fmt: skip
TOPS: list[Any] = [0, -1, 101, 10**30, 1.5, "10", None, True, [], float("inf"), float("nan")]


def hostile_requests(seed: int) -> Iterator[tuple[str, str, dict[str, str], bytes | None]]:
    """Yield method, path, headers and body; the same ones for a seed."""
    draw = random.Random(seed)

    def of_path() -> tuple[str, str, dict[str, str], bytes | None]:
        base = draw.choice(["/videos/", "/", "/clip?video=", "/thumbnail?video=", "/clip/", "/static/"])
        path = draw.choice(PATHS)
        return draw.choice(["GET", "HEAD"]), base + (quote(path) if draw.random() < 0.4 else path), {}, None

    def of_range() -> tuple[str, str, dict[str, str], bytes | None]:
        return draw.choice(["GET", "HEAD"]), "/videos/red/clip", {"Range": draw.choice(RANGES)}, None

    def of_times() -> tuple[str, str, dict[str, str], bytes | None]:
        times = f"start={draw.choice(TIMES)}&end={draw.choice(TIMES)}&time={draw.choice(TIMES)}"
        width = draw.choice(["", "0", "-5", "999999", "1e9", "64"])
        return "GET", f"/{draw.choice(['clip', 'thumbnail'])}?video=red/clip&{times}&width={width}", {}, None

    def of_values() -> tuple[str, str, dict[str, str], bytes | None]:
        values: dict[str, Any] = {"sentence": draw.choice(SENTENCES), "top": draw.choice(TOPS)}
        path = "/find"
        if draw.random() < 0.5:
            path = "/feedback"
            values = {
                "sentence": draw.choice(SENTENCES), "video": draw.choice(["red/clip", *PATHS]),
                "start": draw.choice([0, -1, 10**400, float("nan"), "1"]), "end": draw.choice([1, 10**9, float("inf")]),
                "right": draw.choice([True, False, 1, "yes"]),
            }  # fmt: skip
        return "POST", path, {"Content-Type": "application/json"}, json.dumps(values).encode()

    def of_body() -> tuple[str, str, dict[str, str], bytes | None]:
        bodies = [b"", b"{", b"\xff\xfe", b"[" * 30_000, b'{"a":' * 9000, b"null", b"1" * 60_000, b"\0" * 100,
                  b"x" * 70_000, b'{"sentence": "\\ud800", "top": 1}', b'{"sentence": "a", "sentence": "b"}',
                  draw.randbytes(200)]  # fmt: skip
        kinds = ["application/json", "text/plain", "multipart/form-data", "application/json; charset=utf-16", "x"]
        headers = {"Content-Type": draw.choice(kinds)}
        if draw.random() < 0.3:
            headers |= {"Content-Encoding": "gzip"}
        return draw.choice(["POST", "PUT", "PATCH"]), draw.choice(["/find", "/feedback"]), headers, draw.choice(bodies)

    def of_headers() -> tuple[str, str, dict[str, str], bytes | None]:
        names = ["Host", "Origin", "Cookie", "Authorization", "If-None-Match", "If-Range", "X-Forwarded-For", "Accept"]
        text = "".join(draw.choices(string.printable[:95], k=draw.choice([0, 5, 3000])))
        value = draw.choice([text, "evil.example", "localhost:99999999", "[::1", "\xe9\xff", "../..", "a=b; c"])
        return draw.choice(["GET", "DELETE", "OPTIONS", "TRACE"]), "/", {draw.choice(names): value}, None

    kinds: list[Callable[[], tuple[str, str, dict[str, str], bytes | None]]] = [
        of_path, of_range, of_times, of_values, of_body, of_headers,
    ]  # fmt: skip
    for number in range(COUNT):
        yield kinds[number % len(kinds)]()


def test_hostile_requests(make_collection: Callable[..., Collection]) -> None:
    collection = make_collection()
    for folder in (collection.videos.parent, collection.videos, collection.index):
        (folder / "secret").write_text(SECRET)
    client = collection.client(raises=False)
    statuses: dict[int, int] = {}
    for method, path, headers, body in hostile_requests(seed=7):
        encoded = {name: value.encode("utf-8", "replace") for name, value in headers.items()}
        try:
            answer = client.request(method, path, headers=encoded, content=body)  # type: ignore[arg-type]
        except (ValueError, RuntimeError) as error:  # the client itself refuses to send it
            assert "url" in str(type(error)).lower() or "protocol" in str(type(error)).lower(), (path, error)
            continue
        case = (method, path[:200], str(headers)[:200], (body or b"")[:80])
        assert answer.status_code < 500, (case, answer.status_code, answer.text[:500])
        assert SECRET not in answer.text and "root:" not in answer.text, case
        assert len(answer.content) < 100_000, case
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    assert sum(statuses.values()) >= COUNT * 0.9 and {404, 422, 413}.issubset(statuses), statuses
    assert client.post("/find", json={"sentence": "red"}).status_code == 200
