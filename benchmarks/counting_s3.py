"""An S3 server of moto in a separate process, which counts what it receives."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from pyarrow.fs import S3FileSystem

BUCKET = "bucket"


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
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)

    def count(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with requests.get_lock():
            requests.value += 1
            size = environment.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") or environment.get("CONTENT_LENGTH")
            written.value += int(size or 0)
        answer: Iterable[bytes] = application(environment, start_response)
        return answer

    server = make_server("127.0.0.1", 0, count, threaded=True)
    connection.send("{}:{}".format(*server.server_address[:2]))
    server.serve_forever()
