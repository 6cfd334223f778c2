"""An extraction on a cluster that loses a node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from ray._common.network_utils import find_free_port
from ray.cluster_utils import Cluster
from support.tiny_encoder import LOG, NAME, SECONDS, encoded_frames, mean_colours
from support.videos import write_video

pytest.importorskip("av", reason="decoding videos requires PyAV")
from dreamprvr_ray.video.decoding import decode

if TYPE_CHECKING:
    from conftest import Driver

TESTS = Path(__file__).parents[1]
VIDEOS, LENGTH = 18, 16  # four are encoded at once


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head without CPUs, which is the driver's node, and three nodes with one CPU each."""
    (tmp_path / "log").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv(LOG, str(tmp_path / "log"))
        patch.setenv(SECONDS, "0.03")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": find_free_port()})
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        yield cluster
    cluster.shutdown()


def test_a_node_is_killed(cluster: Cluster, tmp_path: Path, drive: Callable[..., Driver]) -> None:
    videos, out = tmp_path / "videos", tmp_path / "mine"
    for number in range(VIDEOS):
        write_video(videos / f"{number:02d}.mp4", LENGTH, number, rate=1)
    words = ["--encoder", NAME, "--videos", videos, "--out", out]
    environment = {"RAY_ADDRESS": cluster.address, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ['PYTHONPATH']}"}
    driver = drive("extract", *words, **environment)
    parts = out / "extraction" / "videos"
    deadline = time.monotonic() + 600
    while not parts.is_dir() or len(list(parts.glob("*.safetensors"))) < 3:
        assert driver.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    finished = len(list(parts.glob("*.safetensors")))
    output = driver.end()
    assert driver.process.returncode == 0, output
    assert finished < VIDEOS

    again = encoded_frames(tmp_path / "log") - VIDEOS * LENGTH
    assert 0 <= again < VIDEOS * LENGTH
    print(f"killed after {finished} of {VIDEOS} videos; {again} of {VIDEOS * LENGTH} frames were encoded twice")
    with h5py.File(out / "FeatureData" / "support.tiny_encoder-TinyEncoder" / "feature.hdf5") as features:
        assert sorted(features) == [f"{number:02d}" for number in range(VIDEOS)]
        for number in range(VIDEOS):
            frames = decode(videos / f"{number:02d}.mp4", 1.0)
            np.testing.assert_allclose(features[f"{number:02d}"][:], [mean_colours(frame.image) for frame in frames])
    assert len(list(parts.glob("*.safetensors"))) == VIDEOS
