"""The settings with which an index encodes a directory of videos: those of its model, or given ones."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.checkpoints.checkpoint import METRICS, model_encoding, read_metrics
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index.record import SOURCE
from dreamprvr_ray.runtime.extraction_settings import ExtractionSettings
from dreamprvr_ray.video.windows import WindowSettings


def extraction_settings(
    videos: Path,
    index: Path,
    model: Path | None,
    *,
    encoder: str | None = None,
    sentence_encoder: str | None = None,
    collection: str | None = None,
    fps: float | None = None,
    window: float | None = None,
    workers: int | None = None,
) -> ExtractionSettings:
    """Return how the videos of an index are extracted, into the index itself.

    Args:
        videos: The directory of videos.
        index: The index's directory.
        model: The model's directory; None for an index of `encoder` alone, which then also encodes sentences, unless
            `sentence_encoder` does.
        encoder: Name of the encoder of frames; None: the one that the model was trained with.
        sentence_encoder: Name of the encoder of sentences, if it differs.
        collection: Name of the collection; None: the name of the directory of videos.
        fps: Frames per second; None: as the model was trained, else 1.
        window: Length of windows in seconds; None: as the model was trained.
        workers: How many processes decode.

    Raises:
        UserError: The encoder is neither given nor recorded, or a setting is invalid.
    """
    encoding = None if model is None else model_encoding(read_metrics(model), f"{model / METRICS}")
    name = encoder or (None if encoding is None else encoding.frames.name)
    if name is None:
        raise UserError(f"{model}: does not know the encoder of its frames; name it with --encoder")
    windows = WindowSettings(window)
    if window is None and encoding is not None:
        windows = WindowSettings(encoding.window, encoding.overlap)
    if fps is None:
        fps = 1.0 if encoding is None else encoding.fps
    return ExtractionSettings(
        videos=videos,
        out=str(index / SOURCE),
        encoder=name,
        # Without a model, the index needs to know its encoder of sentences. A model knows its own.
        sentence_encoder=(sentence_encoder or name) if model is None else None,
        collection=collection or videos.resolve().name,
        fps=fps,
        windows=windows,
        workers=workers,
    )
