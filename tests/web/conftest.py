"""A searchable collection of colour videos, and the application over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from support.web_collection import Collection


@pytest.fixture(scope="session")
def make_collection(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Collection]:
    """Write a collection whose videos have these endings in turn."""
    from support.colour_videos import write_colour_videos, write_index
    from support.web_collection import Collection

    def make(*endings: str) -> Collection:
        folder: Path = tmp_path_factory.mktemp("colours")
        paths = write_colour_videos(folder / "videos", endings or (".mp4",))
        return Collection(folder / "videos", paths, write_index(folder / "index", folder / "videos", paths))

    return make


@pytest.fixture(scope="session")
def collection(make_collection: Callable[..., Collection]) -> Collection:
    """A collection that tests do not change."""
    return make_collection(".mp4", ".mkv", ".webm", ".avi")


@pytest.fixture(scope="module")
def client(collection: Collection) -> Iterator[TestClient]:
    with collection.client() as client:
        yield client
