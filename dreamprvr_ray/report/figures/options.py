"""The options of `report --figures`. Imports no torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dreamprvr_ray.errors import UserError

_NAMES = ("checkpoint", "shards", "split", "without", "moments", "frame_captions", "query", "examples", "seed")


def add_figure_options(parser: ArgumentParser) -> None:
    """Add `--figures` and the options that belong to it."""
    group = parser.add_argument_group("figures of a checkpoint")
    group.add_argument(
        "--figures",
        action="store_true",
        help="write query embeddings by video (t-SNE) and the similarity of queries along their videos",
    )
    group.add_argument("--checkpoint", help="checkpoint directory or URI, or a checkpoint file of the authors' release")
    group.add_argument("--shards", help="output of `convert`: a directory or a URI like s3://bucket/shards")
    group.add_argument("--split", default="val", help="train or val (default: val)")
    group.add_argument(
        "--without",
        metavar="CHECKPOINT",
        help="a model trained with model.registers=0, to compare with (default: the encoder alone)",
    )
    group.add_argument(
        "--moments",
        type=Path,
        metavar="FILE.jsonl",
        help='moments in seconds: {"query", "video", "start", "end"}, and "duration" of the video if known',
    )
    group.add_argument(
        "--frame-captions",
        type=Path,
        metavar="FILE.jsonl",
        help="what frames show: [video, duration in seconds, [[start, end, caption], ...]]",
    )
    group.add_argument(
        "--query",
        action="append",
        default=[],
        metavar="TEXT",
        help="show the query with this id or these words; can be given several times (default: a random sample)",
    )
    group.add_argument("--examples", type=int, default=6, metavar="N", help="size of the sample (default: 6)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample and of t-SNE (default: 0)")


def first_figure_option(parser: ArgumentParser, options: Namespace) -> str | None:
    """Return the first option that belongs to `--figures` and has not its default value; None if there is no such."""
    changed = (name for name in _NAMES if getattr(options, name) != parser.get_default(name))
    return next((_flag(name) for name in changed), None)


def check_figure_options(parser: ArgumentParser, options: Namespace) -> None:
    """Raise `UserError` if an option that `--figures` needs is missing, or if there is one for something else."""
    if options.experiment is not None:
        raise UserError(f"{options.experiment}: --figures takes a checkpoint (--checkpoint) and not a search")
    for name in ("table", "format"):
        if getattr(options, name) is not None:
            raise UserError(f"{_flag(name)} and --figures exclude each other")
    if missing := [_flag(name) for name in ("checkpoint", "shards", "out") if getattr(options, name) is None]:
        parser.error(f"--figures needs {' and '.join(missing)}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
