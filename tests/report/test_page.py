"""The report as its reader gets it: what it says, what it leaves out, and that it needs no network."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import yaml
from plotly.offline import get_plotlyjs
from support.experiments import add_final, make_search

from dreamprvr_ray.config import load_experiment, parse_overrides
from dreamprvr_ray.report import page, reproduce
from dreamprvr_ray.report.experiment import SearchRecord, read_search
from dreamprvr_ray.report.importance import importances
from dreamprvr_ray.report.summary import on_test, status, summary


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty trials of which some failed, and the final training."""
    directory = make_search(tmp_path_factory.mktemp("search") / "made", trials=40, failed=(5, 11), refused=(9,))
    add_final(directory)
    return directory


@pytest.fixture(scope="module")
def whole(searched: Path) -> tuple[list[str], str]:
    """The titles of the sections, and the page."""
    titles = page.write_report(read_search(searched), searched / "report.html")
    return titles, (searched / "report.html").read_text()


@pytest.fixture(scope="module")
def told(searched: Path) -> str:
    """The summary."""
    return words(searched)


def report_of(directory: Path) -> tuple[list[str], str]:
    """The titles of the sections, and the page without plotly.js."""
    titles = page.write_report(read_search(directory), directory / "report.html")
    return titles, (directory / "report.html").read_text().replace(get_plotlyjs(), "")


def words_of(html: str) -> str:
    """What the page says, without its markup and scripts."""
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)))


def words(directory: Path) -> str:
    search = read_search(directory)
    return " ".join(summary(search, importances(search)))


def test_the_summary_names_what_mattered_and_nothing_else(told: str) -> None:
    assert re.search(r"Learning rate mattered most: it makes \d\d% of the differences between trials\.", told)
    assert "The other 5 values do not stand out from chance." in told
    assert not re.search(r"(Margin|Dropout) (mattered|came)", told)


def test_of_noise_the_summary_says_that_nothing_mattered(tmp_path: Path) -> None:
    told = words(make_search(tmp_path / "noise", trials=30, noise=True, pruning=False, seed=1))
    assert "No single value made a difference that stands out from chance" in told and "mattered most" not in told


def test_the_summary_counts_and_compares(told: str, searched: Path) -> None:
    assert "39 trials of up to 20 epochs searched 6 values around the paper's setting" in told
    assert "2 failed (out of memory: 38.1 GiB were asked for: 2)" in told
    assert "1 proposal broke a constraint and was not trained" in told
    assert "trial 17 249.9 (standard deviation 1.2); the paper's setting 239.3 (standard deviation 1.4)" in told
    assert (
        "+10.5 SumR (95% interval +6.2 to +14.9, paired bootstrap over videos and seeds). The interval lies above zero"
        in told
    )
    assert status(read_search(searched)) == "All 39 trials ended."


def tiles_of(html: str) -> list[str]:
    """The cards, each a number and its words."""
    return [" ".join(words_of(tile).split()) for tile in re.findall(r'<div class="tile">(.*?)</div>', html)]


def test_a_setting_that_was_stopped_early_is_compared_at_the_epoch_that_both_reached(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=6, first_pruned_after=2)
    search = read_search(directory)
    best, first = search.best, search.first
    assert best is not None and first is not None and first.sumr is not None and best.best_epoch != 2
    at_two = max(value for epoch, value in best.curve if epoch <= 2)
    said = words(directory)
    assert (
        f"The paper's setting (trial 0) was stopped after epoch 2, where it had {first.sumr:.1f} and the best trial {at_two:.1f}. A best"
        in said
    )
    assert "a gain of" not in said
    _, html = report_of(directory)
    assert "epoch 2 of 20 the paper's setting (trial 0) was stopped after epoch 2" in tiles_of(html)
    assert "Each trial's best val SumR. The paper's setting was stopped after epoch 2." in words_of(
        html
    ) and "Dashed" not in words_of(html)
    add_final(directory, trial=best.number)
    tiles = tiles_of(report_of(directory)[1])
    assert "239.3 test SumR of the paper's setting, mean of 3 seeds" in tiles
    assert not any("was stopped" in tile or f"{first.sumr:.1f}" in tile for tile in tiles)


def test_the_best_trial_may_be_the_one_that_was_stopped_earlier(tmp_path: Path) -> None:
    search = read_search(make_search(tmp_path / "made", trials=3, running=(0,)))
    first, other = search.trials[:2]
    short_lived = replace(
        other, state="pruned", sumr=999.0, best_epoch=3, curve=((1, 90.0), (2, 80.0), (3, 999.0)), epochs=3
    )
    said = summary(replace(search, trials=(first, short_lived)), [])[1]
    at_three = max(value for epoch, value in first.curve if epoch <= 3)
    assert (
        f"has come to epoch 7; at epoch 3, the last that both reached, it had {at_three:.1f} and the best trial 999.0."
        in said
    )
    untold = replace(search, trials=(replace(first, state="failed", curve=()), short_lived))
    assert "(trial 0) failed after epoch 7. A best" in summary(untold, [])[1]


def test_a_setting_that_finished_is_compared_by_its_best(searched: Path, whole: tuple[list[str], str]) -> None:
    first = read_search(searched).first
    assert first is not None and first.state == "finished"
    assert f"The paper's setting (trial 0) reached {first.sumr:.1f}: a gain of " in words_of(whole[1])
    tiles = tiles_of(whole[1])
    assert f"{first.sumr:.1f} val SumR of the paper's setting" in tiles and not any(
        "test SumR of the paper's" in tile for tile in tiles
    )
    assert "Dashed: the paper's setting." in words_of(whole[1])


def test_the_summary_says_which_training_best_holds(told: str, searched: Path, tmp_path: Path) -> None:
    kept = "The model in best/ is trial 17 trained with seed 1: val SumR 271.2, test SumR 251.2; of its 3 seeds this is the one with the best val SumR."
    assert kept in told
    search = read_search(searched)
    assert search.final is not None
    learnt = replace(search, settings=search.settings | {"final": {"with_val": True}})
    first = "trial 17 trained with seed 0: test SumR 249.6; of its 3 seeds this is the first of them, since val was learnt from."
    assert first in on_test(learnt)
    (trial, paper), one = (
        search.final.candidates,
        replace(search.final.candidates[1], runs=search.final.candidates[1].runs[:1]),
    )
    alone = replace(search, final=replace(search.final, candidates=(one, trial)))
    assert on_test(alone).endswith(
        "The model in best/ is the paper's setting trained with seed 0: val SumR 258.1, test SumR 238.1."
    )
    unkept = replace(search, final=replace(search.final, retrained=False, candidates=(paper,)))
    assert "best/" not in on_test(unkept)


def test_an_interval_with_zero_in_it_claims_nothing(searched: Path, tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=3)
    add_final(directory, interval=(-1.0, 4.0), trial=2)
    assert "The interval holds zero: on test the two cannot be told apart." in on_test(read_search(directory))
    add_final(directory, interval=(-4.0, -1.0), trial=2)
    assert "The interval lies below zero: on test it is worse." in on_test(read_search(directory))


def test_what_one_value_does_by_itself_is_said_and_shown(told: str, tmp_path: Path) -> None:
    assert "what a value does by itself is told by final.ablate" in told
    directory = make_search(tmp_path / "made", trials=3)
    add_final(directory, ablated=(3.0, 12.0), trial=2)
    _, html = report_of(directory)
    said = words_of(html)
    rate = "trial 2 with learning rate put back to 3e-4"
    assert f"{rate} 242.0 (standard deviation 1.0)" in said
    assert (
        f"T{rate[1:]} has -7.9 SumR on test (95% interval -12.0 to -3.0): in this setting, that value makes the difference."
        in said
    )
    assert (
        f"trial 2 against\\u003cbr\\u003e{rate}" in html
        and "trial 2 against\\u003cbr\\u003ethe paper's setting" in html
    )
    add_final(directory, ablated=(-3.0, 12.0), trial=2)
    assert "that value makes no difference here that can be told from chance" in on_test(read_search(directory))
    add_final(directory, ablated=(-9.0, -1.0), trial=2)
    assert "it does better so" in on_test(read_search(directory))


def test_the_page_needs_no_network(whole: tuple[list[str], str]) -> None:
    _, html = whole
    rest = html.replace(get_plotlyjs(), "")
    assert len(html) - len(rest) == len(get_plotlyjs())  # once
    assert not re.search(r"\b(src|action|data)=|@import|url\(|<(link|iframe|object)\b", rest)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', rest))
    assert "http://" not in rest and "https://" not in rest
    assert "default-src 'none'" in rest and "connect-src" not in rest


def test_a_whole_search_has_every_section(whole: tuple[list[str], str]) -> None:
    titles, html = whole[0], whole[1].replace(get_plotlyjs(), "")
    assert titles == [
        *(
            "Summary",
            "Final results",
            "By moment length",
            "What mattered",
            "Leaderboard",
            "History",
            "Learning curves",
            "Slices",
        ),
        *("Parallel coordinates", "Registers and steps", "Failed trials", "Repeat it"),
    ]
    # the results, their difference, moments, importances, history, curves, six slices, parallel, heat map
    assert html.count("Plotly.newPlot(") == 14
    said = words_of(html)
    for expected in (
        "optimizer.learning_rate=",
        "--space search_spaces/made.yaml",
        "torch 2.13.0",
        "the other 19 trials",
    ):
        assert expected in said
    assert 'title="optimizer.learning_rate"' in html
    assert not re.search(
        r"\d\.\d{7,}(?![^<]*</pre>)", re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    )  # no absurd digits


def test_a_search_that_still_runs(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=6, planned=40, running=(5,), leaderboard=False)
    titles, html = report_of(directory)
    assert (
        "Final results" not in titles
        and "What mattered" not in titles
        and "Registers and steps" not in titles
        and titles[-1] == "Left out"
    )
    said = words_of(html)
    assert (
        "5 of 40 trials ended; the search is running, or was stopped." in said and "Test has not been read yet." in said
    )
    assert "Importances: 5 trials ended" in said and re.search(
        r"Registers and steps: \d trials? finished, 12 in 4 different places", said
    )


def test_the_first_trial_alone_makes_a_page_without_figures(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=1, planned=8, leaderboard=False, epoch_records=False)
    titles, html = report_of(directory)
    assert titles == ["Summary", "Searched values", "Leaderboard", "Repeat it", "Left out"] and "Plotly" not in html
    assert "Nothing beat the paper's setting (trial 0) so far" in words_of(html)


def test_two_objectives_have_a_pareto_front(tmp_path: Path, searched: Path) -> None:
    titles, html = report_of(make_search(tmp_path / "made", trials=16, two_objectives=True))
    assert "Pareto front" in titles and "GFLOP per video and training step" in html
    assert "What mattered" in titles  # by SumR alone


def test_without_moments_the_page_says_why(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "made", trials=3)
    add_final(directory, moments=False, trial=2)
    titles, html = report_of(directory)
    assert "Final results" in titles and "By moment length" not in titles
    assert "Results by moment length: the collection says nothing about where the moments lie." in words_of(html)


def test_what_users_wrote_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    _, html = report_of(make_search(tmp_path / "made", trials=8, failed=(2,), name=evil, reason=evil))
    assert "<script>alert" not in html and "<img" not in html and html.count("&lt;script&gt;alert(1)") >= 3


def test_the_commands_repeat_the_settings(searched: Path) -> None:
    search = read_search(searched)
    best = search.best
    assert best is not None
    command = reproduce.train_command(search, best, "runs/best").split()
    pairs = command[command.index("--set") + 1 : command.index("--shards")]
    again = load_experiment("tvr", parse_overrides(pairs)).flat()
    assert {key: again[key] for key in best.values} == best.values
    assert again["model.hidden_size"] == 128 and again["training.epochs"] == 20 and again["data.trim_frames"] == "batch"
    assert again["data.video_size"] == 3072  # the shards tell it
    written = yaml.safe_load(reproduce.space_file(search))
    assert written["space"] == search.settings["space"] and "store" not in written
    assert (
        reproduce.tune_command(search) == "python -m dreamprvr_ray.tune --space made.yaml"
    )  # the file holds the fixed values


def test_the_command(
    searched: Path,
    tmp_path: Path,
    call: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing_found(search: SearchRecord) -> list[object]:
        return []

    monkeypatch.setattr(page, "importances", nothing_found)  # two seconds that other tests spend
    said = call("report.__main__", searched, "--out", tmp_path / "out" / "page.html", "--json")
    assert said.returncode == 0 and (tmp_path / "out" / "page.html").stat().st_size > 1e6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]  # no half-written file beside it
    assert '"trials": 39' in said.stdout.splitlines()[-1]
    refused = call("report.__main__", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {tmp_path}: no search: it has no search.yaml (name what `tune --out` named)\n"
