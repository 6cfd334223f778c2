"""`python -m dreamprvr_ray.evaluate`: evaluate a checkpoint's retrieval on a split."""

from __future__ import annotations

from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.storage.location import Storage


def main(arguments: list[str]) -> None:
    parser = Parser(
        "evaluate", "Evaluate the retrieval of a checkpoint on a split. Every evaluation on test is recorded with it."
    )
    parser.add_argument(
        "--checkpoint", required=True, help="checkpoint directory or URI, or a checkpoint file of the authors' release"
    )
    parser.add_argument(
        "--shards", required=True, help="output of `convert`: a directory or a URI like s3://bucket/shards"
    )
    parser.add_argument("--split", choices=("val", "test"), required=True, help="split to evaluate on")
    options = parser.parse_args(arguments)
    evaluation = evaluate_checkpoint(
        Storage.of(options.checkpoint), local_shards(options.shards), options.split, _warn_unrecorded
    )
    print("\n".join(evaluation.lines()))
    if options.json:
        print_json(evaluation.to_dict())


def _warn_unrecorded(reason: str) -> None:
    print_progress(f"warning: this test evaluation could not be recorded: {reason}")


if __name__ == "__main__":
    run(main)
