"""A small made-up collection with a known answer, in the layout in which real ones are distributed.

    python -m dreamprvr_ray.data.demo --out DIR        # a second; then convert --source DIR --collection demo

Every video shows its scene (one of a few), and in 3 to 5 short runs of frames an event: one of a few kinds that all videos share, each
time in a manner of its own. A query names one event: some of its tokens speak of it, the rest are filler words that any query may have. Scenes
and events are unit vectors of a latent space that fixed random maps, plus noise, turn into frames and tokens. So the right video is the one
with that kind *and* manner in the same frames, many others share the kind, and the average over a video's frames says little: partial
relevance. `demo.json` beside the data holds what three matchers that nobody has trained would reach (`DemoCeilings`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from dreamprvr_ray import command_line
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import write_json, writing
from dreamprvr_ray.storage.location import local_folder

COLLECTION = "demo"
VIDEOS = {"train": 320, "val": 80, "test": 200}
VIDEO_SIZE, TEXT_SIZE, LATENT_SIZE = 64, 48, 16
SCENES, FILLERS = 8, 12
KINDS = (
    "opens a door", "pours some tea", "picks up the phone", "reads a letter", "puts on a coat", "feeds the dog",
    "washes the dishes", "climbs the stairs", "turns on a lamp", "plays the piano", "waters a plant", "closes the window",
)  # fmt: skip
KIND_SHARE = 0.6  # of an event's latent that its kind decides; the rest is its manner (shares of the squared length)
FRAME_NOISE, TOKEN_NOISE = 0.15, 0.1  # standard deviation in each feature; a clean row has length 1
SECONDS_PER_FRAME = 1.5


@dataclass(frozen=True)
class DemoCeilings:
    """SumR on the demo's test split of three matchers without any training.

    `chance` ranks at random. `mean_pooling` knows the true maps and which tokens are fillers, but of a video only its average frame, which it
    matches as well as any linear matcher can (weighted by the inverse covariance of the train videos' average frames). `perfect` knows
    which frames show an event too and takes the best cosine of the query with an event's average. What it misses is lost in the noise.
    """

    chance: float
    mean_pooling: float
    perfect: float


@dataclass(frozen=True, eq=False)
class _Event:
    """One planted event: frames start:stop show it. `tokens` (Lq, Dt) are its query's, `speaking` (Lq,) those about it, or None."""

    text: str
    start: int
    stop: int
    tokens: np.ndarray | None
    speaking: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Video:
    name: str
    frames: np.ndarray  # (n, Dv)
    events: tuple[_Event, ...]


class _World:
    """The fixed maps, scenes, kinds and filler words, and videos drawn from them."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.video_map = self._orthonormal(VIDEO_SIZE)
        self.text_map = self._orthonormal(TEXT_SIZE)
        self._scenes = self._directions(SCENES, LATENT_SIZE)
        self._kinds = self._directions(len(KINDS), LATENT_SIZE)
        self._fillers = self._directions(FILLERS, TEXT_SIZE)

    def video(self, name: str) -> _Video:
        """A video of 20 to 150 frames with 3 to 5 events, of which 2 to 4 have a query."""
        random = self._random
        count = int(random.integers(20, 151))
        kinds = random.choice(len(KINDS), size=int(random.integers(3, 6)), replace=False)
        longest = min(12, max(4, count // (2 * len(kinds))))
        lengths = random.integers(3, longest + 1, size=len(kinds))
        gaps = random.multinomial(count - lengths.sum(), np.full(len(kinds) + 1, 1 / (len(kinds) + 1)))
        asked = set(random.choice(len(kinds), size=min(len(kinds), int(random.integers(2, 5))), replace=False).tolist())
        latents = np.repeat(self._scenes[[random.integers(SCENES)]], count, axis=0)
        events = []
        stop = 0
        for number, (kind, length, gap) in enumerate(
            zip(kinds.tolist(), lengths.tolist(), gaps.tolist(), strict=False)
        ):
            start, stop = stop + gap, stop + gap + length
            manner = self._directions(1, LATENT_SIZE)[0]
            latent = np.sqrt(KIND_SHARE) * self._kinds[kind] + np.sqrt(1 - KIND_SHARE) * manner
            latents[start:stop] = latent / np.linalg.norm(latent)
            tokens, speaking = self._tokens(latents[start]) if number in asked else (None, None)
            events.append(_Event(f"a person {KINDS[kind]}", start, stop, tokens, speaking))
        frames = latents @ self.video_map.T + FRAME_NOISE * random.standard_normal((count, VIDEO_SIZE))
        return _Video(name, frames.astype(np.float32), tuple(events))

    def _tokens(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (Lq, Dt) of a query for the event `latent`, and which of them speak of it (Lq,)."""
        random = self._random
        speaking = random.permutation(np.repeat([True, False], [random.integers(3, 6), random.integers(3, 8)]))
        tokens = self._fillers[random.integers(FILLERS, size=len(speaking))]
        tokens[speaking] = self.text_map @ latent
        tokens += TOKEN_NOISE * random.standard_normal(tokens.shape)
        return tokens.astype(np.float32), speaking

    def _orthonormal(self, size: int) -> np.ndarray:
        """(size, LATENT_SIZE), whose transpose is its inverse."""
        columns: np.ndarray = np.linalg.qr(self._random.standard_normal((size, LATENT_SIZE)))[0]
        return columns

    def _directions(self, count: int, size: int) -> np.ndarray:
        rows = self._random.standard_normal((count, size))
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def write_demo(directory: Path, seed: int = 0, videos: Mapping[str, int] = VIDEOS) -> DemoCeilings:
    """Writes the source tree `directory`/demo with so many videos a split, by `seed` alone, and returns what `demo_ceilings` reads from it.

    Leaves a demo of the same seed and sizes as it is. Raises `UserError` where `directory`/demo is anything else.
    """
    folder = directory / COLLECTION
    settings = {"seed": seed, "videos": dict(videos)}
    if folder.exists():
        described = folder / "demo.json"
        if described.is_file() and json.loads(described.read_text(encoding="utf-8"))["settings"] == settings:
            return demo_ceilings(directory)
        raise UserError(f"{folder}: is there already and is not this demo; choose another --out or remove it")
    world = _World(seed)
    splits = {
        split: [world.video(f"{split}{number:04d}") for number in range(count)] for split, count in videos.items()
    }
    ceilings = _measured_ceilings(world, splits["train"], splits["test"])
    partial = directory / f".{COLLECTION}.partial-{os.getpid()}"
    try:
        with writing(directory):
            _write_tree(partial, splits)
            write_json(partial / "demo.json", {"settings": settings, "test_sum_recall": asdict(ceilings)})
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ceilings


def demo_ceilings(directory: Path) -> DemoCeilings:
    """What `write_demo` recorded in the source tree `directory`/demo. Raises `UserError` where there is none."""
    path = directory / COLLECTION / "demo.json"
    try:
        return DemoCeilings(**json.loads(path.read_text(encoding="utf-8"))["test_sum_recall"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: there is no demo") from None


def _write_tree(folder: Path, splits: Mapping[str, list[_Video]]) -> None:
    features, texts = folder / "FeatureData" / "planted", folder / "TextData"
    features.mkdir(parents=True)
    texts.mkdir(parents=True)
    moments = []
    with (
        h5py.File(features / "feature.hdf5", "w") as frames,
        h5py.File(texts / f"{COLLECTION}_query_feat.hdf5", "w") as tokens,
    ):
        for split, videos in splits.items():
            captions = []
            for video in videos:
                frames[video.name] = video.frames
                for number, event in enumerate(event for event in video.events if event.tokens is not None):
                    query = f"{video.name}#enc#{number}"
                    tokens[query] = event.tokens
                    captions.append(f"{query} {event.text}\n")
                    times = {"start": event.start, "end": event.stop, "duration": len(video.frames)}
                    moments.append(
                        {"query": query, "video": video.name}
                        | {name: at * SECONDS_PER_FRAME for name, at in times.items()}
                    )
            (texts / f"{COLLECTION}{split}.caption.txt").write_text("".join(captions), encoding="utf-8")
    (folder / "moments.jsonl").write_text("".join(json.dumps(moment) + "\n" for moment in moments), encoding="utf-8")


def _measured_ceilings(world: _World, train: list[_Video], test: list[_Video]) -> DemoCeilings:
    asked = [(index, event) for index, video in enumerate(test) for event in video.events if event.tokens is not None]
    owner = np.array([index for index, _ in asked])
    # Latents by the true maps: (Q, latent) of the queries, (V, latent) of the average frames, one of each event's average frame.
    queries = (
        np.stack([event.tokens[event.speaking].mean(axis=0) for _, event in asked if event.tokens is not None])
        @ world.text_map
    )
    averages = np.stack([video.frames.mean(axis=0) for video in test]) @ world.video_map
    train_averages = np.stack([video.frames.mean(axis=0) for video in train]) @ world.video_map
    weights = np.linalg.pinv(np.cov(train_averages, rowvar=False))
    pooled_scores = queries @ weights @ (averages - train_averages.mean(axis=0)).T
    event_scores = np.empty((len(asked), len(test)))
    for column, video in enumerate(test):
        shown = (
            np.stack([video.frames[event.start : event.stop].mean(axis=0) for event in video.events]) @ world.video_map
        )
        event_scores[:, column] = (queries @ (shown / np.linalg.norm(shown, axis=1, keepdims=True)).T).max(axis=1)
    chance = sum(100 * min(1, depth / len(test)) for depth in (1, 5, 10, 100))
    return DemoCeilings(round(chance, 1), _sum_recall(pooled_scores, owner), _sum_recall(event_scores, owner))


def _sum_recall(scores: np.ndarray, owner: np.ndarray) -> float:
    """R@1 + R@5 + R@10 + R@100 in percent of scores (Q, V); ties lose."""
    own = scores[np.arange(len(owner)), owner]
    ranks = (scores >= own[:, None]).sum(axis=1)
    return round(sum(100 * float((ranks <= depth).mean()) for depth in (1, 5, 10, 100)), 1)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = command_line.Parser("data.demo", "Write a small made-up collection with a known answer.")
    parser.add_argument(
        "--out", type=local_folder, required=True, help="the root in which the collection's folder 'demo' is made"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    ceilings = write_demo(options.out, options.seed)
    known = f"by chance {ceilings.chance}, by average frames {ceilings.mean_pooling}, at best {ceilings.perfect}"
    print(f"{options.out / COLLECTION}: SumR on test {known}", file=sys.stderr)
    if options.json:
        command_line.print_json(
            {"source": str(options.out), "collection": COLLECTION, "test_sum_recall": asdict(ceilings)}
        )


if __name__ == "__main__":
    command_line.run(main)
