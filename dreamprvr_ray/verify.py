"""`python -m dreamprvr_ray.verify`: this machine's numbers against recorded ones.

GOLDEN is a directory of the layout of `tests/golden`, which its README describes; without one, the project's own copy is read. Each row
names a check, its worst deviation and the tolerance; the command exits with 1 where any is out. On CUDA, TF32 is off and the tolerances
are ten times as wide (conversion runs on the CPU everywhere).
"""

from __future__ import annotations

from pathlib import Path

import torch

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.training.golden import verify

OWN_GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def main(arguments: list[str]) -> int:
    parser = Parser(
        "verify", "Compare this machine's numbers with recorded ones; exit with 1 where any is out of tolerance."
    )
    parser.add_argument(
        "golden",
        type=Path,
        nargs="?",
        metavar="GOLDEN",
        help="recorded numbers, laid out as tests/golden (default: those)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.golden is None and not OWN_GOLDEN.is_dir():
        raise UserError(
            "GOLDEN is not given, and the package is installed without the project's tests/golden: name a directory laid out like it"
        )
    checks = verify(options.golden or OWN_GOLDEN, torch.device(options.device))
    width = max(len(check.name) for check in checks)
    print(f"{'check':<{width}}  {'deviation':>9}  {'tolerance':>9}")
    for check in checks:
        kind = "relative" if check.relative else "absolute"
        print(
            f"{check.name:<{width}}  {check.deviation:>9.1e}  {check.tolerance:>9.0e} {kind}  {'ok' if check.within else 'FAIL'}"
        )
    failed = sum(not check.within for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks are within their tolerance on {options.device}")
    if options.json:
        print_json({"ok": not failed, "device": options.device, "checks": [check.to_dict() for check in checks]})
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
