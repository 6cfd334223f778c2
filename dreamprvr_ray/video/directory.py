"""Finding the video files of a directory, and those that captions mean. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dreamprvr_ray.data.near_misses import Ids, quoted
from dreamprvr_ray.errors import UserError, first_few
from dreamprvr_ray.storage.files import reading
from dreamprvr_ray.video.captions import CaptionRow
from dreamprvr_ray.video.files import ENDINGS

_NAMED = 3  # how many files a message names


@dataclass(frozen=True)
class ListedVideo:
    """A video file in a directory.

    Attributes:
        id: The video's id: its path without the ending, or with it if another file has the same one.
        file: Its path relative to the directory of videos, with `/`.
        bytes: Its size.
        modified_ns: When it was last changed, in nanoseconds since 1970.
    """

    id: str
    file: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class FoundVideos:
    """The video files of a directory in the order of their paths, and why others are left out, by their paths."""

    videos: tuple[ListedVideo, ...]
    left_out: Mapping[str, str]


def find_videos(directory: Path) -> FoundVideos:
    """Return the video files in a directory and below; hidden files and directories are left out.

    Links to directories are followed, each directory once.

    Raises:
        UserError: The directory cannot be read, or has no video files.
    """
    with reading(directory):
        if not directory.is_dir():
            raise UserError(
                f"{directory}: {'is a file; must be a directory' if directory.exists() else 'no such directory'}"
            )
        paths = sorted(_walk(directory))
    left_out: dict[str, str] = {}
    found: dict[str, os.stat_result] = {}
    others: Counter[str] = Counter()
    for path in paths:
        file = PurePosixPath(path.relative_to(directory)).as_posix()
        if path.suffix.lower() not in ENDINGS:
            others[path.suffix.lower()] += 1
        elif not _is_utf8(file):
            left_out[ascii(file)] = "its name is not valid UTF-8; rename it"
        else:
            try:
                found[file] = path.stat()
            except OSError as error:
                left_out[file] = f"cannot be read: {error.strerror}"
    if not found and not left_out:
        seen = ", ".join(ending or "no ending" for ending, _ in others.most_common(_NAMED))
        hint = f"; it holds files with {seen}" if others else "; it holds no files"
        raise UserError(f"{directory}: no videos (.mp4, .mov, .mkv, .webm, .avi and others){hint}")
    ids = _ids(found)
    return FoundVideos(
        tuple(ListedVideo(ids[file], file, status.st_size, status.st_mtime_ns) for file, status in found.items()),
        left_out,
    )


def _walk(directory: Path) -> Iterable[Path]:
    seen: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for root, folders, names in os.walk(directory, onerror=unreadable.append, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in names if not name.startswith("."))
    if unreadable:
        raise unreadable[0]


def _ids(files: Iterable[str]) -> dict[str, str]:
    """Return each file's id: its path without the ending if no other file or directory has the same."""
    files = list(files)
    stems = {file: str(PurePosixPath(file).with_suffix("")) for file in files}
    counts = Counter(stems.values())
    folders = {str(folder) for file in files for folder in PurePosixPath(file).parents}
    return {
        file: stem
        if counts[stem] == 1 and stem not in folders and not PurePosixPath(stem).name.startswith(".")
        else file
        for file, stem in stems.items()
    }


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class MatchedCaptions:
    """Rows of a table of captions with the id of each row's video, and the rows whose videos do not exist."""

    rows: tuple[tuple[str, CaptionRow], ...]
    missing: tuple[CaptionRow, ...]


def match_captions(
    rows: Sequence[CaptionRow], videos: Sequence[ListedVideo], directory: Path, origin: Path, skip_missing: bool = False
) -> MatchedCaptions:
    """Find the video of each row: by its id, or by its file's path or name, with or without the ending.

    Args:
        rows: The rows of the table `origin`.
        videos: The files in `directory`.
        directory: The directory of videos.
        origin: The table's path, for messages.
        skip_missing: Whether rows whose videos do not exist are left out instead of being mistakes.

    Raises:
        UserError: A row's video does not exist, or several files have its name; one mistake for each line.
    """
    exact: dict[str, str] = {}
    by_name: defaultdict[str, set[str]] = defaultdict(set)
    for video in videos:
        path = PurePosixPath(video.file)
        exact[video.file] = exact[video.id] = video.id
        for name in (path.with_suffix("").as_posix(), path.name, path.stem):
            by_name[name].add(video.id)
    hints = {
        True: Ids([video.file for video in videos] + [video.id for video in videos]),
        False: Ids([PurePosixPath(video.file).name for video in videos]),
    }
    matched, missing, mistakes = [], [], []
    for row in rows:
        wanted = _relative(row.video, directory)
        ids = {exact[wanted]} if wanted in exact else by_name.get(wanted, set())
        where = f"{origin}, line {row.line}"
        if len(ids) == 1:
            matched.append((next(iter(ids)), row))
        elif ids:
            listed = " and ".join(map(quoted, sorted(ids)[:2]))
            mistakes.append(f"{where}: {quoted(row.video)} may be {listed}; give its path relative to {directory}")
        else:
            missing.append(row)
            if not skip_missing:
                hint = hints["/" in wanted].hint(wanted) if len(mistakes) < _NAMED else ""
                mistakes.append(f"{where}: no video {quoted(row.video)} in {directory}{hint}")
    if mistakes:
        count = len({row.video for row in missing})
        advice = f"{count:,} videos of captions do not exist; --skip-missing leaves their captions out"
        raise UserError(*first_few(mistakes, _NAMED), *([advice] if missing and not skip_missing else []))
    if rows and not matched:
        raise UserError(f"{origin}: none of its {len(rows):,} captions is about a video in {directory}")
    return MatchedCaptions(tuple(matched), tuple(missing))


def _relative(name: str, directory: Path) -> str:
    """Return a path as captions give it, relative to the directory of videos, with `/`."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute():
        for root in (directory, directory.absolute(), directory.resolve()):
            if path.is_relative_to(root.as_posix()):
                return path.relative_to(root.as_posix()).as_posix()
    return path.as_posix()
