"""`python -m dreamprvr_ray.report`: a search as one HTML file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.report.experiment import read_search
from dreamprvr_ray.report.page import write_report
from dreamprvr_ray.search.working_copy import downloaded
from dreamprvr_ray.storage.location import Storage, is_uri


def main(arguments: list[str]) -> None:
    parser = Parser("report", "Write a search, finished or not, as one HTML file that needs no network.")
    parser.add_argument("experiment", help="the search's directory or URI, what `tune --out` names")
    parser.add_argument(
        "--out", type=Path, help="the file to write (EXPERIMENT/report.html; report.html here for a search in a store)"
    )
    options = parser.parse_args(arguments)
    elsewhere = is_uri(options.experiment)
    out = options.out or Path("" if elsewhere else options.experiment) / "report.html"
    with (
        downloaded(Storage.of(options.experiment)) if elsewhere else nullcontext(Path(options.experiment)) as directory
    ):
        search = read_search(directory)
        shown = write_report(search, out)
    print(f"report: {out}")
    if options.json:
        print_json({"report": str(out), "trials": len(search.trials), "sections": shown})


if __name__ == "__main__":
    run(main)
