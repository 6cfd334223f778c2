"""Reading source trees: both feature formats, captions, moments, and one line for every kind of damage."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamprvr_ray.data.captions import Caption, KnownMoment
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError

VIDEO = "vid_005"  # of the golden collection, in train, 47 frames
QUERY = "vid_005#enc#1"


def features_of(tree: Path) -> Path:
    return tree / "FeatureData" / "i3d"


def captions_of(tree: Path, split: str = "train") -> Path:
    return tree / "TextData" / f"mini{split}.caption.txt"


def queries_of(tree: Path) -> Path:
    return tree / "TextData" / "roberta_mini_query_feat.hdf5"


def read_everything(tree: Path, features: str | None = None) -> None:
    source = Source.open(tree, "mini", features)
    for caption in (caption for captions in source.splits.values() for caption in captions):
        source.video(caption.video)
        source.query(caption.query)


def test_both_formats_hold_the_same_features(tree: Path) -> None:
    hdf5 = Source.open(tree, "mini")
    videos = {caption.video for captions in hdf5.splits.values() for caption in captions}
    from_hdf5 = {video: hdf5.video(video) for video in videos}
    (features_of(tree) / "feature.hdf5").unlink()
    matrix = Source.open(tree, "mini")
    assert (matrix.raw.video_size, matrix.raw.text_size) == (hdf5.raw.video_size, hdf5.raw.text_size) == (24, 16)
    assert len(videos) == 16
    for video in videos:
        assert matrix.video(video).dtype == np.float32
        np.testing.assert_array_equal(matrix.video(video), from_hdf5[video])


@pytest.mark.parametrize("format", ["hdf5", "bin"])
def test_raw_features_can_be_sent_to_another_process(tree: Path, format: str) -> None:
    if format == "bin":
        (features_of(tree) / "feature.hdf5").unlink()
    source = Source.open(tree, "mini")
    expected = source.video(VIDEO)
    raw = pickle.loads(pickle.dumps(source.raw.subset([VIDEO])))  # noqa: S301 - written by this test
    np.testing.assert_array_equal(raw.video(VIDEO), expected)
    np.testing.assert_array_equal(raw.query(QUERY), source.query(QUERY))


def test_the_root_or_the_collection_itself_can_be_opened(tree: Path) -> None:
    assert Source.open(tree, "mini").splits == Source.open(tree.parent, "mini").splits
    assert Source.open(tree, "mini", "i3d").features == "i3d"


def test_unusual_captions(tree: Path) -> None:
    lines = [f"{VIDEO}#enc#0 It's  one:\u2028two # three \r\n", "\r\n", f"{VIDEO}#enc#1\r\n", f"{VIDEO}#enc#2 "]
    captions_of(tree).write_bytes("\ufeff".encode() + "".join(lines).encode())
    assert Source.open(tree, "mini").splits["train"] == [
        Caption(f"{VIDEO}#enc#0", VIDEO, "It's  one:\u2028two # three"),
        Caption(f"{VIDEO}#enc#1", VIDEO, ""),
        Caption(f"{VIDEO}#enc#2", VIDEO, ""),
    ]


def test_ids_with_quotes_in_video2frames(tree: Path) -> None:
    (features_of(tree) / "feature.hdf5").unlink()
    names = features_of(tree) / "video2frames.txt"
    expected = Source.open(tree, "mini").video(VIDEO)
    for file in (names, features_of(tree) / "id.txt"):
        file.write_text(
            file.read_text().replace(f"'{VIDEO}_3'", f'"{VIDEO}\'3"').replace(f" {VIDEO}_3 ", f" {VIDEO}'3 ")
        )
    assert '"' in names.read_text()
    np.testing.assert_array_equal(Source.open(tree, "mini").video(VIDEO), expected)


def test_nothing_in_video2frames_is_executed(tree: Path, tmp_path: Path) -> None:
    (features_of(tree) / "feature.hdf5").unlink()
    witness = tmp_path / "executed"
    (features_of(tree) / "video2frames.txt").write_text(f"{{'a': open({str(witness)!r}, 'w').close()}}")
    with pytest.raises(UserError, match=r"video2frames\.txt: not a Python dictionary"):
        Source.open(tree, "mini")
    assert not witness.exists()


def test_moments(tree: Path) -> None:
    lines: list[dict[str, object]] = [
        {"query": "vid_001#enc#0", "video": "vid_001", "start": 2.0, "end": 4.5, "duration": 10},
        # Start and end are swapped; the duration is in frame_captions.jsonl.
        {"query": "vid_001#enc#1", "video": "vid_001", "start": 4.0, "end": 1.0},
        {"query": "vid_001#enc#2", "video": "vid_001", "start": 0.0, "end": 99.0},
        {"query": "vid_002#enc#0", "video": "vid_002", "start": 0.0, "end": 1.0},
    ]
    assert Source.open(tree, "mini").moments is None
    (tree / "moments.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    (tree / "frame_captions.jsonl").write_text('["vid_001", 12, [[0.0, 2.0, "a cat"]]]\n')
    moments = Source.open(tree, "mini").moments
    assert moments is not None
    found = [moments[str(line["query"])] for line in lines]
    np.testing.assert_allclose([moment.fraction for moment in found], [0.25, 0.25, 1.0, np.nan])
    assert [moment.windows for moment in found] == [((0.2, 0.45),), ((1 / 12, 4 / 12),), ((0.0, 1.0),), ()]


def test_several_lines_of_a_query_are_several_windows(tree: Path) -> None:
    def line(start: float, end: float, video: str = "vid_001") -> str:
        values = {"query": "vid_001#enc#0", "video": video, "start": start, "end": end, "duration": 10}
        return json.dumps(values) + "\n"

    # The last but one overlaps the first; the last has no length.
    (tree / "moments.jsonl").write_text(line(6, 8) + line(1, 2) + line(7, 9) + line(3, 3))
    moments = Source.open(tree, "mini").moments
    assert moments == {"vid_001#enc#0": KnownMoment(0.4, ((0.1, 0.2), (0.6, 0.8), (0.7, 0.9)))}
    labels = {"query": "vid_001#enc#0", "videos": ["vid_001", "vid_002"]}
    (tree / "TextData" / "minitrain.labels.jsonl").write_text(json.dumps(labels))
    (tree / "moments.jsonl").write_text(line(1, 2) + line(4, 8, "vid_002"))  # of another right video
    assert Source.open(tree, "mini").moments == {"vid_001#enc#0": KnownMoment(0.1, ((0.1, 0.2),))}


def test_videos_that_two_splits_share_are_noted(tree: Path) -> None:
    assert Source.open(tree, "mini").notes() == []
    for split in ("train", "val", "test"):
        with h5py.File(queries_of(tree), "a") as file:
            file[f"{VIDEO}#{split}"] = np.ones((2, 16))
        _edit(captions_of(tree, split), lambda text, split=split: f"{text}{VIDEO}#{split} someone talks in {split}\n")  # type: ignore[misc]
    notes = Source.open(tree, "mini").notes()
    pairs = (("val", "train"), ("test", "train"), ("val", "test"))
    assert notes == [f"1 of 5 {split} videos are also in {other}: '{VIDEO}'" for split, other in pairs]


def _edit(path: Path, edit: Callable[[str], str]) -> None:
    path.write_text(edit(path.read_text()))


def _replace(path: Path, name: str, values: np.ndarray | None) -> None:
    """Replace a dataset of an HDF5 file, or remove it."""
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with(value: float) -> np.ndarray:
    rows = np.zeros((47, 24), dtype=np.float32)
    rows[31, 7] = value
    return rows


HDF5_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a video without features": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, None),
        ["minitrain.caption.txt", VIDEO, "no features"],
    ),
    "a query without features": (
        lambda tree: _replace(queries_of(tree), QUERY, None),
        ["minitrain.caption.txt", QUERY, "no features"],
    ),
    "NaN": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, _with(np.nan)),
        ["feature.hdf5", VIDEO, "NaN in row 31 of 47"],
    ),
    "infinite": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, _with(np.inf)),
        ["feature.hdf5", VIDEO, "infinite"],
    ),
    "NaN in a query": (
        lambda tree: _replace(queries_of(tree), QUERY, np.full((4, 16), np.nan)),
        ["query_feat.hdf5", QUERY, "NaN in row 0 of 4"],
    ),
    "a different video size": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, np.ones((3, 23))),
        [VIDEO, "size 23", "24"],
    ),
    "a different query size": (
        lambda tree: _replace(queries_of(tree), QUERY, np.ones((3, 15))),
        [QUERY, "size 15", "16"],
    ),
    "not a matrix": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, np.ones(24)),
        [VIDEO, "(24,)", "(frames, 24)"],
    ),
    "not numeric": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, np.full((2, 24), b"x")),
        ["feature.hdf5", VIDEO],
    ),
    "a video of 0 frames": (
        lambda tree: _replace(features_of(tree) / "feature.hdf5", VIDEO, np.ones((0, 24))),
        [VIDEO, "0 frames"],
    ),
    "a query of 0 tokens": (lambda tree: _replace(queries_of(tree), QUERY, np.ones((0, 16))), [QUERY, "0 tokens"]),
    "truncated features": (lambda tree: _cut(features_of(tree) / "feature.hdf5"), ["feature.hdf5", "truncated"]),
    "truncated queries": (lambda tree: _cut(queries_of(tree)), ["query_feat.hdf5", "truncated"]),
    "no query features": (lambda tree: queries_of(tree).unlink(), ["TextData", "query_feat.hdf5"]),
    "an empty split": (lambda tree: captions_of(tree, "val").write_text(" \n"), ["minival.caption.txt", "empty"]),
    "no captions": (
        lambda tree: [captions_of(tree, split).unlink() for split in ("train", "val", "test")],
        ["minitrain.caption.txt", "no captions"],
    ),
    "a query twice": (
        lambda tree: _edit(captions_of(tree), lambda text: f"{text}{QUERY} again\n"),
        ["minitrain.caption.txt, line 24", QUERY, "already appears in line 16"],
    ),
    "a line without id": (
        lambda tree: _edit(captions_of(tree), lambda text: f"{text}someone talks\n"),
        ["line 24", "someone talks", "<video id>#"],
    ),
    "not UTF-8": (
        lambda tree: captions_of(tree).write_bytes(b"a#0 \xff\xfe"),
        ["minitrain.caption.txt", "not UTF-8 at byte 4"],
    ),
    "a malformed moment": (
        lambda tree: (tree / "moments.jsonl").write_text('{"query": "a"}\n'),
        ["moments.jsonl, line 1", '"start"'],
    ),
    "a moment that is not JSON": (
        lambda tree: (tree / "moments.jsonl").write_text("\n{\n"),
        ["moments.jsonl, line 2", "JSON"],
    ),
    "moments of other queries": (
        lambda tree: (tree / "moments.jsonl").write_text(
            '{"query": "v1", "video": "v", "start": 0, "end": 1, "duration": 2}\n'
        ),
        ["moments.jsonl", "none of its queries has a caption", "'v1'", "#enc#"],
    ),
    "no FeatureData": (
        lambda tree: (tree / "FeatureData").rename(tree / "Features"),
        ["FeatureData", "no such directory"],
    ),
}
BIN_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a different shape": (
        lambda tree: (features_of(tree) / "shape.txt").write_text("1856 25"),
        ["feature.bin", "178,176 bytes", "1856 rows of 25"],
    ),
    "no shape": (
        lambda tree: (features_of(tree) / "shape.txt").write_text("1856"),
        ["shape.txt", "two positive numbers", "1856"],
    ),
    "truncated features": (lambda tree: _cut(features_of(tree) / "feature.bin"), ["feature.bin", "bytes"]),
    "an id too many": (
        lambda tree: _edit(features_of(tree) / "id.txt", lambda text: f"{text} one_more"),
        ["id.txt", "1857 frame ids", "1856 rows"],
    ),
    "an id twice": (
        lambda tree: _edit(features_of(tree) / "id.txt", lambda text: text.replace(" vid_005_3 ", " vid_005_4 ")),
        ["id.txt", "vid_005_4", "twice"],
    ),
    "an unknown frame": (
        lambda tree: _edit(features_of(tree) / "id.txt", lambda text: text.replace(" vid_005_3 ", " vid_999_3 ")),
        ["video2frames.txt", VIDEO, "vid_005_3", "id.txt"],
    ),
    "a video without frames": (
        lambda tree: _edit(
            features_of(tree) / "video2frames.txt", lambda text: text.replace("'vid_005': [", "'vid_005': [], 'x': [")
        ),
        ["video2frames.txt", VIDEO, "0 frames"],
    ),
    "a missing video": (
        lambda tree: _edit(features_of(tree) / "video2frames.txt", lambda text: text.replace("'vid_005':", "'x':")),
        ["video2frames.txt", VIDEO, "a caption names"],
    ),
    "malformed video2frames": (
        lambda tree: _cut(features_of(tree) / "video2frames.txt"),
        ["video2frames.txt", "dictionary"],
    ),
    "video2frames that is a list": (
        lambda tree: (features_of(tree) / "video2frames.txt").write_text("['a']"),
        ["video2frames.txt", "list"],
    ),
    "no id.txt": (lambda tree: (features_of(tree) / "id.txt").unlink(), ["id.txt", "no such file"]),
}


@pytest.mark.parametrize("name", HDF5_DAMAGE)
def test_damage_to_a_tree_with_hdf5_features(tree: Path, name: str) -> None:
    damage, named = HDF5_DAMAGE[name]
    damage(tree)
    _assert_named(tree, named)


@pytest.mark.parametrize("name", BIN_DAMAGE)
def test_damage_to_a_tree_with_a_feature_matrix(tree: Path, name: str) -> None:
    (features_of(tree) / "feature.hdf5").unlink()
    damage, named = BIN_DAMAGE[name]
    damage(tree)
    _assert_named(tree, named)


def _assert_named(tree: Path, named: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read_everything(tree)
    assert [part for part in named if part not in str(error.value)] == [], str(error.value)
    assert all("\n" not in mistake for mistake in error.value.mistakes)


def test_only_the_first_of_many_mistakes_are_listed(tree: Path) -> None:
    captions_of(tree).write_text("".join(f"new{number}#0 hello\n" for number in range(10)))
    with pytest.raises(UserError) as error:
        Source.open(tree, "mini")
    assert error.value.mistakes[3] == "... and 7 more like these"


def test_misspelt_names(tree: Path) -> None:
    with pytest.raises(UserError, match="no collection 'minni'; available: mini; did you mean 'mini'"):
        Source.open(tree.parent, "minni")
    with pytest.raises(UserError, match="no captions of collection 'minni'; available: mini; did you mean 'mini'"):
        Source.open(tree, "minni")
    with pytest.raises(UserError, match="no features 'i3'; available: i3d; did you mean 'i3d'"):
        Source.open(tree, "mini", "i3")
    with pytest.raises(UserError, match="no such directory"):
        Source.open(tree / "nowhere", "mini")
    other = tree / "FeatureData" / "clip"
    other.mkdir()
    (other / "feature.hdf5").touch()
    with pytest.raises(UserError, match="choose one with --features: clip, i3d"):
        Source.open(tree, "mini")
    assert Source.open(tree, "mini", "i3d").features == "i3d"
