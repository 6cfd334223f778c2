"""Responses with byte ranges (RFC 9110, section 14), so that a player can jump within a file."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dreamprvr_ray.web.video_files import entity_tag

CHUNK = 256 * 1024  # bytes that are read at once
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


class UnsatisfiableRange(ValueError):
    """A range that starts after the end of the file."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the bytes [start, end) that a Range header asks for.

    None, for the whole file, if there is no header or if it is malformed or has several ranges, which a server may
    ignore. Raises `UnsatisfiableRange` if the file has no such bytes.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":  # the last bytes
        length = int(match[2])
        if length == 0 or size == 0:
            raise UnsatisfiableRange
        return max(0, size - length), size
    start = int(match[1])
    end = size if match[2] == "" else min(int(match[2]) + 1, size)
    if match[2] != "" and int(match[2]) < start:
        return None
    if start >= size:
        raise UnsatisfiableRange
    return start, end


def file_response(request: Request, file: BinaryIO, media_type: str, headers: Mapping[str, str]) -> Response:
    """Return the response to a GET or HEAD request for an open file, which is closed at the end of the response."""
    size, tag = os.fstat(file.fileno()).st_size, entity_tag(file)
    own = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, no-cache", **headers}
    if tag in (each.strip() for each in request.headers.get("if-none-match", "").split(",")):
        file.close()
        return Response(status_code=304, headers=own)
    wanted = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
    try:
        part = parse_range(wanted, size)
    except UnsatisfiableRange:
        file.close()
        return Response(status_code=416, headers={**own, "Content-Range": f"bytes */{size}"})
    start, end = part or (0, size)
    own["Content-Length"] = str(end - start)
    if part is not None:
        own["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 200 if part is None else 206
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=own, media_type=media_type)
    return StreamingResponse(_read(file, start, end), status, own, media_type)


async def _read(file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    with file:
        while start < end:
            chunk = await run_in_threadpool(os.pread, file.fileno(), min(CHUNK, end - start), start)
            if not chunk:  # the file has become shorter
                return
            start += len(chunk)
            yield chunk
