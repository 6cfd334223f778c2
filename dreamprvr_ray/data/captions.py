"""Captions, queries and moments: which sentence describes which part of which video.

`source` shows where their files are. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


def read_moment_fractions(moments: Path, frame_captions: Path | None = None) -> dict[str, float]:
    """Return moment length / video length in [0, 1] by query id; NaN if the video's length is not known.

    Args:
        moments: JSON lines `{"query", "video", "start", "end"}` in seconds, optionally with the video's "duration".
        frame_captions: JSON lines `[video, duration in seconds, ...]`, for durations that `moments` does not have.

    Raises:
        UserError: A file is missing or malformed, or a duration is not positive.
    """
    durations: dict[str, float] = {}
    for where, entry in json_lines(frame_captions) if frame_captions else ():
        try:
            durations[entry[0]] = float(entry[1])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise UserError(f"{where}: must be [video, duration in seconds, ...]") from None
    fractions: dict[str, float] = {}
    for where, entry in json_lines(moments):
        try:
            start, end = float(entry["start"]), float(entry["end"])
            duration = float(entry.get("duration") or durations.get(entry["video"], np.nan))
            query = str(entry["query"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f'{where}: must be {{"query", "video", "start", "end"}} with times in seconds, and "duration" if known'
            ) from None
        fractions[query] = moment_fraction(start, end, duration, where)
    return fractions


def moment_fraction(start: float, end: float, duration: float, where: str) -> float:
    """Return a moment's length / its video's length, clipped to [0, 1]; NaN if `duration` is NaN. All times in seconds.

    Raises:
        UserError: A time is not finite or `duration` is not positive. The message starts with `where`.
    """
    length = abs(end - start)  # annotators sometimes swap start and end, and some moments end after the video
    if duration <= 0 or not math.isfinite(length) or math.isinf(duration):
        raise UserError(f"{where}: invalid moment of {length:g} s in a video of {duration:g} s")
    return float(np.clip(length / duration, 0, 1))


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each non-empty line's position, for messages, and its value. Raises `UserError` if it is not JSON."""
    for number, line in enumerate(text_lines(read_text(path)), 1):
        if line.strip(BLANKS):
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON: {first_line(error)}") from None
