"""The report as a page: its text, what it leaves out, and that it needs no network."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from support.experiments import add_final, make_search
from support.pages import without_plotly

from dreamprvr_ray.config import load_experiment, parse_overrides
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.report import html_page, page, reproduce
from dreamprvr_ray.report.importance import importances
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.report.search_record import SearchRecord
from dreamprvr_ray.report.summary import describe_status, describe_test, summarize
from dreamprvr_ray.search.final_result import FinalResult


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty trials, of which some failed, and the final result."""
    directory = make_search(tmp_path_factory.mktemp("search") / "synthetic", trials=40, failed=(5, 11), refused=(9,))
    add_final(directory)
    return directory


@pytest.fixture(scope="module")
def whole(searched: Path) -> tuple[list[str], str]:
    """The titles of the sections, and the page."""
    titles = page.write_report(read_search(searched), searched / "report.html")
    return titles, (searched / "report.html").read_text()


@pytest.fixture(scope="module")
def summary(searched: Path) -> str:
    """The summary."""
    return summary_of(searched)


def report_of(directory: Path) -> tuple[list[str], str]:
    """The titles of the sections, and the page without plotly.js."""
    titles = page.write_report(read_search(directory), directory / "report.html")
    return titles, without_plotly((directory / "report.html").read_text())


def text_of(html: str) -> str:
    """The text of a page, without markup and scripts."""
    text = unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)))
    return " ".join(text.split())


def summary_of(directory: Path) -> str:
    search = read_search(directory)
    return " ".join(summarize(search, importances(search)))


def test_the_summary_names_only_parameters_that_stand_out(summary: str) -> None:
    expected = r"The most important parameter is learning rate: it explains \d\d% of the differences between trials\."
    assert re.search(expected, summary)
    assert "The other 5 parameters do not stand out from chance." in summary
    assert not re.search(r"is (margin|dropout)", summary)


def test_in_noise_no_parameter_stands_out(tmp_path: Path) -> None:
    summary = summary_of(make_search(tmp_path / "noise", trials=30, noise=True, pruning=False, seed=1))
    assert "No parameter stands out from chance" in summary and "most important" not in summary


def test_the_summary_counts_and_compares(summary: str, searched: Path) -> None:
    assert "39 trials of up to 20 epochs searched 6 parameters around the configuration's own settings" in summary
    assert "and 2 failed. Reasons for failure: out of memory: 38.1 GiB were asked for (2 trials)." in summary
    assert "1 proposal violated a constraint and was not trained." in summary
    assert (
        "249.9 for trial 17 (standard deviation 1.2) and 239.3 for the configuration's own settings (standard deviation"
        " 1.4)" in summary
    )
    assert "+10.5 SumR (95% interval +6.2 to +14.9, over videos and seeds). The interval is above zero" in summary
    assert describe_status(read_search(searched)) == "All 39 trials have ended."


def tiles_of(html: str) -> list[str]:
    """The tiles of a page, each a number and its description."""
    return [text_of(tile) for tile in re.findall(r'<div class="tile">(.*?)</div>', html)]


def test_a_pruned_baseline_is_compared_at_the_last_epoch_that_both_trials_reached(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=6, first_pruned_after=2)
    search = read_search(directory)
    best, baseline = search.best, search.baseline
    assert best is not None and baseline is not None and baseline.best_sumr is not None and best.best_epoch != 2
    at_two = max(value for epoch, value in best.curve if epoch <= 2)
    summary = summary_of(directory)
    assert (
        "Trial 0 (the configuration's own settings) was stopped after epoch 2; by then, its val SumR was"
        f" {baseline.best_sumr:.1f} and that of the best trial {at_two:.1f}. The best of many"
    ) in summary
    assert "the gain on val" not in summary
    _, html = report_of(directory)
    assert "epoch 2 of 20 trial 0 (the configuration's own settings) was stopped after epoch 2" in tiles_of(html)
    assert (
        "Best val SumR of each trial. Trial 0 (the configuration's own settings) was stopped after epoch 2."
        in text_of(html)
    )
    assert "Dashed" not in text_of(html)
    add_final(directory, trial=best.number)
    tiles = tiles_of(report_of(directory)[1])
    assert "239.3 test SumR of the configuration's own settings, mean of 3 seeds" in tiles
    assert not any("was stopped" in tile or f"{baseline.best_sumr:.1f}" in tile for tile in tiles)


def test_the_best_trial_may_be_the_one_that_was_stopped_first(tmp_path: Path) -> None:
    search = read_search(make_search(tmp_path / "synthetic", trials=3, running=(0,)))
    baseline, other = search.trials[:2]
    pruned = replace(
        other, state="pruned", best_sumr=999.0, best_epoch=3, curve=((1, 90.0), (2, 80.0), (3, 999.0)), epochs=3
    )
    paragraph = summarize(replace(search, trials=(baseline, pruned)), [])[1]
    at_three = max(value for epoch, value in baseline.curve if epoch <= 3)
    assert (
        "has reached epoch 7; at epoch 3, the last that both reached, its val SumR was"
        f" {at_three:.1f} and that of the best trial 999.0."
    ) in paragraph
    without_epochs = replace(search, trials=(replace(baseline, state="failed", curve=()), pruned))
    assert "own settings) failed after epoch 7. The best of many" in summarize(without_epochs, [])[1]


def test_a_finished_baseline_is_compared_by_its_best_sumr(searched: Path, whole: tuple[list[str], str]) -> None:
    baseline = read_search(searched).baseline
    assert baseline is not None and baseline.state == "finished"
    expected = f"Trial 0 (the configuration's own settings) reached {baseline.best_sumr:.1f}, so the gain on val is "
    assert expected in text_of(whole[1])
    tiles = tiles_of(whole[1])
    assert f"{baseline.best_sumr:.1f} val SumR of the configuration's own settings" in tiles
    assert not any("test SumR of the paper's" in tile for tile in tiles)
    assert "Dashed: the configuration's own settings." in text_of(whole[1])


def test_the_summary_says_which_run_is_in_best(summary: str, searched: Path) -> None:
    chosen = (
        "The model in best/ was trained with the settings of trial 17, seed 2: val SumR 271.2, test SumR 251.2."
        " It has the best val SumR of 3 seeds."
    )
    assert chosen in summary
    search = read_search(searched)
    assert search.final is not None
    result = search.final.result

    def describe(changed: FinalResult) -> str:
        return describe_test(replace(search, final=replace(search.final, result=changed)))

    first = "trial 17, seed 1: test SumR 249.6. It is the first of 3 seeds, since val was trained on"
    assert first in describe(replace(result, with_val=True))
    trial, paper = result.candidates
    one_seed = replace(paper, runs=paper.runs[:1])
    assert describe(replace(result, candidates=(one_seed, trial))).endswith(
        "The model in best/ was trained with the configuration's own settings, seed 1: val SumR 258.1, test SumR 238.1."
    )
    assert "best/" not in describe(replace(result, retrained=False, candidates=(paper,)))


def test_an_interval_that_includes_zero_proves_nothing(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, interval=(-1.0, 4.0), trial=2)
    assert "The interval includes zero: on test, the two cannot be told apart." in describe_test(read_search(directory))
    add_final(directory, interval=(-4.0, -1.0), trial=2)
    assert "The interval is below zero: on test, it is worse." in describe_test(read_search(directory))


def test_only_the_papers_values_are_called_the_papers(tmp_path: Path) -> None:
    """The search starts from a preset with the paper's values, but has another hidden size."""
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, trial=2)
    assert "the paper" not in text_of(report_of(directory)[1])
    contents = yaml.safe_load((directory / "search.yaml").read_text())
    fixed = {"data.video_size": 384, "training.seed": 5}
    contents["experiment"] = load_experiment("tvr", fixed).model_dump()
    contents["search"]["config"] = "mine.yaml"
    (directory / "search.yaml").write_text(yaml.safe_dump(contents))
    text = text_of(report_of(directory)[1])
    assert "for the paper's settings" in text and "own settings" not in text


def test_runs_with_a_seed_of_the_search_are_called_biased(tmp_path: Path) -> None:
    """Version 0.1.0 wrote such runs."""
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, trial=2)
    assert "also a seed of the search" not in summary_of(directory)
    add_final(directory, trial=2, first_seed=0)
    assert "Seed 0 was also a seed of the search. Runs with it favour the trial that the" in summary_of(directory)


def test_one_seed_claims_nothing_about_others(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, trial=2, ablated=(3.0, 12.0))
    final = json.loads((directory / "final.json").read_text())
    for candidate in final["candidates"]:  # as version 0.1.0 wrote them
        candidate["runs"], candidate["std"] = candidate["runs"][:1], math.nan
    (directory / "final.json").write_text(json.dumps(final))
    html = report_of(directory)[1]
    text = text_of(html)
    assert "(95% interval +6.2 to +14.9, over videos only). Each was trained with one seed: whether other" in text
    assert "(95% interval -12.0 to -3.0, over videos only); with one seed, it is not known" in text
    assert (
        "above zero" not in text
        and "makes a difference" not in text
        and "and the seeds" not in text
        and "nan" not in text.lower().split()
    )
    assert "95% interval over videos only +6.2 to +14.9" in text
    assert "over the test videos only, by a paired bootstrap" in text


def test_the_progress_of_the_final_stage(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=6)
    contents = yaml.safe_load((directory / "search.yaml").read_text())
    contents["search"]["final"] = {"top": 1, "seeds": 2}
    (directory / "search.yaml").write_text(yaml.safe_dump(contents))
    assert describe_status(read_search(directory)) == "All 6 trials have ended. The final stage has not begun."
    names = [f"{name}-seed_{seed}" for name in ("trial_002", "paper") for seed in (1, 2)]
    (directory / "final_runs.json").write_text(json.dumps({"runs": names}))
    start = "All 6 trials have ended. Final stage: "
    assert describe_status(read_search(directory)) == f"{start}0 of 4 runs finished; it is running or was interrupted."
    for name, epochs in zip(names, (10, 10, 5, 0), strict=True):
        run = directory / "final" / name
        run.mkdir(parents=True)
        lines = [{"epoch": n, "SumR": 1.0, "seconds": 30.0, "finished": n == 10} for n in range(1, epochs + 1)]
        (run / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Five epochs are missing of the third run and ten of the fourth, and one run trains at a time.
    assert describe_status(read_search(directory)) == (
        f"{start}2 of 4 runs finished; it is running or was interrupted; about 8 minutes left at this pace."
    )
    add_final(directory, trial=2)  # of an earlier final stage
    assert describe_status(read_search(directory)).endswith("The results below are those of an earlier final stage.")
    final = json.loads((directory / "final.json").read_text())
    runs = [run for candidate in final["candidates"] for run in candidate["runs"]]
    for run, name in zip(runs, [*names, *names], strict=False):
        run["directory"] = name
    (directory / "final.json").write_text(json.dumps(final))
    assert describe_status(read_search(directory)) == "All 6 trials have ended."


def test_the_effect_of_one_parameter_is_reported(summary: str, tmp_path: Path) -> None:
    assert "use final.ablate to isolate one parameter's effect" in summary
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, ablated=(3.0, 12.0), trial=2)
    _, html = report_of(directory)
    text = text_of(html)
    rate = "trial 2 with learning rate reset to 3e-4"
    assert f"242.0 for {rate} (standard deviation 1.0)" in text
    assert (
        f"T{rate[1:]}: -7.9 SumR (95% interval -12.0 to -3.0); for this trial, the parameter makes a difference."
        in text
    )
    assert (
        f"trial 2 against\\u003cbr\\u003e{rate}" in html
        and "trial 2 against\\u003cbr\\u003econfiguration's own settings" in html
    )
    add_final(directory, ablated=(-3.0, 12.0), trial=2)
    assert "; the difference may be chance." in describe_test(read_search(directory))
    add_final(directory, ablated=(-9.0, -1.0), trial=2)
    assert "; the reset value is better." in describe_test(read_search(directory))


def test_the_page_needs_no_network(whole: tuple[list[str], str]) -> None:
    _, html = whole
    rest = without_plotly(html)
    assert not re.search(r"\b(src|action|data)=|@import|url\(|<(link|iframe|object)\b", rest)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', rest))
    assert "http://" not in rest and "https://" not in rest
    assert "default-src 'none'" in rest and "connect-src" not in rest


def test_a_whole_search_has_every_section(whole: tuple[list[str], str]) -> None:
    titles, html = whole[0], without_plotly(whole[1])
    assert titles == [
        *(
            "Summary",
            "Final results",
            "By moment length",
            "Which parameters matter",
            "Leaderboard",
            "History",
            "Learning curves",
            "Slices",
        ),
        *("Parallel coordinates", "Registers and diffusion steps", "Failed trials", "Reproduce"),
    ]
    # candidates, difference, moments, importances, history, curves, six slices, parallel coordinates, heat map
    assert html.count("Plotly.newPlot(") == 14
    text = text_of(html)
    for expected in (
        "optimizer.learning_rate=",
        "--space search_spaces/synthetic.yaml",
        "torch 2.13.0",
        "the other 19 trials",
    ):
        assert expected in text
    assert 'title="optimizer.learning_rate"' in html
    assert not re.search(
        r"\d\.\d{7,}(?![^<]*</pre>)", re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    )  # no number has more digits than anyone reads


def test_a_running_search(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=6, planned=40, running=(5,), leaderboard=False)
    titles, html = report_of(directory)
    assert (
        "Final results" not in titles
        and "Which parameters matter" not in titles
        and "Registers and diffusion steps" not in titles
        and titles[-1] == "Not shown"
    )
    text = text_of(html)
    assert "5 of 40 trials ended so far; the search is running or was interrupted; about 4.0 hours left at this" in text
    assert "Nothing has been evaluated on test yet." in text
    assert "Importances: 5 trials finished or pruned" in text
    assert re.search(r"Registers and diffusion steps: \d finished trials?; at least 12 in 4 different cells", text)


def test_a_single_trial_gives_a_page_without_charts(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=1, planned=8, leaderboard=False, epoch_records=False)
    titles, html = report_of(directory)
    assert (
        titles == ["Summary", "Searched parameters", "Leaderboard", "Reproduce", "Not shown"] and "Plotly" not in html
    )
    assert "No trial has beaten the configuration's own settings (trial 0)" in text_of(html)


def test_two_objectives_have_a_pareto_front(tmp_path: Path, searched: Path) -> None:
    titles, html = report_of(make_search(tmp_path / "synthetic", trials=16, two_objectives=True))
    assert "Pareto front" in titles and "GFLOP per video and training step" in html
    assert "Which parameters matter" in titles  # by SumR alone


def test_missing_moments_are_explained(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "synthetic", trials=3)
    add_final(directory, moments=False, trial=2)
    titles, html = report_of(directory)
    assert "Final results" in titles and "By moment length" not in titles
    assert "Results by moment length: the collection has no positions of moments." in text_of(html)


def test_text_from_users_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    _, html = report_of(make_search(tmp_path / "synthetic", trials=8, failed=(2,), name=evil, reason=evil))
    assert "<script>alert" not in html and "<img" not in html and html.count("&lt;script&gt;alert(1)") >= 3


def test_the_commands_reproduce_the_configuration(searched: Path) -> None:
    search = read_search(searched)
    best = search.best
    assert best is not None
    command = reproduce.train_command(search, best, "runs/best").split()
    pairs = command[command.index("--set") + 1 : command.index("--shards")]
    again = load_experiment("tvr", parse_overrides(pairs)).flat()
    assert {key: again[key] for key in best.values} == best.values
    assert again["model.hidden_size"] == 128 and again["training.epochs"] == 20 and again["data.trim_frames"] == "batch"
    assert again["data.video_size"] == 3072  # comes from the shards
    written = yaml.safe_load(reproduce.space_file(search))
    assert written["space"] == search.settings["space"] and "store" not in written
    assert (
        reproduce.tune_command(search) == "python -m dreamprvr_ray.tune --space synthetic.yaml"
    )  # the fixed values are in the file


def test_the_command(
    searched: Path,
    tmp_path: Path,
    call: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_importances(search: SearchRecord) -> list[object]:
        return []

    monkeypatch.setattr(page, "importances", no_importances)  # takes two seconds, which other tests spend
    done = call("report.__main__", searched, "--out", tmp_path / "out" / "page.html", "--json")
    assert done.returncode == 0 and (tmp_path / "out" / "page.html").stat().st_size > 1e6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]  # no temporary file is left
    assert '"trials": 39' in done.stdout.splitlines()[-1]
    refused = call("report.__main__", tmp_path)
    assert refused.returncode == 2
    assert (
        refused.stderr
        == f"error: {tmp_path} is not a search: it has no search.yaml; give the directory of `tune --out`\n"
    )


def test_a_report_replaces_reports_only(tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`report --out EXPERIMENT/optuna.journal` once replaced the study by HTML."""
    directory = make_search(tmp_path / "synthetic", trials=2)
    contents = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for out in (*contents, directory, tmp_path / "link", "/dev/null"):
        done = call("report", directory, "--out", out)
        assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
        assert "already exists and is not a" in done.stderr
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == contents
    assert not (tmp_path / "absent").exists()
    for _ in range(2):
        assert call("report", directory).returncode == 0
    report = directory / "report.html"
    report.write_text(report.read_text().replace('<meta name="generator" content="dreamprvr_ray report">\n', ""))
    assert call("report", directory).returncode == 0  # version 0.1.0 wrote no such line


def test_a_full_disk_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = read_search(make_search(tmp_path / "synthetic", trials=2))
    for error, kind in (
        (OSError(28, "No space left on device"), Failure),
        (OSError(13, "Permission denied"), UserError),
    ):
        monkeypatch.setattr(html_page, "write_text", Mock(side_effect=error))
        with pytest.raises(kind, match=rf"report\.html: cannot be written: {error.strerror}"):
            page.write_report(search, tmp_path / "report.html")


def test_a_report_of_many_trials_stays_small(tmp_path: Path) -> None:
    """The best hundred trials are shown one by one, the others together."""
    sizes = {}
    for trials in (150, 400):
        directory = make_search(tmp_path / f"search-{trials}", trials=trials)
        titles, html = report_of(directory)
        assert "Learning curves" in titles
        text = text_of(html)
        assert "the next 80 trials" in text and f"{trials - 100} further trials in leaderboard.json." in text
        assert "shaded: the others" in text and "each of the best 100 trials" in text
        sizes[trials] = len(html)
    assert sizes[400] - sizes[150] < 250 * 400  # bytes a trial


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium")
def test_a_browser_draws_the_charts(whole: tuple[list[str], str], searched: Path, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    page_url = (searched / "report.html").as_uri()
    done = subprocess.run(["chromium", *options, page_url], capture_output=True, text=True, timeout=120, check=True)
    drawn = re.findall(r'<div id="(figure-\d+)" class="plotly-graph-div js-plotly-plot"', done.stdout)
    assert len(drawn) == without_plotly(whole[1]).count("Plotly.newPlot(") == 14
