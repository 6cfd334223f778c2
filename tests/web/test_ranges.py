"""Byte ranges, against slices of the file's content."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server requires dreamprvr_ray[serve]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from dreamprvr_ray.web import ranges
from dreamprvr_ray.web.ranges import UnsatisfiableRange, file_response, parse_range

CONTENT = random.Random(0).randbytes(3 * 1000 + 17)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-1000", (10, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        (" bytes=99- ", (99, 100)),
        # Malformed or several: the whole file.
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=20-10", None),
        ("bytes=0-1,5-6", None),
        ("bytes=a-b", None),
        ("bytes=1.5-2", None),
        ("bytes=+1-2", None),
        ("bytes=\u0661-\u0662", None),
        ("bytes=0x1-2", None),
        ("items=0-1", None),
        ("bytes=99999999999999999999999-", None),
    ],
)
def test_a_header_is_parsed(header: str | None, part: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=9999999999999999999-"])
def test_bytes_after_the_end_are_refused(header: str) -> None:
    with pytest.raises(UnsatisfiableRange):
        parse_range(header, 100)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    monkeypatch.setattr(ranges, "CHUNK", 1000)

    def send(request: Request) -> Response:
        return file_response(request, path.open("rb"), "video/mp4", {"X-Own": "1"})

    return TestClient(Starlette(routes=[Route("/", send, methods=["GET", "HEAD"])]))


def test_parts_equal_slices(client: TestClient) -> None:
    numbers = random.Random(1)
    for _ in range(40):
        start = numbers.randrange(len(CONTENT))
        end = numbers.randrange(start, len(CONTENT) + 500)
        answer = client.get("/", headers={"Range": f"bytes={start}-{end}"})
        expected = CONTENT[start : end + 1]
        assert (answer.status_code, answer.content) == (206, expected)
        last = start + len(expected) - 1
        assert answer.headers["content-range"] == f"bytes {start}-{last}/{len(CONTENT)}"
        assert answer.headers["content-length"] == str(len(expected))


def test_the_whole_file_and_its_headers(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["accept-ranges"] == "bytes" and answer.headers["x-own"] == "1"
    head = client.head("/", headers={"Range": "bytes=5-9"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (206, b"", "5")
    wrong = client.get("/", headers={"Range": "bytes=9999-"})
    assert wrong.status_code == 416 and wrong.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_a_changed_file_is_sent_as_a_whole(client: TestClient) -> None:
    tag = client.head("/").headers["etag"]
    assert client.get("/", headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == 206
    assert client.get("/", headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200
    assert client.get("/", headers={"If-None-Match": f'"other", {tag}'}).status_code == 304
