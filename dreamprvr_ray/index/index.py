"""An index that is open: its videos, and finding the moments of sentences in them.

from dreamprvr_ray import Index

answer = Index.open("runs/index").find("a person opens a door")
for found in answer.results:
    print(found.video, found.start, found.end, found.score)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dreamprvr_ray.checkpoints.checkpoint import TrainedModel, load_model
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.curves import QueryVectors, VideoRows, similarity_curves
from dreamprvr_ray.evaluation.moments import find_moment
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.answers import Answer, Curve, Found, IndexedVideo
from dreamprvr_ray.index.calibration import Calibration, read_calibration
from dreamprvr_ray.index.coarse import CoarseStage
from dreamprvr_ray.index.compression import Compressor
from dreamprvr_ray.index.parts import Block, IndexedRow, Part
from dreamprvr_ray.index.record import MODEL, PARTS, IndexRecord
from dreamprvr_ray.index.scoring import block_scores, score_weights
from dreamprvr_ray.index.sentences import check_sentence, encode, open_encoder_of
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.encoders.protocols import SentenceEncoder

MOST_RESULTS = 1000  # of a search
EXACT_ROWS = 20_000  # up to which all videos of a compact index are scored
CANDIDATES = 4000  # videos that the coarse stage leaves, at least
CANDIDATE_SHARE = 100  # one of this number of videos, if that is more: in large collections, more come close


class Index:
    """An encoded collection, mapped into memory. It is read only, and can be shared by threads.

    Attributes:
        directory: Where it is.
        record: What `index.json` says.
    """

    def __init__(
        self,
        directory: Path,
        record: IndexRecord,
        model: TrainedModel | None,
        sentence_encoder: str | SentenceEncoder | None = None,
    ) -> None:
        self.directory, self.record = directory, record
        self._model, self._chosen_encoder = model, sentence_encoder
        self.parts = [
            Part(directory / PARTS / part.name, part, model is not None, record.compact) for part in record.parts
        ]
        self._compressor = None
        if record.compact and record.parts:
            self._compressor = Compressor.read(directory, self.weights)

    @classmethod
    def open(cls, path: str | Path, *, sentence_encoder: str | SentenceEncoder | None = None) -> Index:
        """Open an index. Takes a fraction of a second; the encoder of sentences is loaded by the first search.

        Args:
            path: The directory that the `index` command wrote.
            sentence_encoder: The encoder of sentences or its name, if the index does not know it or it has moved.

        Raises:
            UserError: There is no index, or it is damaged.
        """
        directory = Path(path)
        record = IndexRecord.read(directory)
        model = None if record.model is None else load_model(directory / MODEL)
        return cls(directory, record, model, sentence_encoder)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.videos)

    @cached_property
    def videos(self) -> tuple[IndexedVideo, ...]:
        """The videos, in the order in which they were added; windows of a long video are one."""
        videos: dict[str, IndexedVideo] = {}
        for part in self.parts:
            for row in part.rows():
                videos.setdefault(row.source, _video(row))
        return tuple(videos.values())

    @property
    def videos_directory(self) -> Path | None:
        """The directory that the videos' files are relative to; None if unknown."""
        return None if self.record.videos_directory is None else Path(self.record.videos_directory)

    @cached_property
    def weights(self) -> ScoreWeights:
        """The weights of the score's parts: the model's own, or of the encoder alone."""
        return score_weights(self._model, self.directory / MODEL)

    @cached_property
    def _sentence_encoder(self) -> SentenceEncoder:
        return open_encoder_of(self.record, str(self.directory), self._chosen_encoder)

    def load_encoder(self) -> None:
        """Load the encoder of sentences, so that the first search is as fast as others.

        Raises `UserError` if it is not known or cannot be loaded.
        """
        _ = self._sentence_encoder

    def find(self, sentence: str, top: int = 10) -> Answer:
        """Return the best moments for a sentence.

        Args:
            sentence: What happens in the moment.
            top: How many videos to return, at most `MOST_RESULTS`; fewer if the index holds fewer.

        Raises:
            UserError: The sentence is empty, or the encoder of sentences is not known or cannot be loaded.
        """
        (answer,) = self.find_many([sentence], top)
        return answer

    def find_many(self, sentences: Sequence[str], top: int = 10) -> list[Answer]:
        """Return the answers for several sentences, which are encoded and scored together; see `find`."""
        if not 1 <= top <= MOST_RESULTS:
            raise UserError(f"top {top}: must be from 1 to {MOST_RESULTS:,}")
        if not sentences:
            return []
        begin = time.perf_counter()
        checked = [check_sentence(sentence) for sentence in sentences]
        features = self._sentence_encoder.encode_sentences(checked)
        found = self._search(encode(features, self.record, self._network), top)
        seconds = time.perf_counter() - begin
        return [
            Answer(sentence, results, seconds, probability)
            for sentence, (results, probability) in zip(sentences, found, strict=True)
        ]

    @property
    def _network(self) -> DreamPRVR | None:
        return None if self._model is None else self._model.model

    def scores(self, queries: QueryVectors) -> np.ndarray:
        """Return the scores (Q, rows) float32 of queries, of length 1, against all rows of all parts."""
        if not self.parts:
            return np.zeros((_count(queries), 0), np.float32)
        return np.concatenate([self._block_scores(part.block, queries) for part in self.parts], axis=1)

    def _block_scores(self, block: Block, queries: QueryVectors) -> np.ndarray:
        padding = self._model is not None and not self._model.model.trimmed
        if self._compressor is None:
            return block_scores(block, queries, self.weights, padding)
        compression = self._compressor.compression
        return block_scores(block, compression.project(queries), self.weights, padding, compression)

    def search(self, queries: QueryVectors, top: int = 10, exact: bool = False) -> list[tuple[Found, ...]]:
        """Return the best moments for each of some queries, whose vectors have length 1.

        In a large compact index, the coarse stage chooses the videos that are scored, unless `exact`.
        """
        return [results for results, _ in self._search(queries, top, exact)]

    def _search(
        self, queries: QueryVectors, top: int, exact: bool = False
    ) -> list[tuple[tuple[Found, ...], float | None]]:
        """Return the best moments for each query, and the probability that the index holds its event."""
        answers = []
        for number, (rows, scores) in enumerate(self._scored(queries, top, exact)):
            query = _one(queries, number)
            best = enumerate(self._best(rows, scores, top), start=1)
            results = tuple(self._found(rank, row, score, query) for rank, (row, score) in best)
            answers.append((results, self._probability(rows, scores)))
        return answers

    @cached_property
    def calibration(self) -> Calibration | None:
        """How probable it is that the index holds what a sentence describes; None if the model is not calibrated."""
        return None if self._model is None else read_calibration(Storage.of(self.directory / MODEL))

    def _probability(self, rows: np.ndarray, scores: np.ndarray) -> float | None:
        """Return the probability that the index holds the event of a query with these rows (n,) and scores (n,).

        None without a calibration, and where the coarse stage has left videos out, whose scores it would need.
        """
        if self.calibration is None or len(rows) < self.record.rows or not len(rows):
            return None
        videos = np.full(int(self._sources.max()) + 1, -np.inf, np.float32)
        np.maximum.at(videos, self._sources[rows], scores)  # of the windows of one video, the best counts
        return self.calibration.probability(videos)

    def _scored(self, queries: QueryVectors, top: int, exact: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the rows (n,) that are scored for each query, and their scores (n,)."""
        if self._compressor is None or exact or self.record.rows <= EXACT_ROWS:
            every = np.arange(self.record.rows)
            return [(every, own) for own in self.scores(queries)]
        projected = self._compressor.compression.project(queries)
        count = max(CANDIDATES, self.record.rows // CANDIDATE_SHARE, 10 * top)
        chosen = self._coarse.candidates(projected, count)
        return [(rows, self._scores_of(rows, _one(queries, number))) for number, rows in enumerate(chosen)]

    def _scores_of(self, rows: np.ndarray, query: QueryVectors) -> np.ndarray:
        """Return the scores (n,) of a query against some rows, given in ascending order."""
        places = np.searchsorted(self._first_rows, rows, side="right") - 1
        blocks = [
            self.parts[place].block.take((rows[places == place] - self._first_rows[place]).tolist())
            for place in np.unique(places).tolist()
        ]
        scores: np.ndarray = self._block_scores(Block.joined(blocks), query)[0]
        return scores

    def _best(self, rows: np.ndarray, scores: np.ndarray, top: int) -> list[tuple[int, float]]:
        """Return the rows of the best videos with their scores; of the windows of one video, the best counts."""
        best: dict[int, tuple[int, float]] = {}
        for place in np.argsort(-scores, kind="stable").tolist():
            row = int(rows[place])
            best.setdefault(int(self._sources[row]), (row, float(scores[place])))
            if len(best) == top:
                break
        return list(best.values())

    @cached_property
    def _coarse(self) -> CoarseStage:
        assert self._compressor is not None
        codes = [part.block.coarse for part in self.parts]
        return CoarseStage(self._compressor.quantizer, [each for each in codes if each is not None])

    @cached_property
    def _sources(self) -> np.ndarray:
        """(rows,) the number of each row's video."""
        if not self.parts:
            return np.zeros(0, np.int64)
        chunks = [chunk for part in self.parts for chunk in part.sources.chunks]
        codes = pa.chunked_array(chunks).combine_chunks().dictionary_encode().indices
        numbers: np.ndarray = codes.to_numpy().astype(np.int64)
        return numbers

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def _found(self, rank: int, number: int, score: float, query: QueryVectors) -> Found:
        place = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        part, within = self.parts[place], number - int(self._first_rows[place])
        (row,) = part.rows(within, 1)
        block = part.block.take([within])
        if self._compressor is not None:
            block = self._compressor.compression.restore(block)
            query = self._compressor.compression.project(query)
        curve = similarity_curves(query, _rows(block), self.weights)[0].numpy()
        first, stop = find_moment(curve, None if self._model is None else self._model.moments)
        start = end = None
        middles = [(frame + 0.5) / row.frames for frame in range(row.frames)]
        if (times := row.times) is not None:
            spans = [times.frame(frame) for frame in range(row.frames)]
            start, end = spans[first].start, spans[stop - 1].end
            if start < times.duration < end:  # the last frame may stand for less than a whole interval
                end = times.duration
            middles = [(span.start + span.end) / 2 for span in spans]
        shares = (first / row.frames, stop / row.frames)
        if times is not None and times.duration > 0 and start is not None and end is not None:
            shares = (min(start / times.duration, 1.0), min(end / times.duration, 1.0))
        return Found(
            rank=rank,
            video=row.source,
            file=_video(row).file,
            start=start,
            end=end,
            shares=shares,
            score=score,
            curve=Curve(tuple(round(time, 3) for time in middles), tuple(round(float(each), 5) for each in curve)),
            window=row.id,
            duration=_video(row).duration,
        )


def _count(queries: QueryVectors) -> int:
    vectors = queries.model if queries.model is not None else queries.encoder
    return 0 if vectors is None else len(vectors)


def _one(queries: QueryVectors, number: int) -> QueryVectors:
    """Return the vectors (1, ...) of one of some queries."""
    vectors = (queries.model, queries.encoder)
    return QueryVectors(*(None if each is None else each[number : number + 1] for each in vectors))


def _rows(block: Block) -> VideoRows:
    """Return the rows of a block's one video."""

    def tensor(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else torch.from_numpy(array.astype(np.float32))

    return VideoRows(frames=tensor(block.frames), features=tensor(block.features))


def _video(row: IndexedRow) -> IndexedVideo:
    times = row.times
    if times is None:
        return IndexedVideo(row.source, None, None, None)
    return IndexedVideo(row.source, times.file or None, times.duration, times.fps)
