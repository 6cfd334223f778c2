"""The settings of an extraction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dreamprvr_ray.data.encoding import EncodingRecord
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.decoding import MAX_RATE
from dreamprvr_ray.video.encoders.registry import LIBRARIES, check_name, encodes_both
from dreamprvr_ray.video.extracted_source import SplitSettings
from dreamprvr_ray.video.windows import WindowSettings


@dataclass(frozen=True)
class ExtractionSettings:
    """What to extract.

    Attributes:
        videos: The directory of videos.
        out: Path or URI of the source tree to write.
        encoder: Name of the encoder of frames.
        captions: The table of captions; None for a collection that can be searched only.
        columns: What columns of the table hold, as `read_caption_table` takes it.
        skip_missing: Whether captions of videos that do not exist are left out instead of being mistakes.
        sentence_encoder: Name of the encoder of sentences; None: `encoder`, which must encode both.
        collection: Name of the collection; None: the last part of `out`.
        fps: Frames per second.
        windows: How long videos are cut.
        splits: How captioned videos are divided.
        workers: How many processes decode, and without GPUs how many encode; None: one for each CPU.
    """

    videos: Path
    out: str
    encoder: str
    captions: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    skip_missing: bool = False
    sentence_encoder: str | None = None
    collection: str | None = None
    fps: float = 1.0
    windows: WindowSettings = field(default_factory=WindowSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fps <= MAX_RATE:
            raise UserError(f"--fps {self.fps:g}: must be above 0 and at most {MAX_RATE:g}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be 1 or more")
        check_name(self.encoder, "frames")
        if self.sentence_encoder is not None:
            check_name(self.sentence_encoder, "sentences")
        elif self.captions is not None and not self._may_encode_both:
            library = self.encoder.partition(":")[0]
            raise UserError(f"--sentence-encoder: required, since {library} encodes frames only")

    @property
    def _may_encode_both(self) -> bool:
        return encodes_both(self.encoder) or self.encoder.partition(":")[0] not in LIBRARIES

    @property
    def sentences(self) -> str | None:
        """Name of the encoder of sentences; None if there is no need of one."""
        if self.sentence_encoder is not None:
            return self.sentence_encoder
        return self.encoder if self._may_encode_both else None


def check_settings(settings: ExtractionSettings, known: EncodingRecord, source: Storage) -> None:
    """Raise `UserError` if a source was extracted with other encoders or another rate."""
    changes = []
    if known.frames.name != settings.encoder:
        changes.append(f"--encoder {known.frames.name} before, {settings.encoder} now")
    if known.sentences is not None and settings.sentences not in (None, known.sentences.name):
        changes.append(f"--sentence-encoder {known.sentences.name} before, {settings.sentences} now")
    if known.fps != settings.fps:
        changes.append(f"--fps {known.fps:g} before, {settings.fps:g} now")
    if changes:
        raise UserError(f"{source}: was extracted with other settings ({'; '.join(changes)}); choose another --out")
