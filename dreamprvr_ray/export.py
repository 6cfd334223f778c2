"""`python -m dreamprvr_ray.export`: copy a checkpoint for distribution, without its training state."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.checkpoints.checkpoint import METRICS, check_new_export, export_checkpoint, model_encoding
from dreamprvr_ray.checkpoints.locate import check_checkpoint
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.encoding import ENCODING
from dreamprvr_ray.index.calibration import CALIBRATION, Calibration
from dreamprvr_ray.storage.files import writing
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
    check_checkpoint(storage := Storage.of(options.checkpoint))
    calibration = None if options.shards is None else _calibrate(storage, options.shards, options.out)
    with storage.local_directory() as checkpoint:
        metrics = export_checkpoint(checkpoint, options.out)
    if calibration is not None:
        with writing(options.out):
            calibration.write(options.out)
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


def _calibrate(checkpoint: Storage, location: str, out: Path) -> Calibration:
    """Return the calibration of a checkpoint by the val split of shards."""
    from dreamprvr_ray.evaluation.test_record import load_fitting_model
    from dreamprvr_ray.index.calibrating import calibrate

    check_new_export(out)
    shards = local_shards(location)
    trained = load_fitting_model(checkpoint, shards)
    print_progress("calibrating: scoring the queries of val")
    return calibrate(trained, shards, str(checkpoint))


if __name__ == "__main__":
    run(main)
