"""`python -m dreamprvr_ray.report`: the report of a search, a table of results, or the figures of a checkpoint."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.ablation_page import is_ablation_table, read_ablations, write_ablation_report
from dreamprvr_ray.report.figures.options import add_figure_options, check_figure_options, first_figure_option
from dreamprvr_ray.report.html_page import check_replaceable
from dreamprvr_ray.report.page import write_report
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.search.working_copy import downloaded
from dreamprvr_ray.storage.location import Storage, is_uri, local_file


def main(arguments: list[str]) -> None:
    parser = Parser(
        "report",
        "Report on a search as one HTML file that works offline. The search may still be running. With --table: a table"
        " of the recorded results of any models, runs and searches. With --figures: the paper's figures of a"
        " checkpoint.",
    )
    parser.add_argument("experiment", nargs="?", help="directory or URI of the search, as given to `tune --out`")
    parser.add_argument(
        "--table",
        nargs="+",
        metavar="[NAME=]LOCATION",
        help="checkpoints, runs (`train --out`) and searches (`tune --out`): directories or URIs. Runs with the same"
        " NAME are seeds of one model. The results are those recorded on test or, if test was never evaluated, those"
        " on val",
    )
    parser.add_argument("--format", choices=("markdown", "latex"), help="of the table (default: markdown)")
    parser.add_argument(
        "--out",
        type=local_file,
        help="file to write (default: EXPERIMENT/report.html, or ./report.html if EXPERIMENT is a URI; a table is"
        " printed; --figures needs it)",
    )
    add_figure_options(parser)
    options = parser.parse_args(arguments)
    if options.figures:
        check_figure_options(parser, options)
        _write_figures(options)
        return
    if (name := first_figure_option(parser, options)) is not None:
        raise UserError(f"{name} is for --figures")
    if options.table is not None:
        if options.experiment is not None:
            raise UserError(f"{options.experiment}: give it after --table, or without --table for its report")
        _write_table(options)
        return
    if options.experiment is None:
        parser.error("the following arguments are required: experiment")
    if options.format is not None:
        raise UserError("--format is for --table")
    _write_report(options)


def _write_report(options: argparse.Namespace) -> None:
    remote = is_uri(options.experiment)
    out = options.out or Path("" if remote else options.experiment) / "report.html"
    with downloaded(Storage.of(options.experiment)) if remote else nullcontext(Path(options.experiment)) as directory:
        check_replaceable(out)
        if is_ablation_table(directory):
            table = read_ablations(directory)
            sections, size = write_ablation_report(table, out), {"rows": len(table.rows)}
        else:
            search = read_search(directory)
            sections, size = write_report(search, out), {"trials": len(search.trials)}
    print(f"report: {out}")
    if options.json:
        print_json({"report": str(out)} | size | {"sections": sections})


def _write_table(options: argparse.Namespace) -> None:
    # They import torch, for the number of parameters; the report of a search needs none.
    from dreamprvr_ray.report.table_rows import read_groups
    from dreamprvr_ray.report.table_text import check_replaceable, write_table

    if options.out is not None:
        check_replaceable(options.out)
    groups = read_groups(options.table)
    text = write_table(groups, options.format or "markdown", options.out)
    print(text.rstrip("\n") if options.out is None else f"table: {options.out}")
    if options.json:
        out = None if options.out is None else str(options.out)
        print_json({"table": out, "groups": [group.to_dict() for group in groups]})


def _write_figures(options: argparse.Namespace) -> None:
    # They import torch, as those of a table.
    from dreamprvr_ray.data.cache import local_shards
    from dreamprvr_ray.report.figures.page import write_figures
    from dreamprvr_ray.report.figures.record import FigureSettings

    settings = FigureSettings(
        split=options.split,
        without=Storage.of(options.without) if options.without else None,
        moments=options.moments,
        frame_captions=options.frame_captions,
        queries=tuple(options.query),
        examples=options.examples,
        seed=options.seed,
    )
    check_replaceable(options.out)
    shards = local_shards(options.shards)
    record = write_figures(Storage.of(options.checkpoint), shards, options.out, settings, print_progress)
    print("\n".join([f"figures: {options.out}", *record.lines()]))
    if options.json:
        print_json({"figures": str(options.out), **record.to_dict()})


if __name__ == "__main__":
    run(main)
