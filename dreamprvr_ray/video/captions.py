"""Tables of sentences about videos: CSV, TSV and JSON lines, one sentence per row.

    video,sentence,start,end                       columns are found by their names, in any order
    cooking/eggs.mp4,"a person cracks an egg",3.5,6

    {"video": "eggs", "sentence": "a person cracks an egg", "start": 3.5, "end": 6}

`start`, `end` (in seconds, or as 1:03.5) and `split` (train, val or test) are optional. `directory` finds the video
that a row means. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamprvr_ray.data.caption_files import SPLITS
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.errors import UserError, did_you_mean, first_few, first_line
from dreamprvr_ray.storage.files import BLANKS, read_text, text_lines

# What a column holds, and the names under which it is recognised, apart from case and punctuation. The first is
# preferred; others must be unambiguous.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "video": ("video", "videoid", "vid", "vidname", "videoname", "videofile", "filename", "file", "path", "videopath"),
    "sentence": ("sentence", "caption", "text", "description", "desc", "query", "sentences"),
    "start": ("start", "starttime", "startsec", "startseconds", "starts", "begin", "tstart"),
    "end": ("end", "endtime", "endsec", "endseconds", "ends", "stop", "tend"),
    "split": ("split", "subset", "set", "partition"),
}
_REQUIRED = ("video", "sentence")
_MOMENTS = ("timestamp", "timestamps", "ts", "moment")  # keys of JSON lines with [start, end]
_SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_ENDINGS = (".csv", ".tsv", ".jsonl")
_LONGEST_FIELD = 1_000_000  # characters
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:\.\d*)?)")


@dataclass(frozen=True)
class CaptionRow:
    """A row of a table of captions.

    Attributes:
        line: Its line in the file, from 1; a quoted sentence may span several.
        video: The video as written: a name or a path.
        sentence: The sentence, not empty.
        start: When the described moment begins, in seconds; None if no times are given.
        end: When it ends, not before `start`; None if no times are given.
        split: train, val or test; None if the table has no splits.
    """

    line: int
    video: str
    sentence: str
    start: float | None = None
    end: float | None = None
    split: str | None = None


class _Malformed(Exception):
    """What is wrong with a row."""


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Return which column holds what, from pairs such as `sentence=caption_en`. Raises `UserError` for wrong pairs."""
    columns: dict[str, str] = {}
    for pair in pairs:
        what, equals, name = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--columns {quoted(pair)}: must be WHAT=COLUMN, as in sentence=caption")
        if what not in COLUMNS:
            raise UserError(
                f"--columns {quoted(pair)}: must name one of {', '.join(COLUMNS)}{did_you_mean(what, COLUMNS)}"
            )
        if what in columns:
            raise UserError(f"--columns: {what} is given twice")
        columns[what] = name
    return columns


def read_caption_table(path: Path, columns: Mapping[str, str] | None = None) -> list[CaptionRow]:
    """Return the rows of a table of captions, in file order.

    Args:
        path: A file whose name ends in .csv, .tsv or .jsonl.
        columns: Names of columns that are not recognised by themselves, by what they hold (a key of `COLUMNS`).

    Raises:
        UserError: The file is missing, empty or not UTF-8; a column is missing or ambiguous; or rows are malformed, one
            mistake each with its line.
    """
    ending = path.suffix.lower()
    if ending in _DELIMITERS:
        entries = _delimited(path, read_text(path), _DELIMITERS[ending], columns or {})
    elif ending in _JSON_LINES:
        entries = _json_lines(path, read_text(path), columns or {})
    else:
        raise UserError(f"{path}: captions must be in a file whose name ends in {', '.join(_ENDINGS[:-1])} or .jsonl")
    rows, mistakes = [], []
    for line, values in entries:
        try:
            rows.append(_row(line, values))
        except _Malformed as error:
            mistakes.append(f"{path}, line {line}: {error}")
    if any(row.split for row in rows):
        mistakes += [f"{path}, line {row.line}: no split, but other lines have one" for row in rows if not row.split]
    if mistakes:
        raise UserError(*first_few(mistakes))
    if not rows:
        raise UserError(f"{path}: no captions; to extract videos without captions, omit the option")
    return rows


def _delimited(
    path: Path, text: str, delimiters: str, columns: Mapping[str, str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield each row's line and its values by what they are. Raises `UserError` for wrong columns and quotes."""
    delimiter = _delimiter(text, delimiters)
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    places: dict[str, int] | None = None
    width, line = 0, 1
    try:
        for fields in reader:
            first, line = line, reader.line_num + 1
            if not any(field.strip(BLANKS) for field in fields):
                continue
            if places is None:
                names = [field.strip(BLANKS) for field in fields]
                places, width = _find_columns(f"{path}, line {first}", names, columns), len(names)
                continue
            extra = [field for field in fields[width:] if field.strip(BLANKS)]
            if extra or len(fields) <= max(places[what] for what in _REQUIRED):
                hint = f"; a field that holds {quoted(delimiter)} must be in double quotes" if extra else ""
                count = len(fields) if extra else f"only {len(fields)}"
                raise UserError(f"{path}, line {first}: {count} fields, but the header has {width}{hint}")
            values = {what: fields[place] for what, place in places.items() if place < len(fields)}
            if delimiter == ";":  # as spreadsheets write where the decimal separator is a comma
                values |= {what: values[what].replace(",", ".") for what in ("start", "end") if what in values}
            yield first, values
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: cannot be read: {_quote_problem(error)}") from None
    if places is None:
        raise UserError(f"{path}: is empty; its first line must name the columns, as in video,sentence,start,end")


def _delimiter(text: str, delimiters: str) -> str:
    """Return the delimiter that the first line has most of; the first one if it has none."""
    header = next((line for line in text_lines(text) if line.strip(BLANKS)), "")
    return max(delimiters, key=header.count)


def _quote_problem(error: csv.Error) -> str:
    reason = first_line(error)
    if "expected after" in reason or "unexpected end" in reason or "field limit" in reason:
        return "a double quote is not closed, or not doubled within a quoted field"
    return reason


def _find_columns(where: str, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Return the place of each column by what it holds. Raises `UserError` if one is missing or ambiguous."""
    places: dict[str, int] = {}
    mistakes = []
    for what, recognised in COLUMNS.items():
        if what in columns:
            found = [place for place, name in enumerate(names) if name == columns[what]]
            if not found:
                mistakes.append(
                    f"{where}: no column {quoted(columns[what])}; the columns are {', '.join(map(quoted, names))}"
                    f"{did_you_mean(columns[what], names)}"
                )
        else:
            taken = set(columns.values())
            plain = ["" if name in taken else _plain(name) for name in names]
            found = [place for place, name in enumerate(plain) if name == recognised[0]]
            found = found or [place for place, name in enumerate(plain) if name in recognised]
        if len(found) > 1:
            listed = " and ".join(quoted(names[place]) for place in found[:2])
            mistakes.append(f"{where}: columns {listed} may both be the {what}; choose with --columns {what}=NAME")
        elif found:
            places[what] = found[0]
        elif what in _REQUIRED and what not in columns:
            shown = ", ".join(map(quoted, names[:8]))
            mistakes.append(
                f"{where}: no column for the {what}; the columns are {shown}: name it {recognised[0]}, or choose with"
                f" --columns {what}=NAME"
            )
    if mistakes:
        raise UserError(*mistakes)
    if ("start" in places) != ("end" in places):
        present, missing = ("start", "end") if "start" in places else ("end", "start")
        raise UserError(f"{where}: a column for the {present}, but none for the {missing}: moments need both")
    return places


def _json_lines(path: Path, text: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield each line's number and its values by what they are. Raises `UserError` if a line is not a JSON object."""
    for number, line in enumerate(text_lines(text), 1):
        if not line.strip(BLANKS):
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON: {first_line(error)}") from None
        if not isinstance(entry, dict):
            raise UserError(f"{where}: must be a JSON object, with the keys video and sentence")
        names = [name for name, value in entry.items() if value is not None]
        values = {what: entry[names[place]] for what, place in _find_columns(where, names, columns).items()}
        moment = next((entry[name] for name in names if _plain(name) in _MOMENTS), None)
        if moment is not None and "start" not in values:
            values |= _ends(moment)
        yield number, values


def _ends(moment: Any) -> dict[str, Any]:
    if isinstance(moment, list) and len(moment) == 1:
        moment = moment[0]
    if isinstance(moment, list) and len(moment) == 2:
        return {"start": moment[0], "end": moment[1]}
    return {"start": moment, "end": moment}  # refused as a time


def _row(line: int, values: Mapping[str, Any]) -> CaptionRow:
    video, sentence = _text(values["video"], "the video"), _text(values["sentence"], "the sentence")
    split = _split(values.get("split"))
    start, end = (_seconds(values.get(what), what) for what in ("start", "end"))
    if (start is None) != (end is None):
        missing = "start" if start is None else "end"
        raise _Malformed(f"no {missing}: a moment needs both start and end")
    if start is not None and end is not None:
        if start < 0:
            raise _Malformed(f"start {start:g} is negative")
        if end < start:
            raise _Malformed(f"start {start:g} is after end {end:g}")
    return CaptionRow(line, video, sentence, start, end, split)


def _text(value: Any, meaning: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Malformed(f"{meaning} must be a string, not {str(value)[:40]!r}")
    text = " ".join(str(value).split()) if meaning == "the sentence" else str(value).strip(BLANKS)
    if not text:
        raise _Malformed(f"{meaning} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Malformed(f"{meaning} must be valid Unicode, not {text[:40]!a}") from None
    if "\0" in text:
        raise _Malformed(f"{meaning} must not hold NUL")
    return text


def _seconds(value: Any, what: str) -> float | None:
    """Return a time in seconds: a number, or a clock's minutes and seconds, such as 1:03.5 or 1:02:03."""
    if value is None or (isinstance(value, str) and not value.strip(BLANKS)):
        return None
    try:
        if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip(BLANKS))):
            return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
        if isinstance(value, bool | list | dict):
            raise TypeError
        seconds = float(value)
        if not math.isfinite(seconds):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise _Malformed(f"{what} must be a number of seconds, or as in 1:03.5, not {str(value)[:40]!r}") from None
    return seconds


def _split(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip(BLANKS)):
        return None
    name = str(value).strip(BLANKS).lower()
    for split in SPLITS:
        if name in _SPLIT_NAMES[split]:
            return split
    raise _Malformed(f"split must be train, val or test, not {quoted(str(value)[:40])}{did_you_mean(name, SPLITS)}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
