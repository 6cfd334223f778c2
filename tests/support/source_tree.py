"""A small source tree `c` of the shape that the benchmarks distribute, for tests to change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

COUNTS = {"train": 6, "val": 3, "test": 3}
VIDEO_SIZE, TEXT_SIZE = 16, 12


@dataclass
class SourceTree:
    """What `write` writes: a correct collection `c`, which a case changes before or after."""

    root: Path
    videos: dict[str, np.ndarray] = field(default_factory=dict)
    queries: dict[str, np.ndarray] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        for split, count in COUNTS.items():
            self.lines[split] = []
            for number in range(count):
                video = f"{split}{number}"
                self.videos[video] = random.standard_normal((20 + number, VIDEO_SIZE)).astype(np.float32)
                for place in range(2):
                    query = f"{video}#enc#{place}"
                    self.queries[query] = random.standard_normal((5, TEXT_SIZE)).astype(np.float32)
                    self.lines[split].append(f"{query} a person does thing {place}")

    @property
    def features(self) -> Path:
        return self.root / "c" / "FeatureData" / "f"

    @property
    def text(self) -> Path:
        return self.root / "c" / "TextData"

    @property
    def captions(self) -> Path:
        return self.text / "ctrain.caption.txt"

    def write(self, end: str = "\n") -> None:
        self.features.mkdir(parents=True)
        self.text.mkdir()
        for path, arrays in (
            (self.features / "feature.hdf5", self.videos),
            (self.text / "c_query_feat.hdf5", self.queries),
        ):
            with h5py.File(path, "w") as file:
                for id, rows in arrays.items():
                    file[id] = rows
        for split, lines in self.lines.items():
            path = self.text / f"c{split}.caption.txt"
            path.write_bytes("".join(line + end for line in lines).encode())

    def write_matrix(self, dtype: str = "<f4", separator: str = "\n", frame: str = "{video}_{number}") -> None:
        """Replace feature.hdf5 by feature.bin and its text files."""
        (self.features / "feature.hdf5").unlink()
        matrix = np.concatenate(list(self.videos.values()))
        matrix.astype(dtype).tofile(self.features / "feature.bin")
        names = {
            video: [frame.format(video=video, number=number) for number in range(len(rows))]
            for video, rows in self.videos.items()
        }
        ids = separator.join(name for own in names.values() for name in own)
        (self.features / "id.txt").write_text(ids, encoding="utf-8", newline="")
        (self.features / "shape.txt").write_text(f"{matrix.shape[0]} {matrix.shape[1]}")
        (self.features / "video2frames.txt").write_text(repr(names), encoding="utf-8")
