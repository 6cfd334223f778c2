"""`python -m benchmarks.fuzz_inputs`."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.fuzz_inputs.correct_files import write_base
from benchmarks.fuzz_inputs.kinds import KINDS
from benchmarks.fuzz_inputs.trying import try_many
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run


def main(arguments: list[str]) -> int:
    parser = Parser("fuzz_inputs", "Give the commands bad inputs of all kinds, and count what happens.", "benchmarks")
    parser.add_argument("--inputs", type=int, default=2000, help="number of inputs (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first input (default: 0)")
    parser.add_argument("--processes", type=int, default=2, help="number of inputs at a time (default: 2)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of inputs (default: all)")
    parser.add_argument("--minutes", type=float, default=120.0, help="start no input after this time (default: 120)")
    options = parser.parse_args(arguments)
    started, counts, codes = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="dreamprvr-fuzz-") as name:
        folder = Path(name)
        write_base(folder / "base")
        first, last = options.seed * options.inputs, (options.seed + 1) * options.inputs
        parts = [(n, min(n + 10, last), options.kinds, folder / "base", folder) for n in range(first, last, 10)]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.processes, mp_context=spawn) as pool:
            for outcomes in pool.map(try_many, parts):
                for outcome in outcomes:
                    codes[str(outcome.code)] += 1
                    counts.update(outcome.faults)
                    if outcome.faults:
                        print_progress(f"{', '.join(outcome.faults)}: {outcome.kind}: {outcome.words!r:.600}")
                        print_progress(f"  {outcome.output[-700:]!r} {outcome.changed}")
                if time.monotonic() - started > 60 * options.minutes:
                    pool.shutdown(cancel_futures=True)
                    break
    result = {"inputs": codes.total(), "seconds": round(time.monotonic() - started), "exit codes": dict(codes)}
    names = ("tracebacks", "bugs", "hangs", "changed files", "executed canaries", "printed canaries")
    result |= dict.fromkeys(names, 0) | dict(counts)
    print(", ".join(f"{name}: {value}" for name, value in result.items()))
    if options.json:
        print_json(result)
    return 1 if counts else 0


if __name__ == "__main__":
    run(main)
