"""What the processes of an extraction do: decode files, encode frames, encode sentences.

Ray Data calls them with blocks of rows, in `video_pipeline`. Errors go to the driver as rows, because Ray would wrap
them or try again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dreamprvr_ray.errors import first_line
from dreamprvr_ray.video.decoding import decode
from dreamprvr_ray.video.encoders.protocols import SentenceFeatures
from dreamprvr_ray.video.encoders.registry import open_frame_encoder, open_sentence_encoder
from dreamprvr_ray.video.files import UnreadableVideo, examine

FRAMES_AT_ONCE = 64  # that an encoder is given
SENTENCES_AT_ONCE = 256
BLOCK_BYTES = 16 * 2**20  # of frames that are sent to an encoder together
LARGE_FILE = 64 * 2**20  # bytes of a file whose header is read first, so that progress within it can be shown
STARTED, ENDED = -2, -1  # in place of a frame's number


class Decoder:
    """Turns files into frames, in a separate process."""

    def __init__(self, fps: float) -> None:
        self._fps = fps

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for video, path, size in zip(batch["video"], batch["path"], batch["bytes"], strict=True):
            yield from self._decode(str(video), str(path), int(size))

    def _decode(self, video: str, path: str, size: int) -> Iterator[pa.Table]:
        try:
            if size >= LARGE_FILE and (seconds := examine(path).duration):
                yield _frames(video, [STARTED], [None], {"seconds": seconds})
            with decode(path, self._fps) as frames:
                numbers: list[int] = []
                images: list[np.ndarray] = []
                for number, frame in enumerate(frames):
                    numbers.append(number)
                    images.append(frame.image)
                    if sum(image.nbytes for image in images) >= BLOCK_BYTES or len(images) == FRAMES_AT_ONCE:
                        yield _frames(video, numbers, images)
                        numbers, images = [], []
                if images:
                    yield _frames(video, numbers, images)
                end = {"count": number + 1, "duration": frames.decoded_seconds, "warning": frames.warning}
            yield _frames(video, [ENDED], [None], end)
        except UnreadableVideo as error:
            yield _frames(video, [ENDED], [None], {"failure": error.reason})
        except Exception as error:  # no file may stop the others
            yield _frames(video, [ENDED], [None], {"failure": f"{type(error).__name__}: {first_line(error)}"})


def _frames(
    video: str, numbers: Sequence[int], images: Sequence[np.ndarray | None], note: dict[str, Any] | None = None
) -> pa.Table:
    """Return frames, or a note about a video, as a block with a row each."""
    shapes = [(0, 0) if image is None else image.shape[:2] for image in images]
    return pa.table(
        {
            "video": pa.array([video] * len(numbers), pa.string()),
            "number": pa.array(numbers, pa.int32()),
            "height": pa.array([height for height, _ in shapes], pa.int32()),
            "width": pa.array([width for _, width in shapes], pa.int32()),
            "image": pa.array([None if image is None else image.tobytes() for image in images], pa.large_binary()),
            "note": pa.array([json.dumps(note) if note else None] * len(numbers), pa.string()),
        }
    )


class FrameEncoding:
    """Turns frames into features, in a separate process."""

    def __init__(self, encoder: str) -> None:
        self._encoder = open_frame_encoder(encoder)

    def __call__(self, table: pa.Table) -> pa.Table:
        images = [
            np.frombuffer(image.as_buffer(), np.uint8).reshape(height.as_py(), width.as_py(), 3)
            for image, height, width in zip(table["image"], table["height"], table["width"], strict=True)
            if image.is_valid
        ]
        notes = table["note"].to_pylist()
        features: list[bytes | None] = [None] * len(notes)
        try:
            rows = iter(_checked(self._encoder.encode_frames(images), len(images))) if images else iter(())
            features = [next(rows).tobytes() if image.is_valid else None for image in table["image"]]
        except Exception as error:  # raised by the driver: Ray would wrap it, or try again
            notes = [json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"})] * len(notes)
        return pa.table(
            {
                "video": table["video"],
                "number": table["number"],
                "features": pa.array(features, pa.large_binary()),
                "note": pa.array(notes, pa.string()),
            }
        )


def _checked(features: np.ndarray, count: int) -> np.ndarray:
    """Return what an encoder returned as float32. Raises ValueError if it is not a row per frame, or not finite."""
    rows: np.ndarray = np.ascontiguousarray(features, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != count:
        raise ValueError(f"encode_frames returned shape {rows.shape} for {count} frames")
    if not np.isfinite(rows).all():
        raise ValueError("encode_frames returned values that are not finite")
    return rows


class SentenceEncoding:
    """Turns sentences into features, in a separate process."""

    def __init__(self, encoder: str) -> None:
        self._encoder = open_sentence_encoder(encoder)

    def __call__(self, table: pa.Table) -> pa.Table:
        sentences = table["sentence"].to_pylist()
        note, features = None, []
        try:
            features = self._encoder.encode_sentences(sentences)
            if len(features) != len(sentences):
                raise ValueError(f"encode_sentences returned {len(features)} results for {len(sentences)} sentences")
        except Exception as error:
            note = json.dumps({"error": f"{type(error).__name__}: {first_line(error)}"})
            features = [SentenceFeatures(np.empty((0, 0)), np.empty(0))] * len(sentences)
        return pa.table(
            {
                "sentence": pa.array(sentences, pa.string()),
                "tokens": pa.array([_bytes(each.tokens) for each in features], pa.large_binary()),
                "embedding": pa.array([_bytes(each.sentence) for each in features], pa.large_binary()),
                "note": pa.array([note] * len(sentences), pa.string()),
            }
        )


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()
