"""`python -m dreamprvr_ray.export`: copy a checkpoint for distribution, without its training state."""

from __future__ import annotations

from dreamprvr_ray.checkpoints.checkpoint import METRICS, export_checkpoint, model_encoding
from dreamprvr_ray.checkpoints.locate import check_checkpoint
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.encoding import ENCODING
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
    options = parser.parse_args(arguments)
    check_checkpoint(storage := Storage.of(options.checkpoint))
    with storage.local_directory() as checkpoint:
        metrics = export_checkpoint(checkpoint, options.out)
    script = options.out / "retrieve.py"
    print(
        f"{options.out}: epoch {metrics['epoch']}, val SumR {metrics['SumR']:.1f}; to find moments:"
        f" python -m dreamprvr_ray.index --model {options.out} ..., then python {script} INDEX SENTENCE"
    )
    encoding = model_encoding(metrics, METRICS)
    if encoding is not None:
        print(f"{options.out / ENCODING}: its videos are {encoding.describe()}")
    if options.json:
        values = {"out": str(options.out), "epoch": metrics["epoch"], "SumR": metrics["SumR"]}
        print_json(values | ({} if encoding is None else {"encoding": encoding.to_dict()}))


if __name__ == "__main__":
    run(main)
