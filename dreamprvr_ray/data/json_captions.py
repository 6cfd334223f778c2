"""Captions and labels as JSON lines, with the keys that TVR, QVHighlights and others use. Imports no torch.

    {"query": "q1", "video": "v1", "sentence": "a person opens a door", "start": 2.0, "end": 4.5, "duration": 30}
    {"desc_id": 90200, "vid_name": "friends_s01e03_seg02_clip_19", "desc": "Phoebe ...", "ts": [1, 4], "duration": 61}
    {"qid": 8737, "vid": "bP5KfdFJzC4", "query": "A family ...", "relevant_windows": [[0, 14]], "duration": 150}
    {"query": "q2", "videos": ["v1", "v7"], "sentence": "a dog barks"}

A query is trained with the first of several videos; all count as right. A query id in several lines has the videos of
all of them. `<collection><split>.labels.jsonl` adds right videos to queries: {"query": "q1", "videos": ["v1", "v3"]}.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamprvr_ray.data.captions import Caption, KnownMoment, json_lines
from dreamprvr_ray.data.near_misses import Ids, quoted
from dreamprvr_ray.errors import UserError, first_few

_IDS = ("query_id", "desc_id", "qid", "caption_id", "cap_id", "id")
_SENTENCES = ("sentence", "text", "desc", "description", "caption")
_QUERY = "query"  # the id if a line has a sentence or no other id, else the sentence
_VIDEOS = ("videos", "video", "video_id", "vid_name", "video_name", "vid", "right_videos")
_WINDOWS = ("relevant_windows", "ts", "timestamps", "timestamp", "moment", "window")
_DURATIONS = ("duration", "video_duration")


@dataclass(frozen=True)
class JsonCaptions:
    """The captions of a file, and the moments by query id of those with times."""

    captions: list[Caption]
    moments: Mapping[str, KnownMoment]


class _Malformed(Exception):
    """What is wrong with a line."""


def read_json_captions(path: Path, queries: Container[str] = ()) -> JsonCaptions:
    """Return the captions in a file of JSON lines, in file order.

    An id such as 8737 under the key `qid` becomes `qid8737` if that is what `queries`, which have features, hold.

    Raises:
        UserError: The file is missing, empty or not UTF-8, or a line is malformed or contradicts another.
    """
    captions: dict[str, Caption] = {}
    line_of: dict[str, str] = {}
    moments: dict[str, KnownMoment] = {}
    mistakes = []
    for where, entry in _entries(path):
        try:
            caption, moment = _caption(entry, queries, where)
            known = captions.get(caption.query)
            if known is not None and known.text != caption.text:
                raise _Malformed(f"query id {quoted(caption.query)} has another sentence in {line_of[caption.query]}")
            if known is not None and caption.video in (known.video, *known.also):
                raise _Malformed(f"query id {quoted(caption.query)} already appears in {line_of[caption.query]}")
        except _Malformed as error:
            mistakes.append(f"{where}: {error}")
            continue
        if known is None:
            captions[caption.query], line_of[caption.query] = caption, where.rpartition(", ")[2]
        else:
            captions[caption.query] = _with_videos(known, [caption.video, *caption.also])
        if moment is not None and captions[caption.query].video == caption.video:
            moments[caption.query] = moment
    if mistakes:
        raise UserError(*first_few(mistakes))
    if not captions:
        raise UserError(f"{path}: no captions: the split is empty")
    return JsonCaptions(list(captions.values()), moments)


def with_labels(captions: Sequence[Caption], path: Path) -> list[Caption]:
    """Return captions with the right videos that a file of labels adds.

    Raises:
        UserError: The file is missing or malformed, or names a query without caption.
    """
    labels: dict[str, list[str]] = {}
    mistakes = []
    for where, entry in _entries(path):
        try:
            query = _text(_value(entry, (*_IDS, _QUERY), "a query's id"), "a query's id")
            labels.setdefault(query, []).extend(_videos(entry))
        except _Malformed as error:
            mistakes.append(f"{where}: {error}")
    ids = Ids(caption.query for caption in captions)
    known = {caption.query for caption in captions}
    unknown = [query for query in labels if query not in known]
    mistakes += [f"{path}: query {quoted(query)} has no caption{ids.hint(query)}" for query in unknown[:3]]
    mistakes += [f"{path}: query {quoted(query)} has no caption" for query in unknown[3:]]
    if mistakes:
        raise UserError(*first_few(mistakes))
    return [_with_videos(caption, labels.get(caption.query, ())) for caption in captions]


def _entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, entry in json_lines(path):
        if not isinstance(entry, dict):
            raise UserError(f"{where}: must be a JSON object, with keys such as query, video and sentence")
        yield where, entry


def _caption(entry: Mapping[str, Any], queries: Container[str], where: str) -> tuple[Caption, KnownMoment | None]:
    sentence_key = next((key for key in _SENTENCES if entry.get(key) is not None), None)
    id_key = next((key for key in _IDS if entry.get(key) is not None), None)
    if id_key is None or (sentence_key is not None and entry.get(_QUERY) is not None):
        id_key = _QUERY
    elif sentence_key is None:
        sentence_key = _QUERY
    query = _text(_value(entry, (id_key,), "a query's id"), "a query's id")
    if query not in queries and f"{id_key}{query}" in queries:
        query = f"{id_key}{query}"
    sentence = entry.get(sentence_key) if sentence_key else None
    if not isinstance(sentence, str | None):
        raise _Malformed(f"{sentence_key} must be a string")
    video, *others = _videos(entry)
    caption = _with_videos(Caption(query, video, _encodable(sentence or "", "the sentence")), others)
    return caption, _moment(entry, where)


def _videos(entry: Mapping[str, Any]) -> list[str]:
    value = _value(entry, _VIDEOS, "the id of its video")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _Malformed("must name at least one video")
    return [_text(video, "the id of a video") for video in values]


def _value(entry: Mapping[str, Any], keys: Sequence[str], meaning: str) -> Any:
    key = next((key for key in keys if entry.get(key) is not None), None)
    if key is None:
        raise _Malformed(f"must have {meaning} under {'the key' if len(keys) == 1 else 'one of'} {', '.join(keys)}")
    return entry[key]


def _text(value: Any, meaning: str) -> str:
    """Return an id as a string; numbers are written as in JSON."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _Malformed(f"{meaning} must be a string or an integer, not {str(value)[:40]!r}")
    try:
        return _encodable(str(value), meaning)
    except ValueError:  # of an integer of thousands of digits
        raise _Malformed(f"{meaning} is too long") from None


def _encodable(text: str, meaning: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Malformed(f"{meaning} must be valid Unicode, not {text[:40]!a}") from None
    return text


def _with_videos(caption: Caption, videos: Sequence[str]) -> Caption:
    also = dict.fromkeys([*caption.also, *videos])
    also.pop(caption.video, None)
    return replace(caption, also=tuple(also))


def _moment(entry: Mapping[str, Any], where: str) -> KnownMoment | None:
    """Return the moment of a line in its first video; None without times."""
    windows = next((entry[key] for key in _WINDOWS if entry.get(key)), None)
    if windows is None and entry.get("start") is not None and entry.get("end") is not None:
        windows = [entry["start"], entry["end"]]
    if windows is None:
        return None
    duration = next((entry[key] for key in _DURATIONS if entry.get(key) is not None), float("nan"))
    try:
        if not isinstance(windows[0], list):
            windows = [windows]
        return KnownMoment.of([(float(start), float(end)) for start, end in windows], float(duration), where)
    except UserError as error:
        raise _Malformed(error.mistakes[0].removeprefix(f"{where}: ")) from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _Malformed("times must be numbers of seconds: a moment [start, end] or several, and a duration") from None
