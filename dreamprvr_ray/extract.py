"""The command that turns videos and sentences into features.

    python -m dreamprvr_ray.extract --videos DIR --captions FILE --encoder ENCODER --out SOURCE

writes a source tree that `convert` reads; docs/videos.md describes it. An extraction that was stopped or killed is
resumed by running the same command again.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from dreamprvr_ray import command_line
from dreamprvr_ray.errors import UserError, redact_uri
from dreamprvr_ray.storage.location import local_file, local_folder

if TYPE_CHECKING:
    from dreamprvr_ray.runtime.extraction import Extraction
    from dreamprvr_ray.runtime.extraction_progress import ExtractionProgress

LINE_SECONDS = 5.0  # between two lines of progress if stderr is not a terminal


def main(arguments: list[str]) -> None:
    """Run the command. Raises `UserError` for mistakes, and `Failure` if no video could be encoded."""
    options = _parser().parse_args(arguments)
    from dreamprvr_ray.runtime.extraction import extract
    from dreamprvr_ray.runtime.extraction_settings import ExtractionSettings
    from dreamprvr_ray.video.captions import parse_columns
    from dreamprvr_ray.video.extracted_source import SplitSettings
    from dreamprvr_ray.video.tree_files import local_source
    from dreamprvr_ray.video.windows import WindowSettings

    if options.columns and options.captions is None:
        raise UserError("--columns: names the columns of --captions, which is missing")
    settings = ExtractionSettings(
        videos=options.videos,
        out=options.out,
        encoder=options.encoder,
        captions=options.captions,
        columns=parse_columns(options.columns),
        skip_missing=options.skip_missing,
        sentence_encoder=options.sentence_encoder,
        collection=options.collection,
        fps=options.fps,
        windows=WindowSettings(options.window, options.overlap),
        splits=SplitSettings(options.val_fraction, options.test_fraction, options.seed),
        workers=options.workers,
    )
    try:
        extraction = extract(settings, command_line.print_progress, display := Display())
    except KeyboardInterrupt:
        command_line.print_progress(
            f"\nstopped; what is encoded remains in {redact_uri(options.out)}: run the same command again to resume"
        )
        raise
    for note in extraction.notes:
        command_line.print_progress(note if note.startswith("warning: ") else f"note: {note}")
    if options.shards is not None:
        from dreamprvr_ray import convert

        with local_source(options.out, extraction.files) as folder:
            words = ["--source", str(folder), "--collection", extraction.collection, "--out", str(options.shards)]
            convert.main([*words, "--workers", str(options.workers)] if options.workers else words)
    print(_summary(redact_uri(options.out), extraction))
    if options.json:
        command_line.print_json(_values(options, extraction, display.last))


def _parser() -> command_line.Parser:
    parser = command_line.Parser("extract", "Decode and encode videos and sentences, and write what `convert` reads.")
    parser.add_argument(
        "--videos", type=local_folder, required=True, metavar="DIR", help="directory with videos, also in directories"
    )
    parser.add_argument(
        "--captions",
        type=local_file,
        metavar="FILE",
        help="sentences: CSV, TSV or JSON lines with video, sentence, and optionally start, end and split;"
        " without it, the collection can be searched only",
    )
    parser.add_argument(
        "--encoder",
        required=True,
        help="encoder of frames, and of sentences if it encodes both, such as open_clip:ViT-B-32/laion2b_s34b_b79k;"
        " a directory as in open_clip:./model; or module:Class for your own",
    )
    parser.add_argument("--sentence-encoder", metavar="ENCODER", help="encoder of sentences, if not the same")
    parser.add_argument("--out", required=True, metavar="SOURCE", help="directory to write, or a URI such as s3://...")
    parser.add_argument("--collection", metavar="NAME", help="the collection's name (default: the last part of SOURCE)")
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second of video (default: 1)")
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="cut longer videos into overlapping windows of this length, each retrieved separately",
    )
    parser.add_argument(
        "--overlap", type=float, metavar="SECONDS", help="that two windows share (default: half a window)"
    )
    parser.add_argument(
        "--columns",
        action="extend",
        nargs="+",
        default=[],
        metavar="WHAT=COLUMN",
        help="column of video, sentence, start, end or split, if its name does not say so, as in sentence=text_en",
    )
    parser.add_argument("--skip-missing", action="store_true", help="leave out captions of videos that do not exist")
    parser.add_argument(
        "--val-fraction", type=float, default=0.1, help="fraction of captioned videos for val (default: 0.1)"
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.2, help="fraction of captioned videos for test (default: 0.2)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for drawing them, unless the captions have splits (default: 0)"
    )
    parser.add_argument(
        "--shards", type=local_folder, metavar="OUT", help="also convert SOURCE, to shards in this directory"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes that decode, and without GPUs of those that encode (default: one per CPU of Ray)",
    )
    return parser


class Display:
    """Prints progress to stderr: a line that is updated in place on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = 0.0
        self.last: ExtractionProgress | None = None

    def __call__(self, progress: ExtractionProgress) -> None:
        self.last = progress
        finished = progress.videos + progress.failed >= progress.all_videos
        if not finished and time.monotonic() - self._printed < (0.2 if self._terminal else LINE_SECONDS):
            return
        self._printed = time.monotonic()
        line = _progress_line(progress)
        if self._terminal:
            print(f"\r{line:<100}", end="\n" if finished else "", file=sys.stderr, flush=True)
        else:
            command_line.print_progress(line)


def _progress_line(progress: ExtractionProgress) -> str:
    seconds = max(progress.elapsed, 1e-9)
    left = "time left unknown" if progress.left is None else f"{progress.left:,.0f} s left"
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    return (
        f"{progress.videos:,}/{progress.all_videos:,} videos{failed}, {progress.encoded / seconds:,.2f} videos/s,"
        f" {progress.seconds_of_video / seconds:,.1f} s of video/s, {left}"
    )


def _summary(out: str, extraction: Extraction) -> str:
    counts, failures = extraction.counts, extraction.failures
    windows = f" in {counts.windows:,} windows" if counts.windows != counts.videos else ""
    captions = sum(counts.captions.values())
    parts = [f"{counts.videos:,} of {extraction.videos:,} videos{windows}, {counts.seconds:,.0f} s"]
    parts += [f"{captions:,} captions" if captions else "no captions: to be searched only"]
    if failures:
        named = ", ".join(f"{file} ({why})" for file, why in sorted(failures.items())[:3])
        more = f", and {len(failures) - 3:,} more" if len(failures) > 3 else ""
        parts.append(f"{len(failures):,} failed, see failures.jsonl: {named}{more}")
    dropped = {
        "of failed videos": extraction.failed_captions,
        "of missing videos": extraction.missing_captions,
        "after the end of their videos": counts.dropped_captions,
    }
    left_out = [f"{count:,} {what}" for what, count in dropped.items() if count]
    if left_out:
        parts.append(f"captions left out: {', '.join(left_out)}")
    state = "already extracted" if extraction.already_extracted else "extracted"
    return f"{out}: {state}: {'; '.join(parts)}"


def _values(options: object, extraction: Extraction, progress: ExtractionProgress | None) -> dict[str, object]:
    counts = extraction.counts
    return {
        "source": redact_uri(str(getattr(options, "out", ""))),
        "collection": extraction.collection,
        "shards": None if getattr(options, "shards", None) is None else str(getattr(options, "shards", "")),
        "encoding": extraction.encoding.to_dict(),
        "videos": counts.videos,
        "windows": counts.windows,
        "seconds_of_video": round(counts.seconds, 3),
        "captions": counts.captions,
        "encoded_now": extraction.encoded,
        "failures": dict(extraction.failures),
        "captions_left_out": {
            "failed": extraction.failed_captions,
            "missing": extraction.missing_captions,
            "after_end": counts.dropped_captions,
        },
        "warnings": counts.warnings,
        "already_extracted": extraction.already_extracted,
        "seconds": None if progress is None else round(progress.elapsed, 3),
    }


if __name__ == "__main__":
    command_line.run(main)
