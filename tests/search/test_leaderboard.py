from __future__ import annotations

import json
from pathlib import Path

from dreamprvr_ray.search.leaderboard import Entry, ranked, table, write_leaderboard

ENTRIES = [
    Entry(0, "finished", 250.0, 7, 8, {"model.registers": 4}),
    Entry(1, "failed", None, None, 0, {"model.registers": 8}, error="out of memory"),
    Entry(2, "pruned", 260.5, 2, 2, {"model.registers": 2}),
    Entry(3, "finished", 250.0, 8, 8, {"model.registers": 1}),
]


def test_trials_are_ranked_by_their_best_and_those_without_one_come_last() -> None:
    assert [entry.number for entry in ranked(ENTRIES)] == [2, 0, 3, 1]


def test_the_table_has_a_row_for_every_trial() -> None:
    lines = table(ranked(ENTRIES), ["model.registers"])
    assert lines[0].split() == ["trial", "state", "epochs", "SumR", "at", "registers"]
    assert lines[1].split() == ["2", "pruned", "2", "260.5", "2", "2"]
    assert lines[4].split() == ["1", "failed", "0", "-", "-", "8"]


def test_the_file_holds_the_ranked_trials(tmp_path: Path) -> None:
    write_leaderboard(tmp_path / "leaderboard.json", ranked(ENTRIES))
    written = json.loads((tmp_path / "leaderboard.json").read_text())
    assert [entry["number"] for entry in written] == [2, 0, 3, 1] and written[3]["error"] == "out of memory"
