"""The page of a checkpoint's figures, and the command that writes it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from support.figures import EVIL, Collection
from support.pages import without_plotly

from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.report.figures.page import write_figures
from dreamprvr_ray.report.figures.record import FigureSettings
from dreamprvr_ray.storage.location import Storage

Call = Callable[..., subprocess.CompletedProcess[str]]


def text_of(html: str) -> str:
    text = unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)))
    return " ".join(text.split())


def page_of(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    return without_plotly(html)


@pytest.fixture(scope="module")
def written(
    collection: Collection, checkpoint: Storage, call: Call, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], str]:
    """What the command printed, and its page without plotly.js."""
    out = tmp_path_factory.mktemp("page") / "figures.html"
    words = ["--figures", "--checkpoint", checkpoint, "--shards", collection.shards.directory, "--out", out, "--json"]
    words += ["--moments", collection.moments, "--frame-captions", collection.frame_captions]
    words += ["--query", "val1#0", "--query", "door 1 val0", "--query", "val3#0"]
    done = call("report", *words)
    assert done.returncode == 0, done.stderr
    return done, page_of(out)


def test_the_page_has_every_figure(written: tuple[subprocess.CompletedProcess[str], str]) -> None:
    _, html = written
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Summary",
        "Finding the moment",
        "Query embeddings by video",
        "Similarity along a video",
        "Not shown",  # the checkpoint is not calibrated
    ]
    assert html.count("Plotly.newPlot(") == 2 + 3
    text = text_of(html)
    assert "its video val1 is at rank" in text and "3 queries chosen by hand" in text
    assert f"“{EVIL}”" in text or "“a room”" in text
    assert "val3#0" in text  # the id, for a query without a sentence
    assert "the annotated moment is shaded" in text and "what it shows" in text
    assert re.search(r"Peak with 3 registers: \d\.\d s, (inside|outside) the moment", text)
    assert re.search(r"Peak encoder alone: frame \d+\. ", text)  # of the video without known times
    assert re.search(r"Moment found with 3 registers: \d+\.\d s to \d+\.\d s\.", text) and "IoU ≥ 0.5" in text


def test_words_of_the_user_are_escaped(written: tuple[subprocess.CompletedProcess[str], str]) -> None:
    _, html = written
    assert "<script>alert" not in html and "<img" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert r"&lt;\u002fscript&gt;" in html  # in charts: plotly shows text as HTML
    assert not re.search(r"\b(src|action|data)=|@import|url\(|<(link|iframe|object)\b", html.replace("src=x", ""))


def test_the_command_prints_the_numbers(
    written: tuple[subprocess.CompletedProcess[str], str], collection: Collection
) -> None:
    done, _ = written
    assert "val of example" in done.stdout and "most similar frame inside the moment, encoder alone:" in done.stdout
    values = json.loads(done.stdout.splitlines()[-1])
    assert [example["query"] for example in values["examples"]] == ["val1#0", "val0#1", "val3#0"]
    assert [each["queries"] for each in values["inside_moment"]] == [10, 10]
    assert all(0 <= each["IoU>=0.5"] <= 100 for each in values["inside_moment"])
    assert "found moment with IoU of 0.5 or more, encoder alone:" in done.stdout
    assert "scoring 11 queries against 4 videos of val" in done.stderr


def test_one_query_of_one_frame_and_no_registers(
    collection: Collection, save: Callable[..., Storage], tmp_path: Path
) -> None:
    one = FeatureSplit({"v": collection.shards.split("val").frames(0)}, [Query("v#0", "v", "", _tokens(collection))])
    train = FeatureSplit({"t": one.videos["v"]}, [Query("t#0", "t", "", one.queries[0].tokens)])
    test = FeatureSplit({"u": one.videos["v"]}, [Query("u#0", "u", "", one.queries[0].tokens)])
    splits = {"train": train, "val": one, "test": test}
    shards = write_shards(tmp_path / "shards", collection="one", splits=splits)
    out = tmp_path / "figures.html"
    write_figures(save(registers=0), shards, out, FigureSettings(), lambda line: None)
    text = text_of(page_of(out))
    assert "0 registers" in text and "1 query drawn at random from the queries of val (seed 0)" in text
    assert "fewer than two videos of val have at least 3 queries each" in text and "no moments are known" in text
    assert "at rank 1 of 1" in text
    assert "shaded" not in text and "what it shows" not in text  # nothing is known about times


def _tokens(collection: Collection) -> object:
    return collection.shards.split("val").tokens(0, 1)[0].float().numpy()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: experiment (see python -m dreamprvr_ray.report --help)"),
        (
            ["--figures", "--checkpoint", "c"],
            "--figures needs --shards and --out (see python -m dreamprvr_ray.report --help)",
        ),
        (["search", "--figures"], "search: --figures takes a checkpoint (--checkpoint) and not a search"),
        (["search", "--frame-captions", "f"], "--frame-captions is for --figures"),
        (["--table", "run", "--figures"], "--table and --figures exclude each other"),
    ],
)
def test_options_that_do_not_belong_together(call: Call, arguments: list[str], message: str) -> None:
    done = call("report", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_figures_replace_reports_only(collection: Collection, checkpoint: Storage, call: Call, tmp_path: Path) -> None:
    (out := tmp_path / "notes.html").write_text("mine")
    words = ["--checkpoint", checkpoint, "--shards", collection.shards.directory, "--out", out]
    done = call("report", "--figures", *words)
    assert done.returncode == 2 and "already exists and is not a report" in done.stderr
    assert out.read_text() == "mine"
