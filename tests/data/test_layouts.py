"""Each layout that docs/data.md says `convert` accepts gives the shards of the documented one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.source_tree import COUNTS, TEXT_SIZE, SourceTree

from dreamprvr_ray import convert
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError

Write = Callable[[SourceTree], list[str] | None]  # writes a tree; returns options of `convert`


def run(root: Path, *options: str) -> ShardSet:
    arguments = ["--source", str(root), "--collection", "c", "--out", str(root / "shards"), "--workers", "1"]
    convert.main([*arguments, *options])
    return ShardSet.open(root / "shards")


def flat_feature_file(tree: SourceTree) -> None:
    tree.write()
    (tree.features / "feature.hdf5").rename(tree.features.parent / "new_clip_vit_32_c_vid_features.hdf5")
    tree.features.rmdir()


def feature_file_of_another_name(tree: SourceTree) -> None:
    tree.write()
    (tree.features / "feature.hdf5").rename(tree.features / "new_clip_vit_32_c_vid_features.h5")


def deep_feature_file(tree: SourceTree) -> list[str]:
    tree.write()
    (tree.features / "clip" / "large").mkdir(parents=True)
    (tree.features / "feature.hdf5").rename(tree.features / "clip" / "large" / "x.HDF5")
    (tree.features / "._x.hdf5").write_bytes(b"macOS")
    return ["--features", "f/clip/large"]


def flat_matrix(tree: SourceTree) -> None:
    tree.write()
    tree.write_matrix()
    for path in tree.features.iterdir():
        path.rename(tree.features.parent / path.name)
    tree.features.rmdir()


def features_by_path(tree: SourceTree) -> list[str]:
    tree.write()
    (tree.features / "feature.hdf5").rename(tree.root / "elsewhere.h5")
    shutil.rmtree(tree.features.parent)
    return ["--features", str(tree.root / "elsewhere.h5")]


def features_by_directory(tree: SourceTree) -> list[str]:
    tree.write()
    tree.features.rename(tree.root / "elsewhere")
    return ["--features", str(tree.root / "elsewhere")]


def features_among_several(tree: SourceTree) -> list[str]:
    flat_feature_file(tree)
    shutil.copyfile(tree.text / "c_query_feat.hdf5", tree.features.parent / "i3d.hdf5")
    return ["--features", "new_clip_vit_32_c_vid_features"]


def query_file_of_another_name(tree: SourceTree) -> None:
    tree.write()
    (tree.text / "c_query_feat.hdf5").rename(tree.text / "clip_ViT_B_32_c_query_feats.h5")


def query_file_among_video_features(tree: SourceTree) -> None:
    flat_feature_file(tree)
    (tree.text / "c_query_feat.hdf5").rename(tree.features.parent / "clip_query_features.hdf5")


def two_query_files(tree: SourceTree) -> list[str]:
    tree.write()
    (tree.text / "c_query_feat.hdf5").rename(tree.text / "roberta_c_query_feat.hdf5")
    with h5py.File(tree.text / "clip_c_query_feat.hdf5", "w") as file:
        for query in tree.queries:
            file[query] = np.ones((1, 24))
    return ["--queries", "roberta"]


def query_files_with_sentences(tree: SourceTree) -> list[str]:
    options = two_query_files(tree)
    for encoder, size in (("roberta", TEXT_SIZE), ("clip", 24)):
        with h5py.File(tree.text / f"{encoder}_c_sentence_feat.hdf5", "w") as file:
            for query in tree.queries:
                file[query] = np.ones(size)
    return options


def queries_by_path(tree: SourceTree) -> list[str]:
    tree.write()
    (tree.text / "c_query_feat.hdf5").rename(tree.root / "mine.h5")
    return ["--queries", str(tree.root / "mine.h5")]


def groups(video: str, query: str) -> Write:
    """Datasets in groups, whose paths are these patterns of ids."""

    def write(tree: SourceTree) -> None:
        tree.videos = {video.format(id=id, split=id.rstrip("0123456789")): rows for id, rows in tree.videos.items()}
        tree.queries = {query.format(id=id): rows for id, rows in tree.queries.items()}
        tree.write()

    return write


def groups_with_other_data(tree: SourceTree) -> None:
    groups("{id}/features", "{id}/token_features")(tree)
    with h5py.File(tree.features / "feature.hdf5", "a") as file:
        for id in list(file):
            file[f"{id}/timestamps"] = np.arange(20)
            file[f"{id}/fps"] = 3


def single_axes(tree: SourceTree) -> None:
    tree.videos = {id: rows[:, :, None, None] for id, rows in tree.videos.items()}
    tree.queries = {id: rows[None] for id, rows in tree.queries.items()}
    tree.write()


def rename(new: Callable[[str], str]) -> Write:
    """Other ids of videos; queries are named after them."""

    def write(tree: SourceTree) -> None:
        split = {id: id.partition("#") for id in tree.queries}
        tree.videos = {new(id): rows for id, rows in tree.videos.items()}
        tree.lines = {name: [new(line.split("#")[0]) + line[line.index("#") :] for line in lines]
                      for name, lines in tree.lines.items()}  # fmt: skip
        tree.queries = {new(split[id][0]) + "#" + split[id][2]: rows for id, rows in tree.queries.items()}
        tree.write()

    return write


def json_lines(pattern: str, line: Callable[[str, str, str], Mapping[str, object]]) -> Write:
    """Captions as JSON lines in files named by `pattern`, of query id, video id and sentence."""

    def write(tree: SourceTree) -> None:
        tree.write()
        for split, lines in tree.lines.items():
            (tree.text / f"c{split}.caption.txt").unlink()
            texts = [text.partition(" ") for text in lines]
            values = [line(query, query.split("#")[0], sentence) for query, _, sentence in texts]
            path = tree.text / pattern.format(split=split)
            path.write_text("\ufeff" + "\r\n".join(map(json.dumps, values)) + "\r\n", encoding="utf-8")

    return write


def numbered(query: str) -> int:
    """An integer id of a query, as TVR and QVHighlights have."""
    video, _, place = query.partition("#enc#")
    kind = video.rstrip("0123456789")
    return 1000 * list(COUNTS).index(kind) + 10 * int(video.removeprefix(kind)) + int(place)


def tvr(query: str, video: str, sentence: str) -> Mapping[str, object]:
    return {"vid_name": video, "duration": 61.46, "ts": [1.2, 4.9], "desc": sentence, "type": "v",
            "desc_id": numbered(query)}  # fmt: skip


def qvhighlights(query: str, video: str, sentence: str) -> Mapping[str, object]:
    return {"qid": numbered(query), "query": sentence, "duration": 150, "vid": video,
            "relevant_windows": [[82, 150], [0, 7]], "relevant_clip_ids": [41]}  # fmt: skip


def numbered_queries(write: Write, prefix: str = "") -> Write:
    def numbered_write(tree: SourceTree) -> None:
        write(tree)
        with h5py.File(tree.text / "c_query_feat.hdf5", "w") as file:
            for query, rows in tree.queries.items():
                file[f"{prefix}{numbered(query)}"] = rows

    return numbered_write


def latin1_ids(tree: SourceTree) -> None:
    rename(lambda id: f"caf\xe9 {id}")(tree)
    tree.write_matrix(frame="{video}_{number}")
    for name in ("id.txt", "video2frames.txt"):
        path = tree.features / name
        path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r\n").encode("latin-1"))


ACCEPTED: dict[str, Write] = {
    "a feature file in FeatureData": flat_feature_file,
    "a feature file of another name": feature_file_of_another_name,
    "a feature file in deeper directories": deep_feature_file,
    "a matrix in FeatureData": flat_matrix,
    "features by path": features_by_path,
    "features by the path of a directory": features_by_directory,
    "features among several": features_among_several,
    "a query file of another name": query_file_of_another_name,
    "a query file among the video features": query_file_among_video_features,
    "two query files": two_query_files,
    "two query files with embeddings of sentences": query_files_with_sentences,
    "queries by path": queries_by_path,
    "a group per id": groups("{id}/features", "{id}/x"),
    "a group per id in a group per id": groups("{id}/a/b", "{id}/x/y/z"),
    "a group of all ids": groups("features/{id}", "data/tokens/{id}"),
    "a group per split": groups("{split}/{id}", "{id}"),
    "groups with other data": groups_with_other_data,
    "axes of size 1": single_axes,
    "ids with blanks": rename(lambda id: f"my {id}"),
    "ids with a hash sign": rename(lambda id: f"a#{id}#b"),
    "ids with a slash": rename(lambda id: f"a/{id}"),
    "JSON lines": json_lines(
        "c{split}.caption.jsonl", lambda query, video, sentence: {"query": query, "video": video, "sentence": sentence}
    ),
    "JSON lines with several windows": numbered_queries(json_lines("c_{split}_release.jsonl", qvhighlights)),
    "JSON lines whose ids have their key in the features": numbered_queries(
        json_lines("c_{split}.jsonl", qvhighlights), "qid"
    ),
    "JSON lines of TVR": numbered_queries(json_lines("c{split}.jsonl", tvr)),
    "Latin-1 id lists": latin1_ids,
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root = tmp_path_factory.mktemp("documented")
    SourceTree(root).write()
    return run(root)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_layout_gives_the_shards_of_the_documented_one(tmp_path: Path, expected: ShardSet, name: str) -> None:
    options = ACCEPTED[name](SourceTree(tmp_path))
    shards = run(tmp_path, *(options or []))
    for split in COUNTS:
        one, other = shards.split(split), expected.split(split)
        assert one.captions == other.captions
        assert (one.owner == other.owner).all()
        for (clips, frames, tokens), features in zip(one.features(), other.features(), strict=True):
            assert all((rows == same).all() for rows, same in zip((clips, frames, tokens), features, strict=True))


def test_a_vector_is_a_query_of_one_token(tmp_path: Path) -> None:
    tree = SourceTree(tmp_path)
    tree.queries = {query: rows[0] for query, rows in tree.queries.items()}
    tree.write()
    split = run(tmp_path).split("train")
    assert split.token_counts.tolist() == [1] * len(split.queries) and split.text_size == TEXT_SIZE


def test_json_lines_hold_moments(tmp_path: Path) -> None:
    numbered_queries(json_lines("c{split}.caption.jsonl", qvhighlights))(SourceTree(tmp_path))
    val = run(tmp_path).split("val")
    assert val.moment_fractions is not None and val.moment_fractions.tolist() == pytest.approx([75 / 150] * 6)
    assert val.moment_windows is not None
    for windows in val.moment_windows:
        np.testing.assert_allclose(windows, [[0, 7 / 150], [82 / 150, 1]])


@pytest.mark.parametrize("kind", ["videos", "lines", "labels"])
def test_several_right_videos(tmp_path: Path, kind: str) -> None:
    tree = SourceTree(tmp_path)
    plain = json_lines(
        "c{split}.caption.jsonl", lambda query, video, text: {"query": query, "video": video, "sentence": text}
    )
    plain(tree)
    path = tree.text / "ctest.caption.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if kind == "videos":
        lines[2] = {"query": "test1#enc#0", "videos": ["test1", "test0"], "sentence": lines[2]["sentence"]}
    elif kind == "lines":
        lines.append(lines[2] | {"video": "test0"})
    else:
        label = {"query": "test1#enc#0", "videos": ["test0", "test1"]}
        (tree.text / "ctest.labels.jsonl").write_text(json.dumps(label) + "\n")
    path.write_text("\n".join(map(json.dumps, lines)))
    right = run(tmp_path).split("test").right_videos
    assert right is not None
    assert [right[1][start:end].tolist() for start, end in zip(right[0], right[0][1:], strict=False)] == [
        [0], [0], [1, 0], [1], [2], [2]
    ]  # fmt: skip


@pytest.mark.parametrize("splits", [["test"], ["val"], ["val", "test"]])
def test_a_collection_without_train_is_for_evaluating(
    tmp_path: Path, splits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = SourceTree(tmp_path)
    tree.lines = {split: tree.lines[split] for split in splits}
    tree.write()
    shards = run(tmp_path)
    output = capsys.readouterr()
    assert list(shards.manifest.splits) == splits and shards.manifest.protocol == "own splits"
    assert f"{' and '.join(splits)} as distributed" in output.out
    assert "note: " in output.err and "no train split" in output.err
    assert len(shards.split(splits[0])) == 3
    with pytest.raises(UserError, match="these shards serve to evaluate, not to train"):
        shards.split("train")
    with pytest.raises(UserError, match="no train split; omit the option"):
        run(tmp_path, "--protocol", "paper")


def test_the_files_that_are_read_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_query_files(SourceTree(tmp_path))
    run(tmp_path, "--queries", "roberta")
    assert (
        "reading ctrain.caption.txt, cval.caption.txt, ctest.caption.txt;"
        " queries: TextData/roberta_c_query_feat.hdf5; videos: FeatureData/f/feature.hdf5\n"
    ) in capsys.readouterr().err


def _labels(line: object) -> Write:
    def write(tree: SourceTree) -> None:
        tree.write()
        (tree.text / "ctest.labels.jsonl").write_text(json.dumps(line))

    return write


def _json_line(line: object) -> Write:
    def write(tree: SourceTree) -> None:
        tree.write()
        (tree.text / "cval.caption.txt").unlink()
        (tree.text / "cval.caption.jsonl").write_text(json.dumps(line) + "\n")

    return write


def _misnamed(name: str, new: str) -> Write:
    def write(tree: SourceTree) -> None:
        _labels({"query": "test0#enc#0", "videos": ["test1"]})(tree)
        (tree.text / name).rename(tree.text / new)

    return write


def _in_two_groups(tree: SourceTree) -> None:
    tree.videos = {f"{kind}/{id}": rows for id, rows in tree.videos.items() for kind in ("clip", "i3d")}
    tree.write()


def _two_datasets(tree: SourceTree) -> None:
    tree.videos = {f"{id}/{kind}": rows for id, rows in tree.videos.items() for kind in ("clip", "i3d")}
    tree.write()


VAL = {"query": "val0#enc#0", "video": "val0", "sentence": "x"}
REFUSED: dict[str, tuple[Write, list[str], list[str]]] = {
    "features among several": (features_among_several, [], ["choose one with --features: i3d, new_clip_vit_32"]),
    "queries among several": (two_query_files, [], ["--queries", "clip_c_query_feat.hdf5, roberta_c_query_feat.hdf5"]),
    "a part of two names": (two_query_files, ["--queries", "c_query"], ["--queries 'c_query': fits several files"]),
    "no such queries": (two_query_files, ["--queries", "bert-large"], ["no query features 'bert-large'; available"]),
    "no such features": (two_query_files, ["--features", "i3d/x.h5"], ["no features 'i3d/x.h5'; available: f"]),
    "an empty option": (two_query_files, ["--features", ""], ["--features '': must be a name or a path"]),
    "labels of an unknown query": (
        _labels({"query": "Test0#enc#0", "videos": ["test1"]}),
        [],
        ["ctest.labels.jsonl: query 'Test0#enc#0' has no caption; it has 'test0#enc#0'"],
    ),
    "labels of an unknown video": (
        _labels({"query": "test0#enc#0", "videos": ["v_test1"]}),
        [],
        ["right video 'v_test1' has no features", "it has 'test1'"],
    ),
    "labels without videos": (
        _labels({"query": "test0#enc#0"}),
        [],
        ["ctest.labels.jsonl, line 1: must have the id of its video under one of videos, video"],
    ),
    "labels of another name": (
        _misnamed("ctest.labels.jsonl", "ctest_label.jsonl"),
        [],
        ["ctest.labels.jsonl: no such file, but there is 'ctest_label.jsonl'; rename it"],
    ),
    "captions of another name": (
        _misnamed("cval.caption.txt", "cvalid.caption.txt"),
        [],
        ["cval.caption.txt: no such file, but there is 'cvalid.caption.txt'; rename it"],
    ),
    "a line that is a list": (_json_line([1]), [], ["cval.caption.jsonl, line 1: must be a JSON object"]),
    "an id that is a fraction": (_json_line(VAL | {"query": 1.5}), [], ["line 1: a query's id must be a string or"]),
    "no video": (_json_line({"query": "a"}), [], ["line 1: must have the id of its video under one of"]),
    "no videos": (_json_line(VAL | {"video": []}), [], ["line 1: must name at least one video"]),
    "a sentence that is a number": (_json_line(VAL | {"sentence": 3}), [], ["line 1: sentence must be a string"]),
    "half a character": (_json_line(VAL | {"sentence": "\ud800"}), [], ["the sentence must be valid Unicode"]),
    "times that are words": (_json_line(VAL | {"ts": ["a", 1]}), [], ["line 1: times must be numbers of seconds"]),
    "a video of no length": (_json_line(VAL | {"ts": [0, 1], "duration": 0}), [], ["line 1: invalid moment of 1 s"]),
    "videos in two groups": (_in_two_groups, [], ["video 'train0' is in several groups; keep one of them"]),
    "two datasets of a video": (_two_datasets, [], ["'train0' is a group that holds 'clip', 'i3d'; it must be a"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_is_unclear_is_one_line(tmp_path: Path, name: str) -> None:
    write, options, parts = REFUSED[name]
    write(SourceTree(tmp_path))
    with pytest.raises(UserError) as error:
        run(tmp_path, *options)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
    assert all(len(mistake.splitlines()) == 1 for mistake in error.value.mistakes)
    assert not (tmp_path / "shards").exists()
