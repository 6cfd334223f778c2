"""Writing source trees: the layout that `source` reads, from features in memory or from random numbers. Imports no
torch.

Shapes: n frames of a video, Lq tokens of a query; Dv and Dt values per frame and token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dreamprvr_ray.data.captions import Query


@dataclass(frozen=True, eq=False)
class SourceVideo:
    """A video with its queries, whose ids must start with `<video id>#`."""

    id: str
    frames: np.ndarray  # (n, Dv) float32
    queries: Sequence[Query]


def write_source_tree(
    folder: Path, collection: str, features: str, splits: Mapping[str, Iterable[SourceVideo]]
) -> None:
    """Write a collection's captions, HDF5 features and moments into the new directory `folder`.

    Videos are written one by one, so that `splits` may generate them.

    Args:
        folder: The collection's own directory.
        collection: Name of the collection, the prefix of its caption files.
        features: Name of the directory under FeatureData.
        splits: The videos of train, val and test.
    """
    feature_folder, text_folder = folder / "FeatureData" / features, folder / "TextData"
    feature_folder.mkdir(parents=True)
    text_folder.mkdir(parents=True)
    moments = []
    with (
        new_hdf5(feature_folder / "feature.hdf5") as (frames, frames_file),
        new_hdf5(text_folder / f"{collection}_query_feat.hdf5") as (tokens, tokens_file),
    ):
        for split, videos in splits.items():
            captions = []
            for video in videos:
                frames_file.check()
                tokens_file.check()
                frames[video.id] = video.frames
                for query in video.queries:
                    tokens[query.id] = query.tokens
                    captions.append(f"{query.id} {query.sentence}\n")
                    if query.moment is not None:
                        start, end, duration = query.moment
                        times = {"start": start, "end": end, "duration": duration}
                        moments.append({"query": query.id, "video": video.id} | times)
            (text_folder / f"{collection}{split}.caption.txt").write_text("".join(captions), encoding="utf-8")
    if moments:
        lines = "".join(json.dumps(moment) + "\n" for moment in moments)
        (folder / "moments.jsonl").write_text(lines, encoding="utf-8")


class _HDF5Target:
    """A file for HDF5 to write to, which keeps the first error for `check` instead of raising it.

    HDF5 that cannot write, as to a full disk, tries again when the file is closed and when the process ends, and
    crashes it. It must therefore be able to close the file; what is written after an error is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open(path, "w+b", buffering=0)  # noqa: SIM115 - `close` closes it
        self._error: OSError | None = None
        self.seek, self.tell = self._file.seek, self._file.tell
        self.read, self.readinto = self._file.read, self._file.readinto

    def write(self, content: memoryview) -> int:
        def write_all() -> None:
            done = 0
            while done < len(content):
                done += self._file.write(content[done:])

        self._attempt(write_all)
        return len(content)

    def truncate(self, size: int) -> int:
        self._attempt(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def close(self) -> None:
        self._attempt(self._file.close)

    def check(self) -> None:
        """Raise the first OSError of a write, with the file's path."""
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._error is None:
            try:
                action()
            except OSError as error:
                self._error = error


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[h5py.File, _HDF5Target]]:
    """Yield a new HDF5 file and what it is written to. Raises OSError if the disk is full."""
    target = _HDF5Target(path)
    try:
        with h5py.File(target, "w") as file:
            yield file, target
    except (OSError, RuntimeError, SystemError):  # HDF5's error does not say why
        target.check()
        raise
    finally:
        target.close()
    target.check()


def write_random_source_tree(
    root: Path,
    collection: str,
    features: str,
    video_size: int,
    text_size: int,
    videos: Mapping[str, int],
    *,
    queries: int = 2,
    seed: int = 0,
) -> None:
    """Write a collection of random features under `root`, to measure or to try something at real sizes.

    Args:
        root: Where the collection's directory is created.
        collection: Name of the collection.
        features: Name of the directory under FeatureData.
        video_size: Dv.
        text_size: Dt.
        videos: Number of videos of each split. A video has 5 to 199 frames.
        queries: Number of queries per video, of 3 to 34 tokens.
        seed: Seed of all random numbers.
    """
    random = np.random.default_rng(seed)

    def generate(split: str, count: int) -> Iterator[SourceVideo]:
        for number in range(count):
            video = f"{split}_{number}"
            frames = random.standard_normal((int(random.integers(5, 200)), video_size), dtype=np.float32)
            own = [
                Query(f"{video}#enc#{place}", video, f"something happens in {video}", random_tokens())
                for place in range(queries)
            ]
            yield SourceVideo(video, frames, own)

    def random_tokens() -> np.ndarray:
        return random.standard_normal((int(random.integers(3, 35)), text_size), dtype=np.float32)

    splits = {split: generate(split, count) for split, count in videos.items()}
    write_source_tree(root / collection, collection, features, splits)
