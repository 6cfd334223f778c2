"""The report as one HTML page: sections with their tables and figures, and in words what there is too little data to show.

The page forbids itself every request (Content-Security-Policy); plotly.js stands in it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

import dreamprvr_ray
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report import final_pictures, pictures, reproduce
from dreamprvr_ray.report.experiment import Axis, SearchRecord, Trial
from dreamprvr_ray.report.formatting import counted, duration, short, signed, sumr
from dreamprvr_ray.report.importance import ENDED_NEEDED, FINISHED_NEEDED, Importance, importances, usual_range
from dreamprvr_ray.report.summary import PROTOCOLS, candidate_name, cut_off, status, summary
from dreamprvr_ray.storage.files import write_text

ROWS = 20  # of the leaderboard before it is folded
CURVES_NEEDED = 2
SLICES_NEEDED = 5
HEAT_NEEDED = 12  # finished trials; half a dozen say nothing about two keys at once
HEAT_CELLS_NEEDED = 4
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #5a5a5a; --line: #dde1e5; --tint: #f5f7f9; --best: #D55E00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 44px 0 8px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 18px 0 2px; }
p { max-width: 78ch; margin: 8px 0; }
.soft, caption, figcaption { color: var(--soft); font-size: 14px; }
nav { margin: 12px 0 0; font-size: 14px; line-height: 1.9; }
nav a { color: #00578a; margin-right: 14px; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0; }
.tile { background: var(--tint); border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 25px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 13px; line-height: 1.35; color: var(--soft); }
.wide { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; white-space: normal; line-height: 1.25; border-bottom: 2px solid #b9c0c7; }
th:first-child, td:first-child { padding-left: 2px; }
.words, th.words { text-align: left; }
td.long { white-space: normal; min-width: 16em; overflow-wrap: anywhere; }
tr.best td { font-weight: 600; background: #fdf1e8; }
tr.own td { background: #f0f0f0; }
tr.pale td { color: #6b6b6b; }
abbr { text-decoration: none; cursor: help; }
figure { margin: 8px 0; }
figcaption { margin-top: 6px; }
.slices { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 4px 18px; }
.slices h3 { margin: 10px 0 0; }
pre { background: var(--tint); border-radius: 8px; padding: 12px 14px; font-size: 13px; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere; }
details { margin: 8px 0; }
summary { cursor: pointer; color: #00578a; font-size: 14px; }
@media (max-width: 640px) { main { padding: 12px 12px 40px; } h1 { font-size: 24px; } .tile b { font-size: 21px; } }
@media print { nav { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


@dataclass
class Page:
    """The sections as they are written, and what was left out."""

    search: SearchRecord
    found: list[Importance]
    sections: list[tuple[str, str]] = field(default_factory=list)  # title, HTML
    left_out: list[str] = field(default_factory=list)
    figures: int = 0

    def add(self, title: str, *parts: str) -> None:
        """A section; empty parts fall away."""
        self.sections.append((title, "\n".join(part for part in parts if part)))

    def picture(self, figure: go.Figure, words: str = "") -> str:
        """A figure's HTML, with words below it."""
        self.figures += 1
        height = figure.layout.height
        drawn = plotly.io.to_html(
            figure,
            include_plotlyjs=False,
            full_html=False,
            default_height=f"{height}px",
            div_id=f"figure-{self.figures}",
            config={"responsive": True, "displayModeBar": False, "showSendToCloud": False, "plotlyServerURL": ""},
        )
        caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
        return f'<figure><div style="height:{height}px">{drawn}</div>{caption}</figure>'


def write_report(search: SearchRecord, out: Path) -> list[str]:
    """Writes the page whole or not at all, and returns the titles of its sections."""
    page = _page(search)
    try:
        write_text(out, _html(page))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return [title for title, _ in page.sections]


def _page(search: SearchRecord) -> Page:
    found = importances(search)
    order = {importance.axis.key: place for place, importance in enumerate(found)}
    axes = sorted(search.axes, key=lambda axis: order.get(axis.key, len(order)))
    page = Page(search, found)
    page.add("Summary", _tiles(search), *(_paragraph(text) for text in summary(search, found)))
    _add_final(page)
    _add_mattered(page, axes)
    page.add("Leaderboard", _leaderboard(search, axes))
    _add_progress(page)
    _add_effects(page, axes)
    _add_failures(page)
    _add_repeat(page)
    if page.left_out:
        page.add("Left out", "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in page.left_out) + "</ul>")
    return page


def _html(page: Page) -> str:
    search = page.search
    anchors = [(f"section-{place}", title, body) for place, (title, body) in enumerate(page.sections)]
    links = " ".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in anchors)
    sections = "\n".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{body}\n</section>' for anchor, title, body in anchors
    )
    title = f"Search {search.name}"
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    about = f"{status(search)} Report of {now}, dreamprvr_ray {dreamprvr_ray.__version__}."
    script = f"<script>{get_plotlyjs()}</script>" if page.figures else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
{script}
</head>
<body><main>
<h1>{escape(title)}</h1>
<p class="soft">{escape(about)}</p>
<nav>{links}</nav>
{sections}
</main></body>
</html>
"""


def _tiles(search: SearchRecord) -> str:
    """The few numbers that a reader comes for."""
    best, first, final = search.best, search.first, search.final
    tiles = []
    if best is not None:
        tiles.append((sumr(best.sumr), f"best val SumR (trial {best.number})"))
    own = final.own if final is not None else None
    if first is not None and first is not best:
        if search.first_finished:
            tiles.append((sumr(first.sumr), f"val SumR of {search.own_setting}"))
        elif own is None:  # else its final trainings say more
            whole = f" of {search.epochs}" if search.epochs else ""
            tiles.append((f"epoch {first.epochs}{whole}", f"{search.own_setting} (trial 0) {cut_off(first)}"))
    if final is not None and final.candidates:
        shown = [
            final.candidates[0],
            *([own] if own and own is not final.candidates[0] and search.first_cut_off else []),
        ]
        for one in shown:
            seeds = f", mean of {len(one.runs)} seeds" if len(one.runs) > 1 else ""
            tiles.append((sumr(one.mean), f"test SumR of {candidate_name(search, one)}{seeds}"))
        if final.comparison is not None:
            told = final.comparison
            interval = f"{told.confidence:.0%} interval {signed(told.low)} to {signed(told.high)}"
            against = search.own_setting if told.than == "paper" else told.than
            tiles.append((signed(told.difference), f"test SumR against {against}, {interval}"))
    tiles.append((str(len(search.trials)), _counts(search)))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(n)}</b><span>{escape(w)}</span></div>' for n, w in tiles)
        + "</div>"
    )


def _counts(search: SearchRecord) -> str:
    states = [
        f"{len(search.in_state(state))} {state}"
        for state in ("finished", "pruned", "failed", "running", "waiting")
        if search.in_state(state)
    ]
    return "trials: " + ", ".join(states)


def _add_final(page: Page) -> None:
    search, final = page.search, page.search.final
    if final is None or not final.candidates:
        return
    names = [candidate_name(search, candidate) for candidate in final.candidates]
    rows = []
    for candidate, name in zip(final.candidates, names, strict=True):
        val = [] if search.trained_on_val else [run.val_sumr for run in candidate.runs if run.val_sumr is not None]
        deviation = f" ± {candidate.deviation:.1f}" if candidate.deviation is not None else ""
        recalls = [sumr(candidate.mean_of(f"R@{k}")) for k in (1, 5, 10, 100)]
        median = f"{candidate.mean_of('median_rank'):.3g}"
        head = [
            name,
            str(len(candidate.runs)),
            sumr(sum(val) / len(val)) if val else "-",
            sumr(candidate.mean) + deviation,
        ]
        rows.append([escape(cell) for cell in [*head, *recalls, median]])
    table = _table(["", "seeds", "val SumR", "test SumR", "R@1", "R@5", "R@10", "R@100", "median rank"], rows)
    test = final.candidates[0].runs[0].test
    what = (
        f"The {final.split} split of {final.collection}: {counted(test['videos'], 'video')}, {test['queries']} queries."
    )
    parts = [_paragraph(f"{what} {PROTOCOLS.get(final.protocol, '')}"), table]
    if final.retrained:
        several = any(len(candidate.runs) > 1 for candidate in final.candidates)
        parts.append(_paragraph("Means over the seeds; ± is their standard deviation.", soft=True) if several else "")
        if several or len(final.candidates) > 1:
            parts.append(
                page.picture(
                    final_pictures.results(final.candidates, names),
                    "A circle for each seed; the diamond is their mean.",
                )
            )
        comparisons = [*([final.comparison] if final.comparison else []), *final.ablations]
        if comparisons:
            told, named = (
                comparisons[0],
                {candidate.name: name for candidate, name in zip(final.candidates, names, strict=True)},
            )
            against = [
                f"{named.get(each.better, each.better)} against<br>{named.get(each.than, each.than)}"
                for each in comparisons
            ]
            words = f"The {told.confidence:.0%} interval of a paired bootstrap over the test videos and the seeds, {told.resamples} draws."
            parts.append(page.picture(final_pictures.differences(comparisons, against), words))
    else:
        parts.append(_paragraph("One training with one seed: a second one may differ by several points.", soft=True))
    page.add("Final results" if final.retrained else "The winner on test", *parts)
    _add_moments(page, names)


def _add_moments(page: Page, names: Sequence[str]) -> None:
    final = page.search.final
    assert final is not None
    groups = final.candidates[0].moments()
    if len(groups) < 2:
        known = "all queries are of one length" if groups else "the collection says nothing about where the moments lie"
        page.left_out.append(f"Results by moment length: {known}.")
        return
    rows = []
    for group, evaluations in groups.items():
        cells = [group, str(evaluations[0]["queries"])]
        for candidate in final.candidates:
            runs = candidate.moments().get(group, [])
            cells.append(sumr(sum(run["SumR"] for run in runs) / len(runs)) if runs else "-")
        rows.append([escape(cell) for cell in cells])
    table = _table(["moment / video", "queries", *(f"SumR, {escape(name)}" for name in names)], rows)
    words = "Mean test SumR over the seeds (diamonds) and each seed (circles), by the share of the video that the moment takes."
    page.add("By moment length", table, page.picture(final_pictures.by_moment(final.candidates, names), words))


def _add_mattered(page: Page, axes: Sequence[Axis]) -> None:
    search, found = page.search, page.found
    if not search.axes:
        return
    shares = {importance.axis.key: importance for importance in found}
    best, rows = search.best, []
    for axis in axes:
        around, share = usual_range(search, axis), shares.get(axis.key)
        row = [
            _key(axis),
            escape(_range(axis)),
            escape(short(axis.own)),
            escape(short(best.values.get(axis.key)) if best else "-"),
        ]
        if len(search.ended) >= ENDED_NEEDED:
            row.append(escape(f"{short(around[0])} to {short(around[1])}" if around else "-"))
        if found:
            row.append(f"{share.share:.0%}" + ("" if share.stands_out else " (chance)") if share else "-")
        rows.append(row)
    heads = ["", "searched", search.own_short, "best trial" if best is None else f"trial {best.number}"]
    heads += ["best quarter"] * (len(search.ended) >= ENDED_NEEDED) + ["share"] * bool(found)
    parts = [_table(heads, rows)]
    if len(search.ended) >= ENDED_NEEDED:
        parts.append(
            _paragraph("Best quarter: the middle 80% of the values that the best quarter of the trials has.", soft=True)
        )
    if found:
        words = (
            "Share of the differences between trials that one value makes by itself (fANOVA; every two trials are compared at the last epoch that"
            " both reached, so that pruned ones count). The mark is what shuffled results reach in 95 of 100 cases: a bar that ends before it,"
            " drawn pale, says nothing."
        )
        parts.append(page.picture(pictures.importance_bars(found), words))
    else:
        short_of = (
            "one key was searched, so there is nothing to share out"
            if len(search.axes) < 2
            else f"{len(search.ended)} trials ended and {len(search.in_state('finished'))} of them finished;"
            f" {ENDED_NEEDED} and {FINISHED_NEEDED} are needed to say anything"
        )
        page.left_out.append(f"Importances: {short_of}.")
    page.add("What mattered" if found else "Searched values", *parts)


def _leaderboard(search: SearchRecord, axes: Sequence[Axis]) -> str:
    cost = len(search.objectives) > 1
    heads = [
        "trial",
        "state",
        "epochs",
        "val SumR",
        "at epoch",
        *([escape(search.objectives[1])] if cost else []),
        *map(_key, axes),
    ]
    timed = any(trial.seconds for trial in search.trials)
    heads += ["time"] * timed

    def row(trial: Trial) -> tuple[str, list[str]]:
        cells = [str(trial.number), trial.state, str(trial.epochs), sumr(trial.sumr), short(trial.best_epoch)]
        cells += [short(trial.cost)] * cost + [short(trial.values.get(axis.key)) for axis in axes]
        cells += [duration(trial.seconds) if trial.seconds else "-"] * timed
        kind = (
            "best"
            if trial is search.best
            else "own"
            if trial.number == 0
            else "pale"
            if trial.state in ("pruned", "failed")
            else ""
        )
        return kind, [escape(cell) for cell in cells]

    rows = [row(trial) for trial in search.ranked]
    text = _table(heads, [cells for _, cells in rows[:ROWS]], [kind for kind, _ in rows[:ROWS]], words=(1,))
    if len(rows) > ROWS:
        more = _table(heads, [cells for _, cells in rows[ROWS:]], [kind for kind, _ in rows[ROWS:]], words=(1,))
        text += f"<details><summary>the other {len(rows) - ROWS} trials</summary>{more}</details>"
    kept = [(trial.number, trial.checkpoint) for trial in search.ranked if trial.checkpoint]
    own = f" Grey: {search.own_setting}." if search.first else ""
    text += _paragraph(f"By val SumR, the best of a trial's epochs.{own}", soft=True)
    if kept:
        paths = "".join(f"<li>trial {number}: <code>{escape(path)}</code></li>" for number, path in kept)
        text += f"<h3>Kept checkpoints</h3><ul>{paths}</ul>"
    return text


def _add_progress(page: Page) -> None:
    search = page.search
    scored = [trial for trial in search.trials if trial.sumr is not None]
    if len(scored) >= 2:
        below = " Triangles on the lower edge: below it." if pictures.any_below(search) else ""
        own = f" Dashed: {search.own_setting}." if search.first_finished else ""
        if search.first_cut_off:
            own = f" {search.own_setting.capitalize()} {cut_off(search.first_cut_off)}."
        words = f"Each trial's best val SumR.{own}{below}"
        page.add("History", page.picture(pictures.history(search), words))
    else:
        page.left_out.append(f"History: {counted(len(scored), 'trial')} with a result; two are needed.")
    if sum(len(trial.curve) > 1 for trial in search.trials) >= CURVES_NEEDED:
        start = search.experiment.get("loss", {}).get("hard_negative_start_epoch")
        figure = pictures.learning_curves(search)
        words = "Val SumR after each epoch." + (
            " A cross ends the curve of a pruned trial." if search.in_state("pruned") else ""
        )
        searched = any(axis.key == "loss.hard_negative_start_epoch" for axis in search.axes)
        if start and search.epochs and 1 < start <= search.epochs and not searched:
            figure.add_vline(x=start, line={"dash": "dot", "color": pictures.GREY, "width": 1})
            words += f" Dotted: epoch {start}, from which the losses use hard negatives."
        page.add("Learning curves", page.picture(figure, words))
    else:
        page.left_out.append("Learning curves: fewer than two trials have two epochs.")
    if len(search.objectives) > 1:
        complete = [trial for trial in scored if trial.cost is not None]
        if len(complete) >= 3 and len({trial.cost for trial in complete}) > 1:
            front = pictures.pareto_front(complete)
            name = pictures.COSTS.get(search.objectives[1], search.objectives[1])
            rows = [[str(t.number), sumr(t.sumr), short(t.cost)] for t in reversed(front)]
            words = f"On the line: trials that no other beats in SumR for the same or less {name}."
            page.add(
                "Pareto front",
                page.picture(pictures.pareto(search), words),
                _table(["trial", "val SumR", escape(name)], rows),
            )
        else:
            page.left_out.append(
                f"Pareto front: {counted(len(complete), 'trial')} with both objectives; three that differ are needed."
            )


def _add_effects(page: Page, axes: Sequence[Axis]) -> None:
    search = page.search
    scored = [trial for trial in search.trials if trial.sumr is not None]
    varied = [
        axis for axis in axes if len({str(trial.values[axis.key]) for trial in scored if axis.key in trial.values}) > 1
    ]
    single = [axis.name for axis in axes if axis not in varied]
    if single and scored:
        page.left_out.append(f"Slices of {', '.join(single)}: all trials have the same value.")
    if len(scored) < SLICES_NEEDED or not varied:
        page.left_out.append(
            f"Slices and parallel coordinates: {counted(len(scored), 'trial')} with a result; {SLICES_NEEDED} are needed."
        )
        return
    slices = []
    for axis in varied:
        lacking = sum(axis.key not in trial.values for trial in scored)
        note = f"not in {counted(lacking, 'trial')}" if lacking else ""
        slices.append(f"<div><h3>{_key(axis)}</h3>{page.picture(pictures.slice_of(search, axis), note)}</div>")
    marks = (
        ["blue: finished"]
        + ["open grey: pruned, with its best so far"] * bool(search.in_state("pruned"))
        + ["star: the best trial"]
    )
    early = f", which {cut_off(search.first_cut_off)}" if search.first_cut_off else ""
    marks += [f"diamond and dashed line: {search.own_setting}{early}"] + [
        "triangles on the lower edge: below it"
    ] * pictures.any_below(search)
    words = f"Val SumR against each value{', the most important first' if page.found else ''}; {'; '.join(marks)}."
    page.add("Slices", _paragraph(words), f'<div class="slices">{"".join(slices)}</div>')
    if len(varied) > 1:
        words = "A line for each trial. Click on a name in the legend to hide its lines."
        page.add("Parallel coordinates", page.picture(pictures.parallel(search, varied), words))
    _add_heat_map(page)


def _add_heat_map(page: Page) -> None:
    search = page.search
    keys = {axis.key: axis for axis in search.axes}
    down, across = keys.get("model.registers"), keys.get("model.diffusion_steps")
    title = "Registers and steps"
    if down is None or across is None or down.choices is not None or across.choices is not None:
        page.left_out.append(f"{title}: the two were not searched together as ranges.")
        return
    finished = search.in_state("finished")
    cells = [cell for row in pictures.heat_cells(search, down, across) for cell in row]
    filled = sum(any(trial.state == "finished" for trial in cell) for cell in cells)
    if len(finished) < HEAT_NEEDED or filled < HEAT_CELLS_NEEDED:
        needed = f"{HEAT_NEEDED} in {HEAT_CELLS_NEEDED} different places are needed"
        page.left_out.append(f"{title}: {counted(len(finished), 'trial')} finished, {needed}.")
        return
    words = "Mean val SumR of the finished trials of each cell. The other values varied as well: small differences mean nothing."
    without = [
        trial.sumr
        for trial in finished
        if trial.values.get(down.key) == 0 and across.key not in trial.values and trial.sumr is not None
    ]
    if without:
        mean = sumr(sum(without) / len(without))
        words += f" Without registers there are no steps: {counted(len(without), 'finished trial')}, mean {mean}."
    page.add(title, page.picture(pictures.heat_map(search, down, across), words))


def _add_failures(page: Page) -> None:
    failed = page.search.in_state("failed")
    if not failed:
        return
    rows = [[str(trial.number), str(trial.epochs), escape(trial.reason or "no reason recorded")] for trial in failed]
    page.add("Failed trials", _table(["trial", "epochs", "reason"], rows, words=(2,)))


def _add_repeat(page: Page) -> None:
    search = page.search
    found, recorded = reproduce.versions(search)
    told = [f"{name} {version}" for name, version in found.items()]
    parts = []
    if search.final is not None and search.final.commands:
        parts += [_paragraph("The commands that ran:"), _code("\n".join(search.final.commands))]
    parts += [
        _paragraph(f"The search once more, with its file as {search.name}.yaml (below):"),
        _code(reproduce.tune_command(search)),
    ]
    best = search.best
    if best is not None:
        parts += [
            _paragraph(f"The best trial's setting alone, trial {best.number}:"),
            _code(reproduce.train_command(search, best, "runs/best")),
        ]
    parts.append(
        f"<details><summary>{escape(search.name)}.yaml</summary>{_code(reproduce.space_file(search))}</details>"
    )
    whose = "Versions:" if recorded else "Versions on the machine that made this report:"
    parts.append(_paragraph(f"{whose} {', '.join(told)}."))
    page.add("Repeat it", *parts)


def _key(axis: Axis) -> str:
    """A key's last word, with the whole key for who points at it."""
    return f'<abbr title="{escape(axis.key)}">{escape(axis.name)}</abbr>'


def _range(axis: Axis) -> str:
    if axis.choices is not None:
        return ", ".join(short(choice) for choice in axis.choices)
    low, high = (short(int(end) if axis.whole else end) for end in (axis.low, axis.high))
    return f"{low} to {high}" + (", log" if axis.log else "")


def _paragraph(text: str, soft: bool = False) -> str:
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>" if text else ""


def _code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = (), words: Sequence[int] = (0,)
) -> str:
    """A table of cells that are HTML already; the columns of `words` hold text, the last of them may be long."""
    left = dict.fromkeys(words, ' class="words"')
    if words and words[-1] > 1:
        left[words[-1]] = ' class="words long"'
    body = []
    for place, row in enumerate(rows):
        kind = f' class="{kinds[place]}"' if kinds and kinds[place] else ""
        body.append(
            f"<tr{kind}>"
            + "".join(f"<td{left.get(column, '')}>{cell}</td>" for column, cell in enumerate(row))
            + "</tr>"
        )
    head = "".join(f"<th{left.get(column, '')}>{cell}</th>" for column, cell in enumerate(heads))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
