"""What the fuzzing of source trees is made of: odd texts, numbers and JSON values, and the paths of a tree's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

Change = Callable[[Path], None]

# Characters that have a meaning somewhere on the way: separators, blanks of Unicode, quotes, control characters.
_CHARACTERS = "abv01 #_.,:/\\'\"{}[]()-+eE\t\n\r\x00\x0b\x0c\x1c\x85\xa0\u2028\ufeff\u0660é*?&!"
TEXT = st.text(_CHARACTERS, max_size=60) | st.text(max_size=20)
NUMBERS = st.sampled_from(["0", "-1", "1e999", "NaN", "1" * 400, "1e-320", "true", "null", "9223372036854775808", "٣"])
# What parsers meet rarely: deep nesting, keys that cannot be hashed, numbers beyond every type.
FRAGMENTS = st.sampled_from(
    ["[" * 5000, "{[]: 1}", "{'a': [[]], 'b': [1]}", "{'a': 'x'}", "{1: ['a_0']}", "1" * 5000, "1" * 5000 + " 6",
     "\u0663 \u0666", "{'a': b'x'}", "{'a': ['a_0'] * 3}", "'\\d'", "a#0\u2028x",
     "a#\x00 x", "#0 x", "a# x", "NaN NaN", "-25 -6", "0 0"]
)  # fmt: skip
SPECIAL = st.sampled_from(
    [10**400, -(10**400), float("nan"), float("inf"), 1e308, 0, -1, True, None, "", "x",
     "1" * 5000, [], {}, [[]], {"a": 1}]
)  # fmt: skip
JSON = SPECIAL | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def path_of(root: Path, name: str) -> Path:
    """Return the path of a file of the tree by its short name."""
    text, features = root / "c" / "TextData", root / "c" / "FeatureData" / "f"
    special = {
        "captions": text / "ctrain.caption.txt",
        "val captions": text / "cval.caption.txt",
        "queries": text / "c_query_feat.hdf5",
        "moments.jsonl": root / "c" / "moments.jsonl",
        "frame_captions.jsonl": root / "c" / "frame_captions.jsonl",
    }
    return special.get(name, features / name)
