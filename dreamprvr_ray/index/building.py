"""Making and updating an index: only new and changed videos are encoded, and those that are gone are removed.

`index.json` is replaced after every part, so that whatever is interrupted leaves an index that can be searched, and
running the same command again continues.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dreamprvr_ray.checkpoints.checkpoint import (
    TrainedModel,
    add_moments,
    export_checkpoint,
    load_model,
    model_encoding,
    read_moments,
)
from dreamprvr_ray.checkpoints.layout import METRICS, MOMENTS, WEIGHTS
from dreamprvr_ray.data.encoding import EncodingRecord
from dreamprvr_ray.data.manifest import not_one_encoder
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import UserError, first_few
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.calibration import CALIBRATION
from dreamprvr_ray.index.coarse import COARSE, require_faiss
from dreamprvr_ray.index.collections import Collection
from dreamprvr_ray.index.compression import Compressor
from dreamprvr_ray.index.encoding import BLOCK, encode_videos
from dreamprvr_ray.index.parts import Part, PartContent, is_part, remove_part, write_part
from dreamprvr_ray.index.record import MODEL, PARTS, RECORD, SCHEMA_VERSION, SOURCE, IndexRecord, PartRecord
from dreamprvr_ray.index.scoring import score_weights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage.files import write_bytes, writing
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.storage.locks import is_lock
from dreamprvr_ray.video.extraction_store import EXTRACTION

PART_ROWS = 512  # videos of a part
COMPACT_PART_ROWS = 4096  # of a compact index
SAMPLE = 1024  # videos to which compression is fitted

# Encodes blocks of ids with a model, and yields the content of each in their order.
EncodeBlocks = Callable[[DreamPRVR | None, Sequence[Sequence[str]]], Iterator[PartContent]]


@dataclass(frozen=True)
class Progress:
    """How far the encoding is.

    Attributes:
        done: Videos and windows that are encoded.
        todo: Those to be encoded in all.
        elapsed: Seconds since the first was begun.
    """

    done: int
    todo: int
    elapsed: float

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take; None before anything is encoded."""
        return None if not self.done else self.elapsed / self.done * (self.todo - self.done)


@dataclass(frozen=True)
class Update:
    """What an update did, in videos or windows of videos.

    Attributes:
        record: The index as it is now.
        added: Encoded for the first time.
        changed: Encoded again, since their features differ.
        removed: No longer in the collection.
        kept: Unchanged.
    """

    record: IndexRecord
    added: int
    changed: int
    removed: int
    kept: int


def update_index(
    directory: Path,
    collection: Collection,
    model: Path | None,
    *,
    sentence_encoder: str | None = None,
    videos_directory: Path | None = None,
    compact: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
    encode: EncodeBlocks | None = None,
) -> Update:
    """Make an index of a collection, or update the one in `directory`.

    Args:
        directory: A new or empty directory, or an index.
        collection: The videos.
        model: Directory of a checkpoint or an exported model; None for an index of the collection's encoder alone.
        sentence_encoder: Name of the encoder of sentences, if the collection does not know it.
        videos_directory: The directory that the videos' files are relative to.
        compact: Whether a new index takes at most 16 KB a video, for large collections.
        report: Called when videos have been encoded.
        encode: What encodes the videos in place of this process (`runtime.index_encoding`).

    Raises:
        UserError: `directory` holds something else, or an index of another model or encoder; or the model does not fit
            the collection.
    """
    with Storage.of(directory).lock():
        record = _open_or_begin(directory, collection, model, sentence_encoder, videos_directory, compact)
        trained = None if record.model is None else _load(directory, model)
        _remove_leftovers(directory, record)
        return _Update(directory, record, collection, trained, report, encode).run()


def check_directory(directory: Path) -> None:
    """Raise `UserError` unless a directory is an index, or can become one."""
    if not directory.exists() or (directory / RECORD).is_file():
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: is a file; choose another --out")
    own = SOURCE if (directory / SOURCE / EXTRACTION).is_dir() else None
    if others := [path.name for path in directory.iterdir() if path.name != own and not is_lock(path.name)]:
        raise UserError(f"{directory}: holds other files, such as {min(others)}; choose another --out")


def _open_or_begin(
    directory: Path,
    collection: Collection,
    model: Path | None,
    sentence_encoder: str | None,
    videos_directory: Path | None,
    compact: bool,
) -> IndexRecord:
    """Return the record of the index in a directory, or write one of an empty index."""
    trained = None if model is None else load_model(model)
    encoding = check_fits(collection, trained, model)
    new = IndexRecord(
        schema_version=SCHEMA_VERSION,
        collection=collection.name,
        model=None if model is None else weights_digest(model),
        dtype=collection.dtype,
        video_size=collection.video_size,
        text_size=_text_size(collection, trained),
        encoding=encoding,
        sentence_encoder=sentence_encoder,
        videos_directory=None if videos_directory is None else str(videos_directory.resolve()),
        compact=compact,
    )
    if compact:
        require_faiss()
    if not (directory / RECORD).exists():
        check_directory(directory)
        new.write(directory)
        return new
    old = IndexRecord.read(directory)
    if old.model != new.model:
        raise UserError(f"{directory}: is an index of another model; choose another --out")
    if compact and not old.compact:
        raise UserError(f"{directory}: is not a compact index; choose another --out")
    differing = [name for name in ("collection", "dtype", "video_size", "text_size")
                 if getattr(old, name) != getattr(new, name)]  # fmt: skip
    if differing:
        name = differing[0]
        raise UserError(
            f"{directory}: is an index of other features ({name} {getattr(old, name)} before, {getattr(new, name)}"
            " now); choose another --out"
        )
    if old.encoding is not None and new.encoding is not None and old.encoding.frames != new.encoding.frames:
        changes = old.encoding.frames.differences(new.encoding.frames)
        raise UserError(
            f"{directory}: its videos were encoded by another encoder ({'; '.join(first_few(changes))}); choose"
            " another --out"
        )
    record = replace(
        old,
        encoding=new.encoding or old.encoding,
        sentence_encoder=sentence_encoder or old.sentence_encoder,
        videos_directory=new.videos_directory or old.videos_directory,
    )
    if record != old:
        record.write(directory)
    return record


def check_fits(collection: Collection, trained: TrainedModel | None, path: Path | None) -> EncodingRecord | None:
    """Return how a collection's videos, and the model's sentences, were encoded; None if that is not known.

    Raises `UserError` if a model, or an encoder alone, cannot search the collection.
    """
    encoding = collection.encoding
    if trained is None:
        _check_one_encoder(collection)
        return encoding
    data = trained.experiment.data
    for what, takes, has in (
        ("frames", data.video_size, collection.video_size),
        ("sentences", data.text_size, collection.text_size),
    ):
        if has not in (None, takes):
            raise UserError(f"{path}: takes {what} of {takes} values, but those of {collection.origin} have {has}")
    weights = ScoreWeights.of(trained.experiment.evaluation, trained.metrics, f"{path}/{METRICS}")
    if weights.encoder and collection.one_encoder is False:
        raise UserError(not_one_encoder(weights.encoder, collection.origin))
    own = model_encoding(trained.metrics, f"{path}/{METRICS}")
    if own is None or encoding is None:
        return encoding or own
    if changes := own.frames.differences(encoding.frames):
        raise UserError(
            f"{collection.origin}: its frames were not encoded as those that {path} was trained on"
            f" ({'; '.join(first_few(changes))})"
        )
    return replace(encoding, sentences=encoding.sentences or own.sentences)


def _check_one_encoder(collection: Collection) -> None:
    """Raise `UserError` unless a collection's frames can be compared with sentences without a model."""
    encoding = collection.encoding
    if collection.one_encoder is False or collection.text_size not in (None, collection.video_size):
        raise UserError(
            f"{collection.origin}: frames and sentences are not of one encoder, so they cannot be searched without a"
            " model"
        )
    if encoding is None or encoding.sentences is None or collection.one_encoder:
        return
    if encoding.sentences.name != encoding.frames.name:
        raise UserError(
            f"{collection.origin}: frames are encoded by {encoding.frames.name}, sentences by"
            f" {encoding.sentences.name}, so they cannot be searched without a model"
        )


def _text_size(collection: Collection, trained: TrainedModel | None) -> int:
    """Return the values of a sentence's token."""
    if trained is not None:
        return trained.experiment.data.text_size
    return collection.text_size or collection.video_size


def weights_digest(model: Path) -> str:
    """Return the SHA-256 of a model's weights. Raises `UserError` if they cannot be read."""
    try:
        with (model / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{model / WEIGHTS}: cannot be read: {error.strerror}") from None


def _load(directory: Path, model: Path | None) -> TrainedModel:
    """Return the index's own copy of the model, which is made unless it exists."""
    copy = directory / MODEL
    assert model is not None
    if not copy.exists():
        export_checkpoint(model, copy)
        return load_model(copy)
    # It may have been calibrated since, or its training has ended and learned to find moments.
    if (model / CALIBRATION).is_file():
        write_bytes(copy / CALIBRATION, (model / CALIBRATION).read_bytes())
    if not (copy / MOMENTS).exists() and (network := read_moments(model)) is not None:
        add_moments(Storage.of(copy), network)
    return load_model(copy)


def _remove_leftovers(directory: Path, record: IndexRecord) -> None:
    """Remove parts that no longer belong to the index: of a process that was killed, or replaced by others.

    Directories whose content does not show that they are parts stay, whatever their names.
    """
    folder = directory / PARTS
    if not folder.is_dir():
        return
    known = {part.name for part in record.parts}
    for path in folder.iterdir():
        if path.name not in known and is_part(path):
            remove_part(path)


def _groups(ids: Sequence[str]) -> list[list[Sequence[str]]]:
    """Divide a part's videos into groups that are compressed together, and these into blocks that are encoded."""
    return [
        [ids[start : min(start + BLOCK, end)] for start in range(first, end, BLOCK)]
        for first in range(0, len(ids), PART_ROWS)
        for end in [min(first + PART_ROWS, len(ids))]
    ]


class _Update:
    """One run of `update_index`."""

    def __init__(
        self,
        directory: Path,
        record: IndexRecord,
        collection: Collection,
        trained: TrainedModel | None,
        report: Callable[[Progress], None],
        encode: EncodeBlocks | None,
    ) -> None:
        self._directory, self._record, self._collection = directory, record, collection
        self._model = None if trained is None else trained.model.to(best_device())
        self._encode_blocks = encode or self._encode_here
        self._weights, self._report = score_weights(trained, directory / MODEL), report
        self._part_rows = COMPACT_PART_ROWS if record.compact else PART_ROWS

    def run(self) -> Update:
        known: dict[str, str] = {}
        for part in self._parts():
            known |= part.fingerprints()
        ids = self._collection.ids
        present = set(ids)
        changed = {id for id in ids if id in known and self._collection.read(id).fingerprint() != known[id]}
        removed = known.keys() - present
        self._remove(changed | removed)
        todo = [id for id in ids if id not in known or id in changed]
        self._add(todo)
        return Update(
            self._record, len(todo) - len(changed), len(changed), len(removed), len(known) - len(changed) - len(removed)
        )

    def _parts(self) -> Iterator[Part]:
        for part in self._record.parts:
            yield Part(self._directory / PARTS / part.name, part, self._model is not None, self._record.compact)

    def _remove(self, ids: set[str]) -> None:
        """Write the parts that hold any of these rows again, without them."""
        if not ids:
            return
        parts: list[PartRecord] = []
        for part in self._parts():
            kept = [number for number, id in enumerate(part.ids()) if id not in ids]
            if len(kept) == len(part):
                parts.append(part.record)
            elif kept:
                parts.append(self._write(part.content(kept)))
        self._commit(parts)

    def _add(self, ids: Sequence[str]) -> None:
        begin = time.perf_counter()
        if not ids:
            return
        self._report(Progress(0, len(ids), 0.0))
        compressor = self._compressor(ids) if self._record.compact else None
        # A part that is not full is replaced by one that also holds the first of these videos.
        last = list(self._parts())[-1:] if self._record.parts else []
        last = [part for part in last if len(part) < self._part_rows // 2]
        ends = [*range(self._part_rows - sum(len(part) for part in last), len(ids), self._part_rows), len(ids)]
        parts = [_groups(ids[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        encoded = self._encode_blocks(self._model, [block for groups in parts for blocks in groups for block in blocks])
        for groups, end in zip(parts, ends, strict=True):
            content = PartContent.joined([self._content(len(blocks), encoded, compressor) for blocks in groups])
            before = list(self._record.parts[: len(self._record.parts) - len(last)])
            for part in last:
                content = PartContent.joined([part.content(range(len(part))), content])
            last = []
            self._commit([*before, self._write(content)])
            self._report(Progress(end, len(ids), time.perf_counter() - begin))

    def _content(self, blocks: int, encoded: Iterator[PartContent], compressor: Compressor | None) -> PartContent:
        """Join the next `blocks` contents."""
        content = PartContent.joined(list(itertools.islice(encoded, blocks)))
        return content if compressor is None else compressor.compress(content)

    def _encode_here(self, model: DreamPRVR | None, blocks: Sequence[Sequence[str]]) -> Iterator[PartContent]:
        return (encode_videos([(id, self._collection.read(id)) for id in ids], model) for ids in blocks)

    def _compressor(self, ids: Sequence[str]) -> Compressor:
        """Return what compresses the index's rows; it is fitted to a sample of the first videos."""
        if not (self._directory / COARSE).exists():
            numbers = np.random.default_rng(0).permutation(len(ids))[:SAMPLE]
            sample = [(ids[number], self._collection.read(ids[number])) for number in np.sort(numbers).tolist()]
            Compressor.fit(encode_videos(sample, self._model).block, self._weights).write(self._directory)
        return Compressor.read(self._directory, self._weights)

    def _write(self, content: PartContent) -> PartRecord:
        folder, number = self._directory / PARTS, self._record.next_part
        while os.path.lexists(folder / f"{number:06d}"):  # of someone else: see `_remove_leftovers`
            number += 1
        self._record = replace(self._record, next_part=number + 1)
        with writing(folder):
            return write_part(folder / f"{number:06d}", content)

    def _commit(self, parts: Sequence[PartRecord]) -> None:
        """Make these the parts of the index, and remove those that they replace."""
        self._record = replace(self._record, parts=tuple(parts))
        self._record.write(self._directory)
        _remove_leftovers(self._directory, self._record)
