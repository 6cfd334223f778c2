"""`python -m dreamprvr_ray.export`: copy a checkpoint for distribution, without its training state."""

from __future__ import annotations

from dreamprvr_ray.checkpoints.checkpoint import METRICS, check_new_export, model_encoding
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.encoding import ENCODING
from dreamprvr_ray.index.calibration import CALIBRATION
from dreamprvr_ray.index.exporting import export_model
from dreamprvr_ray.storage.location import Storage, local_folder


def main(arguments: list[str]) -> None:
    parser = Parser(
        "export",
        "Copy a checkpoint without the files that only training needs, and add a README and a script that retrieves.",
    )
    parser.add_argument(
        "--checkpoint", required=True, help="checkpoint directory or URI, such as OUT/best of train and tune"
    )
    parser.add_argument("--out", type=local_folder, required=True, help="directory to create")
    parser.add_argument(
        "--shards",
        help="shards with the model's val split: also write calibration.json, by which a search knows how probable it"
        " is that a collection holds what a sentence describes at all",
    )
    options = parser.parse_args(arguments)
    shards = None
    if options.shards is not None:
        check_new_export(options.out)
        shards = local_shards(options.shards)
        print_progress("scoring the queries of val to calibrate searches")
    metrics, calibration = export_model(Storage.of(options.checkpoint), options.out, shards)
    script = options.out / "retrieve.py"
    print(
        f"{options.out}: epoch {metrics['epoch']}, val SumR {metrics['SumR']:.1f}; to find moments:"
        f" python -m dreamprvr_ray.index --model {options.out} ..., then python {script} INDEX SENTENCE"
    )
    encoding = model_encoding(metrics, METRICS)
    if encoding is not None:
        print(f"{options.out / ENCODING}: its videos are {encoding.describe()}")
    if calibration is not None:
        print(f"{options.out / CALIBRATION}: learned from {calibration.source.queries:,} queries of val;")
        print("\n".join(f"  {line}" for line in calibration.lines()))
    if options.json:
        values = {"out": str(options.out), "epoch": metrics["epoch"], "SumR": metrics["SumR"]}
        values |= {} if calibration is None else {"calibration": calibration.to_dict()}
        print_json(values | ({} if encoding is None else {"encoding": encoding.to_dict()}))


if __name__ == "__main__":
    run(main)
