"""`python -m dreamprvr_ray.verify`: compare this machine's numbers with recorded ones.

GOLDEN is a directory laid out like `tests/golden`, whose README describes it. Each line of the table is a check with
its worst deviation and its tolerance. On CUDA, TF32 is off and tolerances are ten times as wide, except for conversion,
which always runs on the CPU. The exit code is 1 if any check is out of tolerance.
"""

from __future__ import annotations

import torch

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.storage.location import local_file
from dreamprvr_ray.training.golden import format_checks, verify


def main(arguments: list[str]) -> int:
    parser = Parser(
        "verify", "Compare this machine's numbers with recorded ones. Exits with 1 if any is out of tolerance."
    )
    parser.add_argument(
        "golden",
        type=local_file,
        nargs="?",
        metavar="GOLDEN",
        help="directory with recorded numbers, laid out like tests/golden (default: the project's own)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to verify (cpu)")
    options = parser.parse_args(arguments)
    checks = verify(options.golden, torch.device(options.device))
    failed = sum(not check.within for check in checks)
    print("\n".join(format_checks(checks)))
    print(f"{len(checks) - failed} of {len(checks)} checks are within their tolerance on {options.device}")
    if options.json:
        print_json({"ok": not failed, "device": options.device, "checks": [check.to_dict() for check in checks]})
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
