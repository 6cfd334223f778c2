"""`python -m dreamprvr_ray.report`: a search as one HTML file."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.report.experiment import read_search
from dreamprvr_ray.report.page import write_report


def main(arguments: list[str]) -> None:
    parser = Parser("report", "Write a search, finished or not, as one HTML file that needs no network.")
    parser.add_argument("experiment", type=Path, help="the search's directory, what `tune --out` names")
    parser.add_argument("--out", type=Path, help="the file to write (EXPERIMENT/report.html)")
    options = parser.parse_args(arguments)
    search = read_search(options.experiment)
    out = options.out or options.experiment / "report.html"
    shown = write_report(search, out)
    print(f"report: {out}")
    if options.json:
        print_json({"report": str(out), "trials": len(search.trials), "sections": shown})


if __name__ == "__main__":
    run(main)
