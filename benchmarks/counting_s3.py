"""An S3 server in memory, in a separate process, which counts what it receives.

It has what an object store costs a client, its requests, and little more. moto's server takes several milliseconds for
a request and walks through all objects for each listing, so that it and not the search would be measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web
from pyarrow.fs import S3FileSystem

BUCKET = "bucket"
MOST = 1000  # entries of a listing
MOMENT = "2026-01-01T00:00:00.000Z"  # at which all objects were written


@dataclass(frozen=True)
class CountingS3:
    """The server. `uri` names its bucket; the environment of this process holds the keys."""

    uri: str
    requests: Synchronized[int]
    written: Synchronized[int]  # bytes

    def counts(self) -> tuple[int, int]:
        """Return the number of requests and of bytes written so far."""
        return self.requests.value, self.written.value


@contextmanager
def counting_s3() -> Iterator[CountingS3]:
    """Run the server while the block runs."""
    context = multiprocessing.get_context("spawn")
    requests, written = context.Value("q", 0), context.Value("q", 0)
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, requests, written), daemon=True)
    process.start()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    address = here.recv()
    try:
        S3FileSystem(
            endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
        ).create_dir(BUCKET)
        uri = f"s3://{BUCKET}/search?endpoint_override={address}&scheme=http&region=us-east-1"
        yield CountingS3(uri, requests, written)
    finally:
        process.terminate()
        process.join()


def _serve(connection: Connection, requests: Synchronized[int], written: Synchronized[int]) -> None:
    asyncio.run(_run(connection, _Bucket(requests, written)))


async def _run(connection: Connection, bucket: _Bucket) -> None:
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", bucket.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    connection.send("{}:{}".format(*runner.addresses[0][:2]))
    await asyncio.Event().wait()


class _Bucket:
    """The objects of one bucket, and the part of S3's protocol that pyarrow uses."""

    def __init__(self, requests: Synchronized[int], written: Synchronized[int]) -> None:
        self._requests, self._written = requests, written
        self._objects: dict[str, bytes] = {}
        self._names: list[str] = []  # sorted
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = count()

    async def answer(self, request: web.Request) -> web.Response:
        body = _content(request, await request.read())
        self._requests.value += 1
        self._written.value += len(body)
        _, _, name = request.match_info["path"].partition("/")
        query, method = request.query, request.method
        if method == "POST" and "delete" in query:
            for element in ElementTree.fromstring(body).iter():
                if element.tag.endswith("Key"):
                    self._delete(element.text or "")
            return _xml("DeleteResult", "")
        if method == "POST" and "uploads" in query:
            upload = str(next(self._numbers))
            self._uploads[upload] = {}
            return _xml("InitiateMultipartUploadResult", _tags(Key=name, UploadId=upload))
        if method == "POST":
            parts = self._uploads.pop(query["uploadId"])
            self._put(name, b"".join(parts[number] for number in sorted(parts)))
            return _xml("CompleteMultipartUploadResult", _tags(Key=name, ETag=_tag(self._objects[name])))
        if method == "PUT" and "uploadId" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
            return web.Response(headers={"ETag": _tag(body)})
        if method == "PUT" and (source := request.headers.get("x-amz-copy-source")):
            self._put(name, self._objects[unquote(source).lstrip("/").partition("/")[2]])
            return _xml("CopyObjectResult", _tags(ETag=_tag(self._objects[name]), LastModified=MOMENT))
        if method == "PUT":
            if name:
                self._put(name, body)
            return web.Response(headers={"ETag": _tag(body)})
        if method == "DELETE":
            if self._uploads.pop(query.get("uploadId", ""), None) is None:
                self._delete(name)
            return web.Response(status=204)
        if not name:
            return web.Response() if method == "HEAD" else self._listed(query)
        return self._read(name, request)

    def _put(self, name: str, content: bytes) -> None:
        if name not in self._objects:
            insort(self._names, name)
        self._objects[name] = content

    def _delete(self, name: str) -> None:
        if self._objects.pop(name, None) is not None:
            del self._names[bisect_left(self._names, name)]

    def _read(self, name: str, request: web.Request) -> web.Response:
        if name not in self._objects:
            return _xml("Error", _tags(Code="NoSuchKey", Message="none"), 404)
        content, status = self._objects[name], 200
        headers = {"ETag": _tag(content), "Last-Modified": formatdate(usegmt=True), "Accept-Ranges": "bytes"}
        if (part := request.http_range).start is not None or part.stop is not None:
            start, stop, _ = part.indices(len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content, status = content[part], 206
        return web.Response(body=content, headers=headers, status=status)

    def _listed(self, query: web.MultiMapping[str]) -> web.Response:  # type: ignore[name-defined]
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        place = bisect_left(self._names, query.get("continuation-token") or prefix)
        entries: list[str] = []
        while place < len(self._names) and self._names[place].startswith(prefix) and len(entries) < MOST:
            name = self._names[place]
            folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                inside = prefix + folder + delimiter
                entries.append(f"<CommonPrefixes>{_tags(Prefix=inside)}</CommonPrefixes>")
                place = bisect_left(self._names, inside[:-1] + chr(ord(delimiter) + 1))
            else:
                size, tag = len(self._objects[name]), _tag(self._objects[name])
                about = _tags(Key=name, Size=str(size), ETag=tag, LastModified=MOMENT)
                entries.append(f"<Contents>{about}</Contents>")
                place += 1
        more = place < len(self._names) and self._names[place].startswith(prefix)
        following = _tags(NextContinuationToken=self._names[place]) if more else ""
        head = _tags(Name=BUCKET, Prefix=prefix, KeyCount=str(len(entries)), IsTruncated=str(more).lower())
        return _xml("ListBucketResult", head + following + "".join(entries))


def _content(request: web.Request, body: bytes) -> bytes:
    """Return what a request sends, without the frames of `aws-chunked`: size, line, content, line, ..., 0."""
    if "X-Amz-Decoded-Content-Length" not in request.headers:
        return body
    parts: list[bytes] = []
    place = 0
    while True:
        end = body.index(b"\r\n", place)
        size = int(body[place:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        place = end + 2 + size + 2


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _tags(**values: str) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())


def _xml(root: str, content: str, status: int = 200) -> web.Response:
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    text = f'<?xml version="1.0" encoding="UTF-8"?><{root} xmlns="{space}">{content}</{root}>'
    return web.Response(text=text, content_type="application/xml", status=status)
