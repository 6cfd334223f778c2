"""The tables of test results: by moment length, with the mean rank, and the recall of all right videos."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from support.experiments import add_final, make_search

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.report.content import Section
from dreamprvr_ray.report.final_sections import describe_seeds, final_section, moment_section
from dreamprvr_ray.report.reader import read_search


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, trial=2)
    return directory


def cells(part: object) -> list[list[str]]:
    """The cells of an HTML table."""
    rows = re.findall(r"<tr.*?</tr>", str(part))
    return [[unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_recall_at_each_rank_by_moment_length(directory: Path) -> None:
    section = moment_section(read_search(directory))
    assert isinstance(section, Section)
    heads, first, *rows = cells(section.parts[0])
    assert heads == ["moment / video length", "", "queries", "R@1", "R@5", "R@10", "R@100", "SumR"]
    assert [row[:3] for row in rows] == [
        ["0-0.2", "configuration's own settings", "292"],
        ["0.2-0.4", "trial 2", "119"],
        ["0.2-0.4", "configuration's own settings", "119"],
    ]
    # SumR 249.6, 251.2 and 248.8; each number of the first group has 4 more, see `experiments.evaluation`.
    assert first == ["0-0.2", "trial 2", "292", "29.0", "59.0", "74.0", "103.9", "253.9"]


def test_results_of_earlier_versions_have_no_mean_rank(directory: Path) -> None:
    section = final_section(read_search(directory))
    assert section is not None
    heads, *_ = cells(section.parts[1])
    assert heads[-1] == "median rank" and "right videos" not in str(section.parts)


def test_mean_rank_and_recall_of_all_right_videos(directory: Path) -> None:
    final = json.loads((directory / "final.json").read_text())
    for candidate in final["candidates"]:
        for number, run in enumerate(candidate["runs"]):
            lists = {"R@1": 10.0 + number, "R@5": 20.0, "R@10": 30.0, "R@100": 40.0, "SumR": 100.0 + number}
            run["test"] |= {"mean_rank": 20.0 + number, "right_videos": 954, "list_recall": lists}
    (directory / "final.json").write_text(json.dumps(final))
    section = final_section(read_search(directory))
    assert section is not None
    heads, first, _ = cells(section.parts[1])
    assert heads[-2:] == ["median rank", "mean rank"] and first[-2:] == ["5", "21.0"]
    text, table = section.parts[2:4]
    assert "A query has 2.0 right videos on average." in str(text)
    heads, first, _ = cells(table)
    assert heads == ["", "R@1", "R@5", "R@10", "R@100", "SumR"]
    assert first == ["trial 2", "11.0", "20.0", "30.0", "40.0", "101.0"]


def test_zero_shot_results_are_below_the_candidates(directory: Path) -> None:
    final = json.loads((directory / "final.json").read_text())
    recall = {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0, "R@100": 40.0, "SumR": 100.0}
    for candidate in final["candidates"]:
        for run in candidate["runs"]:
            run["test"]["zero_shot"] = {"best frame": recall, "encoder": recall}
    final["encoder"] = [final["comparison"] | {"than": "the encoder alone"}]
    (directory / "final.json").write_text(json.dumps(final))
    section = final_section(read_search(directory))
    assert section is not None
    *_, frame, encoder = cells(section.parts[1])
    assert frame[:4] == ["zero-shot: best frame", "", "", "100.0"] and frame[4:8] == ["10.0", "20.0", "30.0", "40.0"]
    assert encoder[0] == "zero-shot: encoder"
    assert "against<br>the encoder alone" in str(section.parts).replace("\\u003c", "<").replace("\\u003e", ">")


def test_found_moments_have_a_table(directory: Path) -> None:
    final = json.loads((directory / "final.json").read_text())
    names = ["IoU>=0.3", "IoU>=0.5", "IoU>=0.7", "mean_IoU", "R@1, IoU>=0.3", "R@1, IoU>=0.5", "R@1, IoU>=0.7"]
    moments = {"queries": 477, **dict(zip(names, (60.0, 50.0, 30.0, 0.46, 25.0, 20.0, 15.0), strict=True))}
    for candidate in final["candidates"]:
        for run in candidate["runs"]:
            run["test"] |= {"moments": moments, "zero_shot_moments": moments | {"IoU>=0.3": 55.0}}
    (directory / "final.json").write_text(json.dumps(final))
    section = final_section(read_search(directory))
    assert section is not None
    text, table = section.parts[2:4]
    assert "Moments of 477 queries with annotated windows" in str(text)
    heads, first, *_, encoder = cells(table)
    assert heads[1:5] == ["IoU ≥ 0.3", "IoU ≥ 0.5", "IoU ≥ 0.7", "mean IoU"] and heads[-1] == "R@1, IoU ≥ 0.7"
    assert first == ["trial 2", "60.0", "50.0", "30.0", "0.46", "25.0", "20.0", "15.0"]
    assert encoder[:2] == ["zero-shot: encoder", "55.0"]
    final["candidates"][0]["runs"][0]["test"]["moments"] = {"queries": "many"}
    (directory / "final.json").write_text(json.dumps(final))
    with pytest.raises(UserError, match=r"final\.json"):
        read_search(directory)


def test_the_caption_explains_the_bar_only_for_several_seeds() -> None:
    assert describe_seeds(True).endswith("the diamond is their mean, and the bar their standard deviation.")
    assert describe_seeds(False) == "A circle for each seed; the diamond is their mean."
