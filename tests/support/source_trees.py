"""Made source trees of any feature sizes, in the layout in which benchmarks are distributed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def write_source(
    root: Path,
    collection: str,
    features: str,
    video_size: int,
    text_size: int,
    videos: dict[str, int],
    *,
    queries: int = 2,
    seed: int = 0,
) -> None:
    """Random features for so many videos a split, with `queries` queries each, under root/collection."""
    random = np.random.default_rng(seed)
    feature_folder, text_folder = root / collection / "FeatureData" / features, root / collection / "TextData"
    feature_folder.mkdir(parents=True)
    text_folder.mkdir(parents=True)
    frames: dict[str, list[str]] = {}
    with (
        h5py.File(feature_folder / "feature.hdf5", "w") as video_file,
        h5py.File(text_folder / f"roberta_{collection}_query_feat.hdf5", "w") as text_file,
    ):
        for split, count in videos.items():
            lines = []
            for number in range(count):
                video, length = f"{split}_{number}", int(random.integers(5, 200))
                video_file[video] = random.standard_normal((length, video_size), dtype=np.float32)
                frames[video] = [f"{video}_{frame}" for frame in range(length)]
                for query in (f"{video}#enc#{place}" for place in range(queries)):
                    text_file[query] = random.standard_normal(
                        (int(random.integers(3, 35)), text_size), dtype=np.float32
                    )
                    lines.append(f"{query} something happens in {video}\n")
            (text_folder / f"{collection}{split}.caption.txt").write_text("".join(lines))
    (feature_folder / "video2frames.txt").write_text(repr(frames))
