"""Several processes make the index that one makes, bit for bit, also if one is killed or the update interrupted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from support.indexes import small_checkpoint, small_shards

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index import building
from dreamprvr_ray.index.building import Progress, update_index
from dreamprvr_ray.index.collections import open_shards
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.runtime.index_encoding import ClusterEncoding
from dreamprvr_ray.runtime.session import ray_session


def contents(index: Path) -> list[dict[str, bytes]]:
    """Return the parts of an index, in order, as the bytes of their files."""
    parts = [index / "parts" / part.name for part in Index.open(index).record.parts]
    return [{file.name: file.read_bytes() for file in sorted(part.iterdir())} for part in parts]


def kill_one_encoder() -> None:
    encoders = [
        process for process in psutil.Process().children(recursive=True)
        if "BlockEncoder" in "".join(process.cmdline()[:1])
    ]  # fmt: skip
    assert encoders
    encoders[0].kill()


@pytest.fixture
def plain_ray() -> Iterator[None]:
    """A local Ray without a dashboard, which takes longer to start."""
    with ray_session(dashboard=False):
        yield


@pytest.mark.usefixtures("plain_ray")
def test_several_processes_make_the_same_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    monkeypatch.setattr(building, "PART_ROWS", 12)
    monkeypatch.setattr(building, "BLOCK", 5)
    shards, model = small_shards(tmp_path / "shards"), small_checkpoint(tmp_path / "model")
    opened = partial(open_shards, str(shards.directory))
    update_index(tmp_path / "alone", opened(), model)

    out = tmp_path / "together"

    def disturb(progress: Progress) -> None:
        if progress.done == 12:
            kill_one_encoder()
        if progress.done == 24:
            raise KeyboardInterrupt

    encode = ClusterEncoding(opened, 2)
    with pytest.raises(KeyboardInterrupt):
        update_index(out, opened(), model, report=disturb, encode=encode)
    assert len(Index.open(out)) == 24
    done = call("index", "--model", model, "--shards", shards.directory, "--out", out, "--workers", 2)
    assert done.returncode == 0 and "24 unchanged" in done.stdout, done.stderr
    assert contents(out) == contents(tmp_path / "alone")

    gone = ClusterEncoding(partial(open_shards, str(tmp_path / "nowhere")), 1)
    with pytest.raises(UserError, match="nowhere"):
        update_index(tmp_path / "third", opened(), model, encode=gone)
