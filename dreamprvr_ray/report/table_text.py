"""A table of results as Markdown or LaTeX, with rows as papers print them. The best value of each column is bold."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Literal

from dreamprvr_ray.errors import PATH_ERRORS, Failure, UserError
from dreamprvr_ray.report.formatting import format_count
from dreamprvr_ray.report.latex_text import escape_latex, one_line, unknown_to_pdflatex
from dreamprvr_ray.report.table_rows import COLUMNS, MOMENT_COLUMNS, Group, Row
from dreamprvr_ray.storage.files import write_text

Format = Literal["markdown", "latex"]
FORMATS: tuple[Format, ...] = ("markdown", "latex")
_MARK = "Written by dreamprvr_ray.report --table"  # on the first line; files without it are not replaced
_TITLE_WIDTHS = {False: 76, True: 110}  # characters, by whether there are seeds; more would widen the last column


def to_markdown(groups: Sequence[Group]) -> str:
    """Return a table in Markdown for each group."""
    parts = [f"<!-- {_MARK} -->"]
    for group in groups:
        heads, rows = _cells(group, groups, escape_markdown, lambda text: f"**{text}**", lambda text: f" ± {text}")
        lines = [heads, [":--", *["--:"] * (len(heads) - 1)], *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{escape_markdown(describe(group))}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def to_latex(groups: Sequence[Group]) -> str:
    """Return one table in LaTeX for the package booktabs, with a part for each group."""
    lines: list[str] = []
    for group in groups:
        heads, rows = _cells(
            group,
            groups,
            escape_latex,
            lambda text: f"\\textbf{{{text}}}",
            lambda text: f" {{\\scriptsize$\\pm$ {text}}}",
        )
        if not lines:
            lines += [f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule", f"{' & '.join(heads)} \\\\"]
        titles = [
            f"\\multicolumn{{{len(heads)}}}{{l}}{{\\emph{{{escape_latex(line)}}}}} \\\\"
            for line in wrap(describe(group), _TITLE_WIDTHS["seeds" in heads])
        ]
        lines += [r"\midrule", *titles, r"\midrule", *(f"{' & '.join(row)} \\\\" for row in rows)]
    text = "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
    needs = f"% {_MARK}. Needs \\usepackage{{booktabs}}."
    if unknown := unknown_to_pdflatex(text):
        needs += f"\n% pdfLaTeX does not know {unknown}: use XeLaTeX or LuaLaTeX with a font that has them."
    return f"{needs}\n{text}"


def describe(group: Group) -> str:
    """Return what a group's results were measured on, in plain text."""
    setting = group.setting
    size = f": {format_count(setting.queries, 'query')}, {format_count(setting.videos, 'video')}"
    where = f"{setting.split} of {setting.collection or 'an unknown collection'}{size if setting.queries else ''}"
    notes = [setting.protocol or "unknown protocol"]
    if setting.split == "val":
        notes.append("epochs chosen on it")
    if any(len(row.recalls) > 1 for row in group.rows):
        notes.append("± standard deviation over seeds")
    return f"{where} ({'; '.join(notes)})"


def write_table(groups: Sequence[Group], form: Format, out: Path | None = None) -> str:
    """Return the table as text, and write it atomically to `out`.

    Raises `UserError` if `out` is not a table that was written here, or cannot be written; `Failure` if the disk is
    full.
    """
    text = to_latex(groups) if form == "latex" else to_markdown(groups)
    if out is not None:
        check_replaceable(out)
        try:
            write_text(out, text)
        except OSError as error:
            message = f"{out}: cannot be written: {error.strerror or error}"
            raise (UserError if error.errno in PATH_ERRORS else Failure)(message) from None
    return text


def check_replaceable(out: Path) -> None:
    """Raise `UserError` if there is anything at `out` that is not a table, which is the only thing to be replaced."""
    try:
        if not os.path.lexists(out):
            return
        with out.open("rb") as file:
            start = file.read(len(_MARK) + 10)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    if _MARK.encode() not in start:
        raise UserError(f"{out}: already exists and is not such a table; choose another --out or remove it")


def escape_markdown(text: str) -> str:
    """Return plain text as Markdown that shows it, also in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", one_line(text))


def _cells(
    group: Group,
    groups: Sequence[Group],
    escape: Callable[[str], str],
    bold: Callable[[str], str],
    plus_minus: Callable[[str], str],
) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of a group. All groups have the same columns."""
    has_seeds = any(len(row.recalls) > 1 for other in groups for row in other.rows)
    has_moments = any(len(row.columns) > len(COLUMNS) for other in groups for row in other.rows)
    columns = (*COLUMNS, *(MOMENT_COLUMNS if has_moments else ()))
    means = {column: [f"{row.mean(column):.1f}" for row in group.rows if column in row.columns] for column in columns}
    best = {column: max(texts, key=float) if len(texts) > 1 else None for column, texts in means.items()}

    def cell(row: Row, column: str) -> str:
        if column not in row.columns:
            return "-"
        mean, deviation = f"{row.mean(column):.1f}", row.deviation(column)
        shown = bold(mean) if mean == best[column] else mean
        return shown if deviation is None else f"{shown}{plus_minus(f'{deviation:.1f}')}"

    rows = [
        [
            escape(row.name),
            *(cell(row, column) for column in columns),
            *(["-" if row.is_zero_shot else str(len(row.recalls))] if has_seeds else []),
            "-" if row.is_zero_shot else _format_parameters(row.parameters),
        ]
        for row in group.rows
    ]
    return [
        "model",
        *(escape(column.replace(">=", " ≥ ")) for column in columns),
        *(["seeds"] if has_seeds else []),
        "parameters (M)",
    ], rows


def _format_parameters(parameters: int | None) -> str:
    if parameters is None:
        return "?"
    return f"{parameters / 1e6:.2f}" if parameters >= 100_000 else f"{parameters / 1e6:.3f}"
