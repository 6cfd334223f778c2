"""Tables of results in Markdown and LaTeX against expected text, names with special characters, and files."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.metrics import Recall
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.report.latex_text import escape_latex
from dreamprvr_ray.report.table_rows import Group, Row, Setting
from dreamprvr_ray.report.table_text import escape_markdown, to_latex, to_markdown, write_table


def recall(*at: float) -> Recall:
    return Recall(187, dict(zip((1, 5, 10, 100), at, strict=True)), sum(at))


TEST = Setting("test", "qvh", "own splits", videos=184, queries=187)
OURS = Row("ours_1 & co", (recall(30.0, 50.0, 60.0, 98.0), recall(32.0, 52.0, 62.0, 98.0)), 7_524_000)
OTHER = Row("50% off #3", (recall(31.04, 49.0, 61.0, 99.0),), 51_234)
GROUPS = [Group(TEST, (OURS, OTHER)), Group(Setting("val", "", ""), (Row("x", (recall(1, 2, 3, 4),), None),))]


def test_markdown() -> None:
    assert to_markdown(GROUPS) == (
        "<!-- Written by dreamprvr_ray.report --table -->\n\n"
        "test of qvh: 187 queries, 184 videos (own splits; ± standard deviation over seeds)\n"
        "\n"
        "| model | R@1 | R@5 | R@10 | R@100 | SumR | seeds | parameters (M) |\n"
        "| :-- | --: | --: | --: | --: | --: | --: | --: |\n"
        "| ours\\_1 \\& co | **31.0** ± 1.4 | **51.0** ± 1.4 | **61.0** ± 1.4 | 98.0 ± 0.0"
        " | **241.0** ± 4.2 | 2 | 7.52 |\n"
        "| 50% off \\#3 | **31.0** | 49.0 | **61.0** | **99.0** | 240.0 | 1 | 0.051 |\n"
        "\n"
        "val of an unknown collection (unknown protocol; epochs chosen on it)\n"
        "\n"
        "| model | R@1 | R@5 | R@10 | R@100 | SumR | seeds | parameters (M) |\n"
        "| :-- | --: | --: | --: | --: | --: | --: | --: |\n"
        "| x | 1.0 | 2.0 | 3.0 | 4.0 | 10.0 | 1 | ? |\n"
    )


def test_moments_have_columns_where_they_are_known() -> None:
    moments = MomentRecall(477, 0.46, {0.3: 60.0, 0.5: 50.0, 0.7: 30.0}, {0.3: 25.0, 0.5: 20.0, 0.7: 15.0})
    known = replace(OURS, moments=(moments, replace(moments, found={0.3: 62.0, 0.5: 50.0, 0.7: 30.0})))
    lines = to_markdown([Group(TEST, (known, replace(OTHER, moments=(None,))))]).splitlines()
    heads = "| IoU ≥ 0.3 | IoU ≥ 0.5 | IoU ≥ 0.7 | R@1, IoU ≥ 0.3 | R@1, IoU ≥ 0.5 | R@1, IoU ≥ 0.7 | seeds |"
    assert heads in lines[4]
    assert "| 61.0 ± 1.4 | 50.0 ± 0.0 | 30.0 ± 0.0 | 25.0 ± 0.0 | 20.0 ± 0.0 | 15.0 ± 0.0 | 2 |" in lines[6]
    assert lines[7].endswith("| - | - | - | - | - | - | 1 | 0.051 |")
    assert known.to_dict()["IoU>=0.5"] == 50.0 and "IoU>=0.5" not in OTHER.to_dict()
    assert r"IoU $\geq$ 0.3" in to_latex([Group(TEST, (known,))])


def test_latex() -> None:
    assert to_latex(GROUPS) == (
        "% Written by dreamprvr_ray.report --table. Needs \\usepackage{booktabs}.\n"
        "\\begin{tabular}{lrrrrrrr}\n"
        "\\toprule\n"
        "model & R@1 & R@5 & R@10 & R@100 & SumR & seeds & parameters (M) \\\\\n"
        "\\midrule\n"
        "\\multicolumn{8}{l}{\\emph{test of qvh: 187 queries, 184 videos (own splits; $\\pm$ standard deviation over"
        " seeds)}} \\\\\n"
        "\\midrule\n"
        "ours\\_1 \\& co & \\textbf{31.0} {\\scriptsize$\\pm$ 1.4} & \\textbf{51.0} {\\scriptsize$\\pm$ 1.4}"
        " & \\textbf{61.0} {\\scriptsize$\\pm$ 1.4} & 98.0 {\\scriptsize$\\pm$ 0.0}"
        " & \\textbf{241.0} {\\scriptsize$\\pm$ 4.2} & 2 & 7.52 \\\\\n"
        "50\\% off \\#3 & \\textbf{31.0} & 49.0 & \\textbf{61.0} & \\textbf{99.0} & 240.0 & 1 & 0.051 \\\\\n"
        "\\midrule\n"
        "\\multicolumn{8}{l}{\\emph{val of an unknown collection (unknown protocol; epochs chosen on it)}} \\\\\n"
        "\\midrule\n"
        "x & 1.0 & 2.0 & 3.0 & 4.0 & 10.0 & 1 & ? \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_one_seed_has_no_column_of_seeds() -> None:
    alone = [Group(TEST, (OTHER,))]
    assert "seeds" not in to_markdown(alone) and "| 50% off \\#3 | 31.0 | 49.0 |" in to_markdown(alone)
    assert "\\begin{tabular}{lrrrrrr}" in to_latex(alone)
    # A title that is wider than the table would stretch the last column.
    protocol = "own splits, train overlaps test, val overlaps test"
    lines = to_latex([Group(replace(TEST, protocol=protocol), (OTHER,))]).splitlines()
    assert [line for line in lines if "emph" in line] == [
        "\\multicolumn{7}{l}{\\emph{test of qvh: 187 queries, 184 videos (own splits, train overlaps test, val}} \\\\",
        "\\multicolumn{7}{l}{\\emph{overlaps test)}} \\\\",
    ]


@pytest.mark.parametrize(
    ("text", "latex", "markdown"),
    [
        ("a_b & 5% #1", r"a\_b \& 5\% \#1", r"a\_b \& 5% \#1"),
        (r"\input{x}$y$", r"\textbackslash{}input\{x\}\$y\$", r"\\input\{x\}\$y\$"),
        ("~^<>|", r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}", r"\~^\<\>\|"),
        ("[ours]*", "{[}ours]*", r"\[ours\]\*"),
        ("*", "{*}", r"\*"),
        ("w--x---y", "w-{}-x-{}-{}-y", "w--x---y"),
        ("two\n lines\t\x1b[0m", "two lines [0m", r"two lines \[0m"),
        ("`é`", r"\textasciigrave{}é\textasciigrave{}", r"\`é\`"),
        ("u\u0308", "ü", "u\u0308"),
        ("\u03b1 \u2264 \u03bb \u2192 \u0394", r"$\alpha$ $\leq$ $\lambda$ $\rightarrow$ $\Delta$", "α ≤ λ → Δ"),  # noqa: RUF001
    ],
)
def test_special_characters(text: str, latex: str, markdown: str) -> None:
    assert escape_latex(text) == latex and escape_markdown(text) == markdown


def test_names_that_pdflatex_has_no_characters_for_are_named() -> None:
    other = [Group(TEST, (replace(OTHER, name="\u65e5\u672c \u03b1 \u2013 \u201cx\u201d"),))]
    assert to_latex(other).splitlines()[1] == (
        "% pdfLaTeX does not know \u65e5\u672c: use XeLaTeX or LuaLaTeX with a font that has them."
    )
    assert "pdfLaTeX" not in to_latex(GROUPS)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_table_compiles(tmp_path: Path) -> None:
    names = ["a_b & 5% #1", r"\input{x}$y$", "~^<>|", "[ours]*", "*", "w--x---y", "`é` 'k' \"z\"", "Größe u\u0308"]
    names += [
        "\u03b1\u03bb\u0394 \u2264 \u2192 \u2212 \u00d7 \u00b1",
        "\u2013 \u201cx\u201d \u2026 \u20ac \u2122 \u00b5 \u0151",
    ]
    rows = tuple(replace(OURS, name=name) for name in names)
    protocol = "own splits, train overlaps test, val overlaps test"
    write_table([Group(replace(TEST, protocol=protocol), rows), GROUPS[1]], "latex", tmp_path / "table.tex")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n\\begin{document}\n"
        "\\scriptsize\\noindent\\input{table}\n\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert (tmp_path / "paper.pdf").is_file() and "Missing character" not in log


def test_only_a_table_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "table.tex"
    assert write_table(GROUPS, "latex", out) == out.read_text() == to_latex(GROUPS)
    assert write_table(GROUPS, "markdown", out) == out.read_text() == to_markdown(GROUPS)
    out.write_text("\\section{Mine}\n")
    with pytest.raises(UserError, match=r"table.tex: already exists and is not such a table"):
        write_table(GROUPS, "latex", out)
    assert out.read_text() == "\\section{Mine}\n"
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        write_table(GROUPS, "latex", tmp_path)
    with pytest.raises(UserError, match=r"table.md: cannot be written"):
        write_table(GROUPS, "markdown", out / "table.md")
