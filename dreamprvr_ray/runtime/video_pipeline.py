"""Decoding and encoding videos by Ray Data: pools of processes that decode, and pools that encode, on all nodes.

Frames stream from one to the other in small blocks, so memory does not depend on the length of a video. Features come
back to the driver, which therefore is the only one that writes; all nodes must see the videos under the same path.

A process or node that is lost is replaced, and what it had not delivered is computed again. A file at which the decoder
crashes repeatedly counts as failed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from dreamprvr_ray.data.encoding import EncoderRecord
from dreamprvr_ray.errors import Failure, UserError, one_line
from dreamprvr_ray.runtime.ray_data import data_context, one_line_errors
from dreamprvr_ray.runtime.resources import current_cluster
from dreamprvr_ray.runtime.video_processes import (
    BLOCK_BYTES,
    ENDED,
    FRAMES_AT_ONCE,
    SENTENCES_AT_ONCE,
    STARTED,
    Decoder,
    FrameEncoding,
    SentenceEncoding,
)
from dreamprvr_ray.video.encoders.protocols import FrameEncoder, SentenceEncoder, SentenceFeatures
from dreamprvr_ray.video.encoders.registry import open_frame_encoder, open_sentence_encoder

EXTRACTION = "the extraction"
MEMORY_PER_PROCESS = 8 * BLOCK_BYTES  # of frames under way
TRIES = 3  # after a crash
PASSES = 3  # over what a lost node or a crash has left: Ray may use up its tries before it notices that a node is gone
MOST_BLOCKS = 4000  # into which the list of files is divided


@dataclass(frozen=True)
class VideoTask:
    """A video to encode: its id, the path of its file on all nodes, and its size."""

    id: str
    path: str
    bytes: int


@dataclass(frozen=True)
class StartedVideo:
    """A large file that is being decoded, and the seconds that its header states."""

    id: str
    seconds: float


@dataclass(frozen=True)
class EncodedFrames:
    """How many frames of a video have just been encoded."""

    id: str
    count: int


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """A finished video.

    Attributes:
        id: Its id.
        features: (n, D) float32, of the frames at 0, 1 / fps, 2 / fps ... seconds.
        duration: Seconds up to which it could be decoded.
        warning: Why frames are missing, in a line; None if none are.
    """

    id: str
    features: np.ndarray
    duration: float
    warning: str | None


@dataclass(frozen=True)
class FailedVideo:
    """A file that has no frames to encode, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Pools:
    """How many processes decode and encode, and what each occupies."""

    decoders: int
    encoders: int
    decoder_cpus: float
    encoder_cpus: float
    encoder_gpus: float

    @classmethod
    def plan(cls, workers: int | None) -> Pools:
        """Divide the cluster: an encoder per GPU, and decoders on all CPUs. Without GPUs, both share the CPUs.

        `workers` limits the processes that decode, and without GPUs those that encode. Raises `UserError` if the
        cluster has no CPU.
        """
        cluster = current_cluster()
        gpus, cpus = int(cluster.gpus), int(cluster.cpus)
        if cpus < 1:
            raise UserError("Ray has no CPU: start a node with at least one")
        workers = workers or cpus
        if gpus:
            return cls(workers, gpus, 1.0 if workers <= cpus else cpus / workers, 0.0, 1.0)
        share = min(0.5, cpus / (2 * workers))
        return cls(workers, workers, share, share, 0.0)


def describe_encoders(
    pools: Pools, frames: str, sentences: str | None, needs_sentences: bool
) -> tuple[EncoderRecord, EncoderRecord | None]:
    """Load encoders where they will run, and return their records.

    Raises `UserError` if one cannot be loaded. An encoder of frames that cannot encode sentences as well is a mistake
    only if that is needed.
    """

    def describe() -> tuple[EncoderRecord, EncoderRecord | None]:
        encoder: FrameEncoder | SentenceEncoder = open_frame_encoder(frames)
        first = _record(encoder)
        if sentences is None:
            return first, None
        if sentences == frames and (isinstance(encoder, SentenceEncoder) or not needs_sentences):
            return first, _record(encoder) if isinstance(encoder, SentenceEncoder) else None
        return first, _record(open_sentence_encoder(sentences))

    remote = ray.remote(num_cpus=pools.encoder_cpus, num_gpus=pools.encoder_gpus)(describe)
    with one_line_errors(EXTRACTION):
        records: tuple[EncoderRecord, EncoderRecord | None] = ray.get(remote.remote())
    return records


def _record(encoder: FrameEncoder | SentenceEncoder) -> EncoderRecord:
    return EncoderRecord(encoder.name, int(encoder.size), str(encoder.precision), dict(encoder.version))


def encode_videos(
    tasks: Sequence[VideoTask], encoder: str, fps: float, pools: Pools
) -> Iterator[StartedVideo | EncodedFrames | EncodedVideo | FailedVideo]:
    """Decode and encode videos, and yield what happens: each task ends as an `EncodedVideo` or a `FailedVideo`.

    Raises:
        Failure: The encoder failed.
    """
    missing = list(tasks)
    for _ in range(PASSES):
        left = yield from _encode_once(missing, encoder, fps, pools)
        missing = [task for task in missing if task.id in left]
        if not missing:
            return
    for task in missing:
        tries = PASSES * (TRIES + 1)
        yield FailedVideo(task.id, f"its processes ended {tries} times without a reason, perhaps for lack of memory")


def _encode_once(
    tasks: Sequence[VideoTask], encoder: str, fps: float, pools: Pools
) -> Generator[StartedVideo | EncodedFrames | EncodedVideo | FailedVideo, None, Collection[str]]:
    """Decode and encode videos, and return the ids of those of which something is missing. Raises `Failure`."""
    # The longest first, so that no single one is left at the end.
    items = [
        {"video": task.id, "path": task.path, "bytes": task.bytes}
        for task in sorted(tasks, key=lambda task: -task.bytes)
    ]
    with _context(pools), one_line_errors(EXTRACTION):
        frames = (
            ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
            .map_batches(
                Decoder,
                batch_size=1,
                fn_constructor_args=(fps,),
                compute=ActorPoolStrategy(size=min(pools.decoders, len(items)), max_tasks_in_flight_per_actor=2),
                num_cpus=pools.decoder_cpus,
                max_restarts=-1,
                max_task_retries=TRIES,
            )
            .map_batches(
                FrameEncoding,
                batch_size=FRAMES_AT_ONCE,
                batch_format="pyarrow",
                fn_constructor_args=(encoder,),
                compute=ActorPoolStrategy(size=pools.encoders, max_tasks_in_flight_per_actor=2),
                num_cpus=pools.encoder_cpus,
                num_gpus=pools.encoder_gpus,
                max_restarts=-1,
                max_task_retries=TRIES,
            )
        )
        return (yield from _collect(_tables(frames), [task.id for task in tasks]))


def encode_sentences(
    sentences: Sequence[str], encoder: str, pools: Pools
) -> Iterator[list[tuple[str, SentenceFeatures]]]:
    """Encode sentences, and yield them in batches, in any order. Raises `Failure` if the encoder failed."""
    with _context(pools), one_line_errors(EXTRACTION):
        encoders = min(pools.encoders, -(-len(sentences) // SENTENCES_AT_ONCE))
        encoded = ray.data.from_items(
            [{"sentence": sentence} for sentence in sentences],
            override_num_blocks=min(MOST_BLOCKS, -(-len(sentences) // SENTENCES_AT_ONCE)),
        ).map_batches(
            SentenceEncoding,
            batch_size=SENTENCES_AT_ONCE,
            batch_format="pyarrow",
            fn_constructor_args=(encoder,),
            compute=ActorPoolStrategy(size=encoders, max_tasks_in_flight_per_actor=2),
            num_cpus=pools.encoder_cpus,
            num_gpus=pools.encoder_gpus,
            max_restarts=-1,
            max_task_retries=TRIES,
        )
        for table in _tables(encoded):
            yield [_sentence(row) for row in table.to_pylist()]


def _context(pools: Pools) -> AbstractContextManager[None]:
    # Of a file at which the decoder crashes, what is missing is noticed.
    memory = MEMORY_PER_PROCESS * (pools.decoders + pools.encoders)
    return data_context(memory, BLOCK_BYTES, skip_errors=True)


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return iter(batches)


def _sentence(row: dict[str, Any]) -> tuple[str, SentenceFeatures]:
    _raise_error(row["note"])
    embedding = np.frombuffer(row["embedding"], np.float32)
    tokens = np.frombuffer(row["tokens"], np.float32).reshape(-1, len(embedding))
    return row["sentence"], SentenceFeatures(tokens, embedding)


def _raise_error(note: str | None) -> None:
    if note and (error := json.loads(note).get("error")):
        raise Failure(f"the encoder failed: {one_line(error)}")


class _Unfinished:
    """What has arrived of a video, in any order."""

    def __init__(self) -> None:
        self.features: dict[int, bytes] = {}
        self.end: dict[str, Any] | None = None

    def finished(self, id: str) -> EncodedVideo | FailedVideo | None:
        end = self.end
        if end is None or ("failure" not in end and len(self.features) < end["count"]):
            return None
        if "failure" in end:
            return FailedVideo(id, end["failure"])
        rows = b"".join(self.features[number] for number in range(end["count"]))
        features = np.frombuffer(rows, np.float32).reshape(end["count"], -1)
        return EncodedVideo(id, features, end["duration"], end["warning"])


def _collect(
    tables: Iterator[pa.Table], ids: Sequence[str]
) -> Generator[StartedVideo | EncodedFrames | EncodedVideo | FailedVideo, None, Collection[str]]:
    """Put the features of each video together, and return the ids of those that did not end."""
    waiting = dict.fromkeys(ids)
    unfinished: dict[str, _Unfinished] = {}
    for table in tables:
        counts: dict[str, int] = {}
        for row in table.to_pylist():
            id, number, note = row["video"], row["number"], row["note"]
            _raise_error(note)
            if id not in waiting:  # computed again after a loss
                continue
            if number == STARTED:
                yield StartedVideo(id, json.loads(note)["seconds"])
                continue
            state = unfinished.setdefault(id, _Unfinished())
            if number == ENDED:
                state.end = json.loads(note)
            else:
                state.features[number] = row["features"]
                counts[id] = counts.get(id, 0) + 1
            if (result := state.finished(id)) is not None:
                del waiting[id], unfinished[id]
                yield result
        yield from (EncodedFrames(id, count) for id, count in counts.items() if id in waiting)
    return waiting
