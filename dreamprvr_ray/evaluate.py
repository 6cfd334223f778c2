"""`python -m dreamprvr_ray.evaluate`: retrieval of a checkpoint on a split."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.search.protocol import described, evaluate_checkpoint


def main(arguments: list[str]) -> None:
    parser = Parser("evaluate", "Evaluate a checkpoint directory, or a checkpoint file of the authors' release, on a split.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True, help="what `convert` wrote")
    parser.add_argument("--split", choices=("val", "test"), required=True)
    options = parser.parse_args(arguments)
    result = evaluate_checkpoint(options.checkpoint, ShardSet.open(options.shards), options.split)
    print("\n".join(described(result)))
    if options.json:
        print_json(result)


if __name__ == "__main__":
    run(main)
