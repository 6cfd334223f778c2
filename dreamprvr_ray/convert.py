"""The command that converts a source tree into shards.

    python -m dreamprvr_ray.convert --source DIR --collection tvr --out shards/tvr

`dreamprvr_ray.data.source` documents the layout of DIR, `dreamprvr_ray.data.shard_files` that of the shards. A
conversion that was stopped or killed is resumed by running the same command again. Imports no torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dreamprvr_ray import command_line
from dreamprvr_ray.cpus import allowed_cpus
from dreamprvr_ray.data.conversion import Conversion, ConversionSettings, Progress, convert
from dreamprvr_ray.data.conversion_records import has_records
from dreamprvr_ray.data.encoding import SEARCH
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import Failure, NotWritableError, UserError
from dreamprvr_ray.storage.files import reason
from dreamprvr_ray.storage.location import local_folder

LINE_SECONDS = 5.0  # between two lines of progress if stderr is not a terminal


def main(arguments: list[str]) -> None:
    """Run the command. Raises `UserError` for mistakes; prints how to resume before passing on `KeyboardInterrupt`."""
    options = _parser().parse_args(arguments)
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be 1 or more")
    settings = ConversionSettings(
        dtype=options.dtype,
        protocol=options.protocol,
        dev_fraction=options.dev_fraction,
        seed=options.seed,
        one_encoder={"auto": None, "yes": True, "no": False}[options.one_encoder],
    )
    source = Source.open(options.source, options.collection, options.features, options.queries)
    command_line.print_progress(source.found)
    for note in source.notes():
        command_line.print_progress(f"note: {note}")
    try:
        conversion = convert(source, options.out, settings, options.workers, _Display())
    except KeyboardInterrupt:
        command_line.print_progress(
            f"\nstopped; finished shards remain in {options.out}: run the same command again to resume"
        )
        raise
    except OSError as error:
        problem = str(error) if isinstance(error, NotWritableError) else f"{options.out}: {reason(error)}"
        finished = has_records(options.out)
        hint = "; finished shards remain: run the same command again to resume" if finished else ""
        # Other than a path that cannot be written, a full disk is no mistake of the command line.
        raise (UserError if isinstance(error, NotWritableError) else Failure)(problem + hint) from None
    for note in conversion.notes:
        command_line.print_progress(f"note: {note}")
    print(_summary(options.out, conversion))
    print(_encoder_line(conversion))
    if options.json:
        command_line.print_json(_values(options.out, conversion))


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        "convert", "Check, pool and normalise a benchmark's features and write them as shards."
    )
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="root directory that holds the collection, or the collection's own directory",
    )
    parser.add_argument(
        "--collection", required=True, help="name of the collection, such as tvr: the prefix of its caption files"
    )
    parser.add_argument("--out", type=local_folder, required=True, help="directory to write the shards to")
    parser.add_argument(
        "--features", metavar="NAME", help="video features if there are several: a directory or file, or its path"
    )
    parser.add_argument(
        "--queries",
        metavar="NAME",
        help="file of query features if there are several: its name, a part of it such as roberta, or its path",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="type of the stored features (default: float16)",
    )
    parser.add_argument(
        "--protocol", choices=("dev", "paper"), default="dev",
        help="without separate val and test splits: carve val from train (dev, the default) or use test as val, as the"
        " authors do (paper)",
    )  # fmt: skip
    parser.add_argument(
        "--dev-fraction",
        type=float,
        default=0.1,
        help="fraction of the train videos for dev's val split (default: 0.1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for choosing them (default: 0)")
    parser.add_argument(
        "--one-encoder",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether one encoder made the features of frames and queries, which can then be compared without a model"
        " (default: auto, measured)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=allowed_cpus(),
        help="number of processes (default: one per core that may be used)",
    )
    return parser


class _Display:
    """Prints progress to stderr: a line that is updated in place on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        finished = progress.videos == progress.all_videos
        if not self._terminal and not finished and time.monotonic() - self._last < LINE_SECONDS:
            return
        self._last = time.monotonic()
        line = _progress_line(progress)
        if self._terminal:
            print(f"\r{line:<78}", end="\n" if finished else "", file=sys.stderr, flush=True)
        else:
            command_line.print_progress(line)


def _progress_line(progress: Progress) -> str:
    left = (progress.all_videos - progress.videos) * progress.seconds / progress.converted_videos
    rate = progress.raw_bytes / 1e6 / progress.seconds
    return f"{progress.videos:,}/{progress.all_videos:,} videos, {rate:,.0f} MB/s, {left:,.0f} s left"


def _summary(out: Path, conversion: Conversion) -> str:
    manifest = conversion.manifest
    counts = ", ".join(
        f"{name} {split.videos:,} videos" + (f" and {split.queries:,} queries" if name != SEARCH else "")
        for name, split in manifest.splits.items()
    )
    base, _, overlaps = manifest.protocol.partition(", ")
    own = [name for name in manifest.splits if name not in ("train", SEARCH)]
    protocol = {
        "own splits": f"{' and '.join(own)} as distributed" if own else "without captions",
        "dev": "val carved from train, test as distributed",
        "paper": "protocol paper: val IS test, as in the authors' release",
    }[base] + (f"; {overlaps}: see the notes" if overlaps else "")
    state = "already converted" if conversion.already_converted else "converted"
    return f"{out}: {state}: {counts} ({protocol})"


def _encoder_line(conversion: Conversion) -> str:
    manifest, area = conversion.manifest, conversion.encoder_area
    measured = (
        "" if area is None else f": a sentence resembles its own video more than another in {100 * area:.0f}% of pairs"
    )
    if manifest.video_size != manifest.text_size:
        measured = f": rows have {manifest.video_size} and {manifest.text_size} values"
    verdict = {
        True: "frames and queries are of one encoder",
        False: "frames and queries are not of one encoder",
        None: "whether frames and queries are of one encoder is not known",
    }[manifest.one_encoder]
    return f"{verdict}{measured}"


def _values(out: Path, conversion: Conversion) -> dict[str, object]:
    manifest = conversion.manifest
    return {
        "shards": str(out),
        "collection": manifest.collection,
        "features": manifest.features,
        "protocol": manifest.protocol,
        "dtype": manifest.dtype,
        "one_encoder": manifest.one_encoder,
        "splits": {name: {"videos": split.videos, "queries": split.queries} for name, split in manifest.splits.items()},
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "already_converted": conversion.already_converted,
        "kept_shards": conversion.kept_shards,
        "raw_bytes": conversion.progress.raw_bytes,
        "seconds": round(conversion.progress.seconds, 3),
    }


if __name__ == "__main__":
    command_line.run(main)
