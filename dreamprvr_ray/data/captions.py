"""Captions, queries and moments: which sentence describes which part of which video.

`source` shows where their files are. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from dreamprvr_ray.errors import UserError, first_few, first_line
from dreamprvr_ray.storage.files import BLANKS, read_text, text_lines

_LONGEST_ID = 1000  # characters of a line in which a query id with blanks is looked for


@dataclass(frozen=True)
class Caption:
    """A query: its id, the id of the video that it describes a part of, and its sentence, which may be empty.

    `also` holds the ids of other videos that are right as well.
    """

    query: str
    video: str
    text: str
    also: tuple[str, ...] = ()


class Moment(NamedTuple):
    """The part of a video that a query describes. All values in seconds."""

    start: float
    end: float
    duration: float  # of the whole video


@dataclass(frozen=True)
class KnownMoment:
    """Where in its video a query takes place, in one window of time or several.

    Attributes:
        fraction: Length of the windows / length of the video, in [0, 1]; NaN if the video's length is not known. What
            two windows share counts once.
        windows: Start and end of each window as shares of the video's length, 0 <= start < end <= 1, by time; empty if
            the video's length is not known.
    """

    fraction: float
    windows: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, spans: Iterable[tuple[float, float]], duration: float, where: str) -> KnownMoment:
        """Return the moment of windows (start, end) in a video of length `duration`, NaN if unknown; all in seconds.

        What is outside the video is cut off; a window without length is left out of `windows`.

        Raises:
            UserError: A time is not finite or `duration` is not positive. The message starts with `where`.
        """
        ordered = sorted((min(span), max(span)) for span in spans)  # annotators sometimes swap start and end
        length, reached = 0.0, -math.inf
        for start, end in ordered:
            length += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        if duration <= 0 or math.isinf(duration) or not all(math.isfinite(time) for span in ordered for time in span):
            raise UserError(f"{where}: invalid moment of {length:g} s in a video of {duration:g} s")
        if math.isnan(duration):
            return cls(math.nan)
        shares = [(max(start / duration, 0.0), min(end / duration, 1.0)) for start, end in ordered]
        windows = tuple(dict.fromkeys((start, end) for start, end in shares if start < end))
        return cls(min(length / duration, 1.0), windows)


@dataclass(frozen=True, eq=False)
class Query:
    """A sentence that describes a moment of a video, with its token features.

    Attributes:
        id: Unique id.
        video: Id of the video.
        sentence: The text; may be empty.
        tokens: (Lq, Dt) token features; the first 30 are used.
        moment: `Moment` or (start, end, duration of the video) in seconds, if known. Used only for reporting recall by
            moment length.
        also: Ids of other videos of the split that the sentence describes as well. A model is trained on `video`, with
            the others as neither positives nor negatives; when it is evaluated, each of them counts as right.
        embedding: (Dt,) the encoder's own embedding of the whole sentence, if it has one: CLIP's and SigLIP's is not
            the mean of their tokens. Give it for all queries or for none.
    """

    id: str
    video: str
    sentence: str
    tokens: ArrayLike
    moment: Moment | tuple[float, float, float] | None = None
    also: Sequence[str] = ()
    embedding: ArrayLike | None = None


def read_captions(path: Path, queries: Container[str] = (), videos: Container[str] = ()) -> list[Caption]:
    """Return the captions in a file with lines `<video id>#<anything> <caption>`, in file order.

    Lines end with LF, CR LF or CR; a space or a tab separates id and caption. Ids with blanks or several
    `#` are recognised by `queries` and `videos`, which hold the ids that have features.

    Raises:
        UserError: The file is missing, empty or not UTF-8, or has a malformed line or a repeated query id.
    """
    captions: list[Caption] = []
    line_of: dict[str, int] = {}
    mistakes = []
    for number, line in enumerate(text_lines(read_text(path)), 1):
        line = line.strip(BLANKS)
        if not line:
            continue
        query, text = _divide(line, queries)
        video = _video_of(query, videos)
        if not video:
            mistakes.append(
                f"{path}, line {number}: must start with a query id <video id>#<...> and a space, not"
                f" '{line[:40].strip(BLANKS)}'"
            )
        elif query in line_of:
            mistakes.append(f"{path}, line {number}: query id '{query}' already appears in line {line_of[query]}")
        else:
            line_of[query] = number
            captions.append(Caption(query, video, text))
    if mistakes:
        raise UserError(*first_few(mistakes))
    if not captions:
        raise UserError(f"{path}: no captions: the split is empty")
    return captions


def _divide(line: str, queries: Container[str]) -> tuple[str, str]:
    """Return the query id and the sentence of a line."""
    first, text = (*re.split(r"[ \t]+", line, maxsplit=1), "")[:2]
    if first in queries or "#" not in line:
        return first, text
    hash_sign = line.index("#")
    for blank in re.finditer(r"[ \t]+|$", line[:_LONGEST_ID]):
        if blank.start() > hash_sign and line[: blank.start()] in queries:
            return line[: blank.start()], line[blank.end() :]
    if "#" not in first and (id_with_blanks := re.match(r"(.*?#enc#[^ \t]*)[ \t]*(.*)", line, re.DOTALL)):
        return id_with_blanks[1], id_with_blanks[2]
    return first, text


def _video_of(query: str, videos: Container[str]) -> str:
    """Return the id of a query's video, which ends at a `#`; empty if there is none."""
    before_enc, enc, _ = query.rpartition("#enc#")
    places = [match.start() for match in re.finditer("#", query)]
    ids = [before_enc] if enc else []
    ids += [query[:place] for place in (places[:1] + places[:0:-1])]
    return next((id for id in ids if id in videos), ids[0] if ids else "")


def read_moments(
    moments: Path, frame_captions: Path | None = None, other_videos: Mapping[str, Collection[str]] | None = None
) -> dict[str, KnownMoment]:
    """Return the moment of each query in its own video, by query id.

    Args:
        moments: JSON lines `{"query", "video", "start", "end"}` in seconds, optionally with the video's "duration".
            Several lines of a query are several windows of its moment.
        frame_captions: JSON lines `[video, duration in seconds, ...]`, for durations that `moments` does not have.
        other_videos: By query id, the right videos besides its own. Lines about these are left out.

    Raises:
        UserError: A file is missing or malformed, or a duration is not positive.
    """
    durations: dict[str, float] = {}
    for where, entry in json_lines(frame_captions) if frame_captions else ():
        try:
            durations[entry[0]] = float(entry[1])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise UserError(f"{where}: must be [video, duration in seconds, ...]") from None
    others = other_videos or {}
    spans: dict[str, list[tuple[float, float]]] = {}
    known: dict[str, KnownMoment] = {}
    for where, entry in json_lines(moments):
        try:
            span = float(entry["start"]), float(entry["end"])
            duration = float(entry.get("duration") or durations.get(entry["video"], math.nan))
            query, video = str(entry["query"]), str(entry["video"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f'{where}: must be {{"query", "video", "start", "end"}} with times in seconds, and "duration" if known'
            ) from None
        if video in others.get(query, ()):
            continue
        spans.setdefault(query, []).append(span)
        known[query] = KnownMoment.of(spans[query], duration, where)
    return known


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each non-empty line's position, for messages, and its value. Raises `UserError` if it is not JSON."""
    for number, line in enumerate(text_lines(read_text(path)), 1):
        if line.strip(BLANKS):
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON: {first_line(error)}") from None
