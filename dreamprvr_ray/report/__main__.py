"""`python -m dreamprvr_ray.report`: write the report of a search."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.report.html_page import check_replaceable
from dreamprvr_ray.report.page import write_report
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.search.working_copy import downloaded
from dreamprvr_ray.storage.location import Storage, is_uri, local_file


def main(arguments: list[str]) -> None:
    parser = Parser(
        "report", "Report on a search as one HTML file that works offline. The search may still be running."
    )
    parser.add_argument("experiment", help="directory or URI of the search, as given to `tune --out`")
    parser.add_argument(
        "--out",
        type=local_file,
        help="file to write (default: EXPERIMENT/report.html, or ./report.html if EXPERIMENT is a URI)",
    )
    options = parser.parse_args(arguments)
    remote = is_uri(options.experiment)
    out = options.out or Path("" if remote else options.experiment) / "report.html"
    with downloaded(Storage.of(options.experiment)) if remote else nullcontext(Path(options.experiment)) as directory:
        check_replaceable(out)
        search = read_search(directory)
        sections = write_report(search, out)
    print(f"report: {out}")
    if options.json:
        print_json({"report": str(out), "trials": len(search.trials), "sections": sections})


if __name__ == "__main__":
    run(main)
