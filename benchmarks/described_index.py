"""python -m benchmarks.described_index: an index of the drawn videos before any training.

Each frame is described in words ("a red circle on a striped wall"), as a captioning model would, and encoded by the
sentence encoder of the demo. The index is of this encoder alone: `serve` and `find` search in it as in any other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dreamprvr_ray.command_line import Parser, run
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord, VideoTimes
from dreamprvr_ray.index.building import update_index
from dreamprvr_ray.index.collections import PooledVideo
from dreamprvr_ray.storage.files import read_json
from dreamprvr_ray.storage.location import local_folder
from dreamprvr_ray.video.encoders.registry import open_sentence_encoder
from dreamprvr_ray.video.storyboard import Storyboard, storyboards

RATE = 2.0  # frames per second
SPLIT = "test"


class DescribedVideos:
    """The test videos of a demo, described: a collection for `update_index`."""

    name, dtype, one_encoder = "described", "float16", True

    def __init__(self, demo: Path) -> None:
        settings = read_json(demo / "demo.json")
        boards = storyboards(SPLIT, settings["videos"][SPLIT], settings["seed"])
        self.origin = str(demo)
        self._boards = {board.name: board for board in boards}
        self._encoder = open_sentence_encoder(f"sentence_transformers:{demo / 'encoders' / 'all_minilm_l6_v2'}")
        self.video_size = self.text_size = self._encoder.size
        record = EncoderRecord(self._encoder.name, self._encoder.size, self._encoder.precision, self._encoder.version)
        self.encoding = EncodingRecord(record, record, RATE)
        self.ids = list(self._boards)

    def read(self, id: str) -> PooledVideo:
        """Return a video's encoded descriptions."""
        board = self._boards[id]
        texts = [describe(board, row / RATE) for row in range(max(1, round(board.duration * RATE)))]
        known = sorted(set(texts))
        encoded = dict(zip(known, self._encoder.encode_sentences(known), strict=True))
        rows = np.stack([encoded[text].sentence for text in texts])
        times = VideoTimes(id, f"{id}.mp4", 0.0, RATE, len(rows), board.duration)
        return PooledVideo(pooling.clips(rows).astype(self.dtype), pooling.frames(rows).astype(self.dtype), times)


def describe(board: Storyboard, time: float) -> str:
    """Return what a video shows at a time, in words."""
    for event in board.events:
        if event.start <= time < event.end:
            return f"a {event.first if time < event.change else event.second} on a {board.background} wall"
    return f"an empty {board.background} wall"


def main(arguments: list[str]) -> None:
    parser = Parser("described_index", "Index the drawn videos by descriptions of their frames.", package="benchmarks")
    parser.add_argument("demo", type=local_folder, metavar="DIR", help="directory that `video.demo` wrote")
    parser.add_argument("--out", type=local_folder, required=True, metavar="INDEX", help="directory of the index")
    options = parser.parse_args(arguments)
    update = update_index(options.out, DescribedVideos(options.demo), None, videos_directory=options.demo / "files")
    print(f"{options.out}: {update.record.rows} videos")


if __name__ == "__main__":
    run(main)
