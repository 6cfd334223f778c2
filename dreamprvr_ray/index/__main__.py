"""`python -m dreamprvr_ray.index`: encode a collection once, to find moments in it by sentences (docs/search.md).

Running the same command again encodes only videos that are new or have changed, and removes those that are gone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamprvr_ray import command_line
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import local_folder

if TYPE_CHECKING:
    from dreamprvr_ray.index.building import EncodeBlocks, Progress, Update
    from dreamprvr_ray.index.collections import Collection

ZERO_SHOT = "zero-shot"
LINE_SECONDS = 5.0  # between two lines of progress if stderr is not a terminal


def main(arguments: list[str]) -> None:
    """Run the command. Raises `UserError` for mistakes, and `Failure` if no video could be encoded."""
    options = _parser().parse_args(arguments)
    _check(options)
    from dreamprvr_ray.index.building import check_directory

    check_directory(options.out)
    try:
        with _model(options.model) as model:
            update = _update(options, model)
    except KeyboardInterrupt:
        command_line.print_progress(f"\nstopped; run the same command again to continue {options.out}")
        raise
    print(_summary(options.out, update))
    if options.json:
        command_line.print_json(_values(options.out, update))


def _parser() -> command_line.Parser:
    parser = command_line.Parser("index", "Encode a collection once, to find moments in it by sentences.")
    parser.add_argument(
        "--model", required=True, metavar="EXPORT",
        help="exported model or checkpoint directory; or zero-shot: the encoder of the features alone",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shards", metavar="SHARDS", help="output of `convert`: a directory or a URI")
    source.add_argument("--source", type=local_folder, metavar="DIR", help="features, as `convert` reads them")
    source.add_argument("--videos", type=local_folder, metavar="DIR", help="directory with videos to encode")
    parser.add_argument("--out", type=local_folder, required=True, metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--compact", action="store_true",
        help="take at most 16 KB a video, and search a large collection in two stages (requires faiss)",
    )  # fmt: skip
    parser.add_argument("--split", nargs="+", default=[], metavar="NAME", help="splits of the shards (default: all)")
    parser.add_argument("--collection", metavar="NAME", help="name of the collection (default: the last part of DIR)")
    parser.add_argument("--features", metavar="NAME", help="features of --source, if it has several")
    parser.add_argument(
        "--encoder", metavar="ENCODER",
        help="encoder of the frames of --videos (default: the one that the model's record names)",
    )  # fmt: skip
    parser.add_argument(
        "--sentence-encoder", metavar="ENCODER",
        help="encoder of sentences, if the collection and the model do not know it",
    )  # fmt: skip
    parser.add_argument("--fps", type=float, help="frames per second of --videos (default: the model's, or 1)")
    parser.add_argument(
        "--window", type=float, metavar="SECONDS", help="cut longer videos into windows (default: the model's, or none)"
    )
    parser.add_argument(
        "--files", type=local_folder, metavar="DIR", help="directory of the video files of --shards or --source"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="number of processes, on all nodes of a cluster, that decode --videos (default: one per CPU) and that"
        " encode (default: this one)",
    )  # fmt: skip
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise `UserError` for options that do not go together."""
    allowed = {
        "split": "shards", "features": "source", "encoder": "videos", "fps": "videos", "window": "videos",
    }  # fmt: skip
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    for name, other in allowed.items():
        if getattr(options, name) not in (None, []) and getattr(options, other) is None:
            raise UserError(f"--{name}: needs --{other}")
    if options.files is not None and options.videos is not None:
        raise UserError("--files: the files are those of --videos")
    if options.files is not None and not options.files.is_dir():
        raise UserError(f"--files {options.files}: no such directory")
    if options.model == ZERO_SHOT and options.videos is not None and options.encoder is None:
        raise UserError("--encoder: required to index videos without a model")


@contextmanager
def _model(location: str) -> Iterator[Path | None]:
    """Yield the directory of a checkpoint, or a copy of one in an object store; None for an encoder alone."""
    if location == ZERO_SHOT:
        yield None
        return
    from dreamprvr_ray.checkpoints.locate import check_checkpoint
    from dreamprvr_ray.storage.location import Storage

    check_checkpoint(storage := Storage.of(location))
    if storage.directory is not None and storage.directory.is_file():
        raise UserError(f"{location}: is a file; an index needs the directory of a checkpoint or an exported model")
    with storage.local_directory() as path:
        yield path


def _update(options: argparse.Namespace, model: Path | None) -> Update:
    from dreamprvr_ray.index.building import update_index

    open_collection = _collection(options, model)
    collection = open_collection()  # before Ray starts
    with _encoding(options, open_collection) as encode:
        return update_index(
            options.out,
            collection,
            model,
            sentence_encoder=options.sentence_encoder,
            videos_directory=options.videos or options.files,
            compact=options.compact,
            report=_Display(),
            encode=encode,
        )


@contextmanager
def _encoding(options: argparse.Namespace, open_collection: Callable[[], Collection]) -> Iterator[EncodeBlocks | None]:
    """Yield what encodes with `--workers`; None if this process does."""
    if options.workers is None:
        yield None
        return
    from dreamprvr_ray.runtime.index_encoding import ClusterEncoding
    from dreamprvr_ray.runtime.ray_internals import quiet_losses
    from dreamprvr_ray.runtime.session import ray_session

    with (
        ray_session(dashboard=False, log=command_line.print_progress, resume="run the same command again"),
        quiet_losses(),
    ):
        yield ClusterEncoding(open_collection, options.workers)


def _collection(options: argparse.Namespace, model: Path | None) -> Callable[[], Collection]:
    """Return what opens the collection, here or in another process."""
    from dreamprvr_ray.index.collections import open_shards, open_source
    from dreamprvr_ray.storage.location import absolute

    if options.shards is not None:
        return partial(open_shards, absolute(options.shards), options.split)
    if options.source is not None:
        name = options.collection or options.source.resolve().name
        return partial(open_source, options.source.absolute(), name, options.features)
    source, name = _extract(options, model)
    return partial(open_source, source.absolute(), name)


def _extract(options: argparse.Namespace, model: Path | None) -> tuple[Path, str]:
    """Encode the videos that are missing in the index's own source, and return it and its collection's name."""
    from dreamprvr_ray import extract as command
    from dreamprvr_ray.runtime.extraction import extract
    from dreamprvr_ray.runtime.index_extraction import extraction_settings

    settings = extraction_settings(
        options.videos,
        options.out,
        model,
        encoder=options.encoder,
        sentence_encoder=options.sentence_encoder,
        collection=options.collection,
        fps=options.fps,
        window=options.window,
        workers=options.workers,
    )
    extraction = extract(settings, command_line.print_progress, command.Display())
    for file, why in sorted(extraction.failures.items())[:3]:
        command_line.print_progress(f"note: {file} is left out: {why}")
    if len(extraction.failures) > 3:
        command_line.print_progress(f"note: {len(extraction.failures) - 3:,} more videos are left out")
    return Path(settings.out), extraction.collection


class _Display:
    """Prints progress to stderr: a line that is updated in place on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = 0.0

    def __call__(self, progress: Progress) -> None:
        finished = progress.done == progress.todo
        if not finished and time.monotonic() - self._printed < (0.2 if self._terminal else LINE_SECONDS):
            return
        self._printed = time.monotonic()
        left = "" if progress.left is None else f", {progress.left:,.0f} s left"
        line = f"{progress.done:,}/{progress.todo:,} videos encoded{left}"
        if self._terminal:
            print(f"\r{line:<60}", end="\n" if finished else "", file=sys.stderr, flush=True)
        else:
            command_line.print_progress(line)


def _summary(out: Path, update: Update) -> str:
    counts = {"added": update.added, "changed": update.changed, "removed": update.removed, "unchanged": update.kept}
    parts = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "no videos"
    return f"{out}: {update.record.rows:,} videos ({parts}); to search: python -m dreamprvr_ray.find {out} SENTENCE"


def _values(out: Path, update: Update) -> dict[str, Any]:
    return {
        "index": str(out), "collection": update.record.collection, "videos": update.record.rows,
        "added": update.added, "changed": update.changed, "removed": update.removed, "unchanged": update.kept,
    }  # fmt: skip


if __name__ == "__main__":
    command_line.run(main)
