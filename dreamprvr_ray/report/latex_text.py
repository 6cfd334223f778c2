"""Plain text as LaTeX that shows it."""

from __future__ import annotations

import re
import unicodedata

_GREEK = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
_CAPITAL = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"  # the others are those of the Latin alphabet
_SIGNS = {
    "PLUS-MINUS SIGN": r"\pm",
    "MINUS SIGN": "-",
    "MULTIPLICATION SIGN": r"\times",
    "LESS-THAN OR EQUAL TO": r"\leq",
    "GREATER-THAN OR EQUAL TO": r"\geq",
    "NOT EQUAL TO": r"\neq",
    "ALMOST EQUAL TO": r"\approx",
    "INFINITY": r"\infty",
    "RIGHTWARDS ARROW": r"\rightarrow",
    "LEFTWARDS ARROW": r"\leftarrow",
    "UPWARDS ARROW": r"\uparrow",
    "DOWNWARDS ARROW": r"\downarrow",
}


def _letter(name: str) -> str:
    """Return the Greek letter that LaTeX calls so."""
    size = "CAPITAL" if name[0].isupper() else "SMALL"
    return unicodedata.lookup(f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{unicodedata.lookup(name): f"${command}$" for name, command in _SIGNS.items()},
    **{_letter(name): f"$\\{name}$" for name in f"{_GREEK} {_CAPITAL}".split()},
}
# Dashes, quotation marks, daggers, bullet, ellipsis, per mille, euro and trade mark, which pdfLaTeX has.
_PUNCTUATION = "\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2020\u2021\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"


def escape_latex(text: str) -> str:
    """Return plain text as LaTeX that shows it, also in the first cell of a row."""
    line = unicodedata.normalize("NFC", one_line(text))  # file systems may separate letters from their accents
    escaped = "".join(_LATEX.get(character, character) for character in line)
    escaped = re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash
    # After the end of the row before, these would be arguments of the line break.
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped


def unknown_to_pdflatex(text: str) -> str:
    """Return the characters that pdfLaTeX does not have: it has Latin letters and common punctuation."""
    return "".join(sorted({each for each in text if ord(each) >= 0x180 and each not in _PUNCTUATION}))


def one_line(text: str) -> str:
    """Return text without line breaks and control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
