"""`python -m dreamprvr_ray.evaluate`: retrieval of a checkpoint on a split."""

from __future__ import annotations

import sys

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.evaluation.test_record import described, evaluate_checkpoint
from dreamprvr_ray.storage.location import Storage


def main(arguments: list[str]) -> None:
    parser = Parser(
        "evaluate", "Evaluate a checkpoint directory, or a checkpoint file of the authors' release, on a split."
    )
    parser.add_argument("--checkpoint", required=True, help="its directory, URI, or file of the authors' release")
    parser.add_argument(
        "--shards", required=True, help="what `convert` wrote: a folder, or a URI as s3://bucket/shards"
    )
    parser.add_argument("--split", choices=("val", "test"), required=True)
    options = parser.parse_args(arguments)
    result = evaluate_checkpoint(
        Storage.of(options.checkpoint), local_shards(options.shards), options.split, _say_unrecorded
    )
    print("\n".join(described(result)))
    if options.json:
        print_json(result)


def _say_unrecorded(reason: str) -> None:
    print(
        f"warning: later readings of test will not count this one, which could not be recorded: {reason}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run(main)
