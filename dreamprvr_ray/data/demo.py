"""A small synthetic collection with known answers, in the layout in which real ones are distributed.

    python -m dreamprvr_ray.data.demo --out DIR        # takes a second; then convert --source DIR --collection demo

Every video shows one of a few scenes and, in 3 to 5 short runs of frames, events. An event is of one of a few kinds
that all videos share and has a manner that is unique to it. A query describes one event: some of its tokens are about
the event, the rest are filler words that any query may have. Scenes and events are unit vectors in a latent space;
fixed random maps and noise turn them into frames and tokens. The right video is thus the one that shows that kind *and*
manner in the same frames; many other videos share the kind, and the average over a video's frames says little: partial
relevance. `demo.json`, next to the data, records what three matchers without training reach (`DemoCeilings`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dreamprvr_ray import command_line
from dreamprvr_ray.data.captions import Moment, Query
from dreamprvr_ray.data.source_writer import SourceVideo, write_source_tree
from dreamprvr_ray.errors import Failure, NotWritableError, UserError, first_line
from dreamprvr_ray.storage.files import read_json, reason, remove_empty, write_json, writing
from dreamprvr_ray.storage.location import local_folder

COLLECTION = "demo"
VIDEOS = {"train": 320, "val": 80, "test": 200}
VIDEO_SIZE, TEXT_SIZE, LATENT_SIZE = 64, 48, 16
SCENES, FILLERS = 8, 12
KINDS = (
    "opens a door", "pours some tea", "picks up the phone", "reads a letter", "puts on a coat", "feeds the dog",
    "washes the dishes", "climbs the stairs", "turns on a lamp", "plays the piano", "waters a plant",
    "closes the window",
)  # fmt: skip
KIND_SHARE = 0.6  # share of an event's squared latent length that is due to its kind; the rest is due to its manner
FRAME_NOISE, TOKEN_NOISE = 0.15, 0.1  # standard deviation of each value; without noise a row has length 1
SECONDS_PER_FRAME = 1.5


@dataclass(frozen=True)
class DemoCeilings:
    """SumR (0 to 400) of three matchers without training on the demo's test split.

    Attributes:
        chance: Random ranking.
        mean_pooling: A matcher that knows the true maps and which tokens are fillers, but only the average frame of a
            video. It matches as well as a linear matcher can: weighted by the inverse covariance of the train videos'
            average frames.
        perfect: A matcher that also knows which frames show an event. It scores a video by the highest cosine between
            the query and the average of an event's frames. What it misses is lost in the noise.
    """

    chance: float
    mean_pooling: float
    perfect: float


@dataclass(frozen=True, eq=False)
class _Event:
    """An event in a video. The last two are None if no query describes it."""

    text: str
    start: int  # first frame that shows it
    stop: int  # frame after the last one
    tokens: np.ndarray | None  # (Lq, Dt), of the query
    relevant: np.ndarray | None  # (Lq,) bool: the tokens that are about the event


@dataclass(frozen=True, eq=False)
class _Video:
    name: str
    frames: np.ndarray  # (n, Dv)
    events: tuple[_Event, ...]


class _World:
    """The fixed maps, scenes, kinds and filler words, and a generator of videos from them."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.video_map = self._orthonormal(VIDEO_SIZE)
        self.text_map = self._orthonormal(TEXT_SIZE)
        self._scenes = self._directions(SCENES, LATENT_SIZE)
        self._kinds = self._directions(len(KINDS), LATENT_SIZE)
        self._fillers = self._directions(FILLERS, TEXT_SIZE)

    def video(self, name: str) -> _Video:
        """Generate a video of 20 to 150 frames with 3 to 5 events, 2 to 4 of which have a query."""
        random = self._random
        count = int(random.integers(20, 151))
        kinds = random.choice(len(KINDS), size=int(random.integers(3, 6)), replace=False)
        longest = min(12, max(4, count // (2 * len(kinds))))
        lengths = random.integers(3, longest + 1, size=len(kinds))
        gaps = random.multinomial(count - lengths.sum(), np.full(len(kinds) + 1, 1 / (len(kinds) + 1)))
        described = set(
            random.choice(len(kinds), size=min(len(kinds), int(random.integers(2, 5))), replace=False).tolist()
        )
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
            tokens, relevant = self._tokens(latents[start]) if number in described else (None, None)
            events.append(_Event(f"a person {KINDS[kind]}", start, stop, tokens, relevant))
        frames = latents @ self.video_map.T + FRAME_NOISE * random.standard_normal((count, VIDEO_SIZE))
        return _Video(name, frames.astype(np.float32), tuple(events))

    def _tokens(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Generate the tokens (Lq, Dt) of a query for the event `latent`, and which of them are about it (Lq,)."""
        random = self._random
        relevant = random.permutation(np.repeat([True, False], [random.integers(3, 6), random.integers(3, 8)]))
        tokens = self._fillers[random.integers(FILLERS, size=len(relevant))]
        tokens[relevant] = self.text_map @ latent
        tokens += TOKEN_NOISE * random.standard_normal(tokens.shape)
        return tokens.astype(np.float32), relevant

    def _orthonormal(self, size: int) -> np.ndarray:
        """Generate a matrix (size, LATENT_SIZE) with orthonormal columns."""
        columns: np.ndarray = np.linalg.qr(self._random.standard_normal((size, LATENT_SIZE)))[0]
        return columns

    def _directions(self, count: int, size: int) -> np.ndarray:
        """Generate unit vectors (count, size)."""
        rows = self._random.standard_normal((count, size))
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def write_demo(directory: Path, seed: int = 0, videos: Mapping[str, int] = VIDEOS) -> DemoCeilings:
    """Write the source tree `directory`/demo and return what `demo_ceilings` reads from it.

    Does nothing if it is there already with the same settings.

    Args:
        directory: Where the collection's directory is created.
        seed: Seed of all random numbers, on which the files depend alone.
        videos: Number of videos of each split.

    Raises:
        UserError: `directory`/demo exists and is anything else.
    """
    folder = directory / COLLECTION
    settings = {"seed": seed, "videos": dict(videos)}
    if os.path.lexists(folder):
        with suppress(UserError, KeyError):
            if read_json(folder / "demo.json")["settings"] == settings:
                return demo_ceilings(directory)
        raise UserError(f"{folder}: already exists and is not this demo; choose another --out or remove it")
    world = _World(seed)
    splits = {
        split: [world.video(f"{split}{number:04d}") for number in range(count)] for split, count in videos.items()
    }
    ceilings = _measure_ceilings(world, splits["train"], splits["test"])
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    partial = None
    try:
        with writing(directory):
            if not directory.exists():
                directory.mkdir(parents=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{COLLECTION}-", dir=directory))
            sources = {split: map(_source_video, own) for split, own in splits.items()}
            write_source_tree(partial / COLLECTION, COLLECTION, "planted", sources)
            write_json(partial / COLLECTION / "demo.json", {"settings": settings, "test_sum_recall": asdict(ceilings)})
            os.rename(partial / COLLECTION, folder)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        remove_empty(created)
    return ceilings


def demo_ceilings(directory: Path) -> DemoCeilings:
    """Return what `write_demo` recorded in the source tree `directory`/demo. Raises `UserError` if there is none."""
    path = directory / COLLECTION / "demo.json"
    if not path.exists():
        raise UserError(f"{path}: no such file: the directory does not contain a demo")
    try:
        return DemoCeilings(**read_json(path)["test_sum_recall"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {first_line(error)}") from None


def _source_video(video: _Video) -> SourceVideo:
    described = [(event, event.tokens) for event in video.events if event.tokens is not None]
    duration = len(video.frames) * SECONDS_PER_FRAME
    queries = [
        Query(
            id=f"{video.name}#enc#{number}",
            video=video.name,
            sentence=event.text,
            tokens=tokens,
            moment=Moment(event.start * SECONDS_PER_FRAME, event.stop * SECONDS_PER_FRAME, duration),
        )
        for number, (event, tokens) in enumerate(described)
    ]
    return SourceVideo(video.name, video.frames, queries)


def _measure_ceilings(world: _World, train: list[_Video], test: list[_Video]) -> DemoCeilings:
    described = [
        (index, event) for index, video in enumerate(test) for event in video.events if event.tokens is not None
    ]
    owner = np.array([index for index, _ in described])
    # Latents by the true maps: (Q, LATENT_SIZE) of the queries, (V, LATENT_SIZE) of the videos' average frames.
    queries = (
        np.stack([event.tokens[event.relevant].mean(axis=0) for _, event in described if event.tokens is not None])
        @ world.text_map
    )
    averages = np.stack([video.frames.mean(axis=0) for video in test]) @ world.video_map
    train_averages = np.stack([video.frames.mean(axis=0) for video in train]) @ world.video_map
    weights = np.linalg.pinv(np.cov(train_averages, rowvar=False))
    pooled_scores = queries @ weights @ (averages - train_averages.mean(axis=0)).T
    event_scores = np.empty((len(described), len(test)))
    for column, video in enumerate(test):
        means = np.stack([video.frames[event.start : event.stop].mean(axis=0) for event in video.events])
        events = means @ world.video_map
        event_scores[:, column] = (queries @ (events / np.linalg.norm(events, axis=1, keepdims=True)).T).max(axis=1)
    chance = sum(100 * min(1, depth / len(test)) for depth in (1, 5, 10, 100))
    return DemoCeilings(round(chance, 1), _sum_recall(pooled_scores, owner), _sum_recall(event_scores, owner))


def _sum_recall(scores: np.ndarray, owner: np.ndarray) -> float:
    """Return R@1 + R@5 + R@10 + R@100, in percent, of scores (Q, V). Ties count against the query's own video."""
    own = scores[np.arange(len(owner)), owner]
    ranks = (scores >= own[:, None]).sum(axis=1)
    return round(sum(100 * float((ranks <= depth).mean()) for depth in (1, 5, 10, 100)), 1)


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = command_line.Parser("data.demo", "Write a small synthetic collection with known answers.")
    parser.add_argument(
        "--out",
        type=local_folder,
        required=True,
        help="directory in which the collection's directory 'demo' is created",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data (default: 0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    try:
        ceilings = write_demo(options.out, options.seed)
    except NotWritableError:
        raise
    except OSError as error:
        raise Failure(f"{options.out}: {reason(error)}; nothing was written") from None
    references = f"chance {ceilings.chance}, mean pooling {ceilings.mean_pooling}, perfect {ceilings.perfect}"
    print(f"{options.out / COLLECTION}: SumR on test without training: {references}", file=sys.stderr)
    if options.json:
        command_line.print_json(
            {"source": str(options.out), "collection": COLLECTION, "test_sum_recall": asdict(ceilings)}
        )


if __name__ == "__main__":
    command_line.run(main)
