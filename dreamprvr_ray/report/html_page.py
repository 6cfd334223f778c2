"""A page of sections as one HTML file, and the rule that such a file replaces another one only.

The page makes no requests, which its Content-Security-Policy enforces: plotly.js and the styles are part of the file.
plotly.js is compressed in it, a third of its 4.8 MB; the browser unpacks it before it draws the charts.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import plotly.io
from plotly.offline import get_plotlyjs

import dreamprvr_ray
from dreamprvr_ray.errors import PATH_ERRORS, Failure, UserError
from dreamprvr_ray.report.content import Chart, ChartGrid, Part, Section
from dreamprvr_ray.storage.files import write_text

# What a file that may be replaced has near its start: the template's own mark, or the policy that version 0.1.0 wrote.
_REPORT_MARKS = (
    b'<meta name="generator" content="dreamprvr_ray report">',
    b"""content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">""",
)
_START_BYTES = 1000
# Of plotly's buttons only the camera, which appears under the pointer and saves a chart as SVG.
_CONFIG = {
    "responsive": True,
    "modeBarButtons": [["toImage"]],
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
}


_PLOTLY = """<script id="plotly-source" type="text/plain">$source</script>
<script>
const plotly = (async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly-source").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
})();
plotly.catch(() => {
  for (const chart of document.querySelectorAll(".plotly-graph-div")) {
    chart.textContent = "This browser cannot draw the chart; one of 2023 or later can.";
  }
});
</script>"""


def write_page(out: Path, title: str, about: str, sections: Sequence[Section]) -> None:
    """Write a page atomically. `title` and `about`, a line below it, are plain text.

    Raises `UserError` if `out` exists and is not a report, or cannot be written; `Failure` if the disk is full.
    """
    check_replaceable(out)
    try:
        write_text(out, render_page(title, about, sections))
    except OSError as error:
        message = f"{out}: cannot be written: {error.strerror or error}"
        raise (UserError if error.errno in PATH_ERRORS else Failure)(message) from None


def check_replaceable(out: Path) -> None:
    """Raise `UserError` if there is anything at `out` that is not a report, which is the only thing to be replaced."""
    try:
        if not os.path.lexists(out):
            return
        if not out.is_file():
            raise UserError(f"{out}: already exists and is not a file; choose another --out")
        with out.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    except ValueError:  # of Python, for NUL in a path
        raise UserError(f"{str(out)!r}: not a valid path") from None
    if not any(mark in start for mark in _REPORT_MARKS):
        raise UserError(f"{out}: already exists and is not a report; choose another --out or remove it")


def render_page(title: str, about: str, sections: Sequence[Section]) -> str:
    """Return a page as HTML. `title` and `about` are plain text."""
    charts = ChartRenderer()
    bodies, links = [], []
    for place, section in enumerate(sections):
        anchor, heading = f"section-{place}", escape(section.title)
        body = "\n".join(charts.render(part) for part in section.parts if part)
        links.append(f'<a href="#{anchor}">{heading}</a>')
        bodies.append(f'<section id="{anchor}"><h2>{heading}</h2>\n{body}\n</section>')
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    written = f"Report written on {now} by dreamprvr_ray {dreamprvr_ray.__version__}."
    package = files("dreamprvr_ray.report")
    return Template((package / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(package / "style.css").read_text(encoding="utf-8"),
        script=_plotly_script() if charts.count else "",
        about=escape(f"{about} {written}"),
        links=" ".join(links),
        sections="\n".join(bodies),
    )


def _plotly_script() -> str:
    """Return the elements that hold plotly.js and run it; `plotly` in them is a promise that it is there."""
    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)  # without a time, equal reports are equal files
    return Template(_PLOTLY).substitute(source=base64.b64encode(packed).decode())


class ChartRenderer:
    """Renders parts of sections as HTML, and numbers the charts among them."""

    def __init__(self) -> None:
        self.count = 0

    def render(self, part: Part) -> str:
        """Return a part as HTML."""
        if isinstance(part, Chart):
            return self._render_chart(part)
        if isinstance(part, ChartGrid):
            cells = (f"<div><h3>{heading}</h3>{self._render_chart(chart)}</div>" for heading, chart in part.charts)
            return f'<div class="slices{" wide-slices" if part.wide else ""}">{"".join(cells)}</div>'
        return part

    def _render_chart(self, chart: Chart) -> str:
        self.count += 1
        height = chart.figure.layout.height
        html = plotly.io.to_html(
            chart.figure,
            include_plotlyjs=False,
            full_html=False,
            default_height=f"{height}px",
            div_id=f"figure-{self.count}",
            config={**_CONFIG, "toImageButtonOptions": {"format": "svg", "filename": f"figure-{self.count}"}},
        )
        # plotly.js is not there before it is unpacked.
        html = re.sub(r"<script\b[^>]*>", "<script>plotly.then(() => {", html).replace("</script>", "});</script>")
        caption = f"<figcaption>{escape(chart.caption)}</figcaption>" if chart.caption else ""
        return f'<figure><div style="height:{height}px">{html}</div>{caption}</figure>'
