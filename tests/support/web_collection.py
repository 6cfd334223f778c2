"""A collection of colour videos, and clients of the application over it. Requires dreamprvr_ray[serve]."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from dreamprvr_ray.index.index import Index
from dreamprvr_ray.web.access import Access
from dreamprvr_ray.web.app import Served, create_app, served_index


@dataclass(frozen=True)
class Collection:
    """Videos and their index."""

    videos: Path
    paths: dict[str, Path]  # by colour
    index: Path

    def served(self) -> Served:
        """What an application serves; searches run in this process."""
        index = Index.open(self.index)

        async def find(sentence: str, top: int) -> dict[str, Any]:
            return index.find(sentence, top).to_dict()

        return served_index(self.index, find)

    def client(
        self, access: Access | None = None, base_url: str = "http://localhost", raises: bool = True
    ) -> TestClient:
        """A client of this machine, with `raises` one that raises what a request fails with instead of a 500."""
        app = create_app(self.served(), access or Access())
        return TestClient(app, base_url, raises, client=("127.0.0.1", 1234), follow_redirects=False)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an ASGI application on loopback in a thread, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
