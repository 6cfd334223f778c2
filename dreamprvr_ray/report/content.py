"""The parts that sections consist of: HTML fragments, charts, and notes about what is not shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from dreamprvr_ray.report.parameters import SearchedParameter


@dataclass(frozen=True)
class Chart:
    """A figure with a caption below it."""

    figure: go.Figure
    caption: str = ""


@dataclass(frozen=True)
class ChartGrid:
    """Charts side by side, each below a heading in HTML: small ones in a row or, if `wide`, two of them."""

    charts: tuple[tuple[str, Chart], ...]
    wide: bool = False


Tile = tuple[str, str]  # a number and its description
Part = str | Chart | ChartGrid  # a string is HTML


@dataclass(frozen=True)
class Section:
    """A section of the page. Empty parts are left out."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Omission:
    """What the page does not show, and why."""

    reason: str


def with_omissions(contents: Iterable[Section | Omission | None]) -> list[Section]:
    """Return the sections, followed by one that lists what is not shown if there is anything."""
    contents = list(contents)
    sections = [content for content in contents if isinstance(content, Section)]
    if omissions := [content for content in contents if isinstance(content, Omission)]:
        items = "".join(f"<li>{escape(omission.reason)}</li>" for omission in omissions)
        sections.append(Section("Not shown", (f"<ul>{items}</ul>",)))
    return sections


def paragraph(text: str, soft: bool = False) -> str:
    """Return a paragraph of plain text; `soft` sets it smaller and grey."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>" if text else ""


def tile_row(tiles: Iterable[Tile]) -> str:
    """Return tiles in a row, each a number above its description."""
    html = "".join(
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(text)}</span></div>' for number, text in tiles
    )
    return f'<div class="tiles">{html}</div>'


def code(text: str) -> str:
    """Return a block of preformatted text."""
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, body: str) -> str:
    """Return HTML that is folded away behind a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def parameter_name(parameter: SearchedParameter) -> str:
    """Return a parameter's name, with its full key as a tooltip."""
    return f'<abbr title="{escape(parameter.key)}">{escape(parameter.name)}</abbr>'


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    row_classes: Sequence[str] = (),
    text_columns: Sequence[int] = (0,),
) -> str:
    """Return a table of cells in HTML. Columns of text are set flush left, and the last of them may wrap."""
    column_classes = dict.fromkeys(text_columns, ' class="words"')
    if text_columns and text_columns[-1] > 1:
        column_classes[text_columns[-1]] = ' class="words long"'

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{column_classes.get(column, '')}>{cell}</{tag}>" for column, cell in enumerate(row))

    body = []
    for place, row in enumerate(rows):
        row_class = f' class="{row_classes[place]}"' if row_classes and row_classes[place] else ""
        body.append(f"<tr{row_class}>{cells('td', row)}</tr>")
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{"".join(body)}</tbody></table></div>'
