"""Evaluation of a checkpoint, and the record that each evaluation on test leaves."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dreamprvr_ray.checkpoints.layout import further_ranks, is_checkpoint_file
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import NotWritableError, UserError
from dreamprvr_ray.evaluation import test_record
from dreamprvr_ray.evaluation.metrics import Evaluation, Reading, Recall, Retrieval, table_lines
from dreamprvr_ray.evaluation.test_record import (
    evaluate_checkpoint,
    evaluate_each,
    evaluate_test_once,
    evaluate_tests_once,
    recorded_ranks,
    recorded_test,
)
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import DirectoryReporter

EARLIER = Path(__file__).parents[1] / "golden" / "earlier" / "version_0.1.0.tar.xz"
TINY = {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 1}


@pytest.fixture(scope="module")
def checkpoint(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    run = tmp_path_factory.mktemp("run")
    fit(load_experiment("demo", TINY), ShardSet.open(demo_shards), DirectoryReporter(run))
    return Storage.of(run / "best")


def test_evaluating_val_leaves_no_record_and_every_evaluation_on_test_does(
    checkpoint: Storage, demo_shards: Path
) -> None:
    shards = ShardSet.open(demo_shards)
    val = evaluate_checkpoint(checkpoint, shards, "val")
    assert val.reading is None and recorded_test(checkpoint) is None
    first = evaluate_checkpoint(checkpoint, shards, "test")
    second = evaluate_checkpoint(checkpoint, shards, "test")
    assert first.reading is not None and second.reading is not None
    assert (first.reading.number, second.reading.number) == (1, 2)
    recall = first.retrieval.recall
    assert recall == second.retrieval.recall and recall.sumr == pytest.approx(sum(recall.at.values()))
    assert recorded_test(checkpoint) == first
    assert first.retrieval.ranks is not None and recorded_ranks(checkpoint) == first.retrieval.ranks.tolist()
    assert json.loads(checkpoint.read_text("test.json")) == {"readings": [first.to_dict(), second.to_dict()]}
    assert "evaluated on test 2 times" in "\n".join(second.lines())
    assert "evaluated on test" not in "\n".join(first.lines())
    assert evaluate_test_once(checkpoint, ShardSet.open(demo_shards)) == first


def test_records_keep_their_names_and_order() -> None:
    recall = Recall(2, {1: 50.0, 5: 100.0, 10: 100.0, 100: 100.0}, 350.0)
    evaluation = Evaluation("val", "tvr", "own splits", Retrieval(9, recall, 1.5, 0, None))
    names = ["split", "collection", "protocol", *evaluation.retrieval.to_dict()]
    assert list(evaluation.to_dict()) == names
    read = replace(evaluation, split="test", reading=Reading("2026-01-01T00:00:00+00:00", "/shards", 3))
    assert list(read.to_dict()) == ["at", "shards", *names, "test_reads"] and read.to_dict()["test_reads"] == 3
    beside = replace(evaluation, zero_shot={"best frame": recall, "encoder": recall})
    assert beside.to_dict() == evaluation.to_dict() | {
        "zero_shot": {"best frame": recall.to_dict(), "encoder": recall.to_dict()}
    }
    for each in (evaluation, read, beside):
        assert Evaluation.from_dict(each.to_dict()) == each


def test_records_of_the_earlier_version_are_read_and_kept_as_they_are(tmp_path: Path, demo_shards: Path) -> None:
    folder = "search/final/paper-seed_1/checkpoints/epoch-0003"
    with tarfile.open(EARLIER) as archive:
        archive.extractall(tmp_path, filter="data")
    earlier = Storage.of(tmp_path / folder)
    (record,) = json.loads(earlier.read_text("test.json"))["readings"]
    evaluation = recorded_test(earlier)
    assert evaluation is not None and evaluation.to_dict() == record
    assert len(recorded_ranks(earlier)) == evaluation.retrieval.recall.queries
    again = evaluate_checkpoint(earlier, ShardSet.open(tmp_path / "shards"), "test")
    assert json.loads(earlier.read_text("test.json"))["readings"] == [record, again.to_dict()]
    assert again.reading is not None and again.reading.number == 2
    assert again.retrieval.recall == evaluation.retrieval.recall


def test_the_lines_of_an_evaluation() -> None:
    recall = Recall(200, {1: 10.04, 5: 20.0, 10: 30.0, 100: 90.0}, 150.04)
    groups = {"0-0.2": Recall.from_ranks(np.array([1, 6])), "0.4-1": Recall.from_ranks(np.array([]))}
    retrieval = Retrieval(9, recall, 7.5, 3, groups, mean_rank=12.34)
    evaluation = Evaluation("test", "tvr", "own splits", retrieval, Reading("", "", 2))
    assert evaluation.lines() == [
        "test of tvr (protocol: own splits): 200 queries, 9 videos",
        "  R@1 10.0 R@5 20.0 R@10 30.0 R@100 90.0  SumR 150.0  median rank 7.5  mean rank 12.3",
        "  moment/video 0-0.2: R@1 50.0 R@5 50.0 R@10 100.0 R@100 100.0  SumR 300.0 (2 queries)",
        "  warning: 3 queries score a wrong video exactly as high as a right one; ties count against them",
        "  note: this model has been evaluated on test 2 times; do not use test to choose between models",
    ]
    assert len(replace(evaluation, retrieval=Retrieval(9, recall, 7.5, 2, None), reading=None).lines()) == 2
    lists = Retrieval(9, recall, 7.5, 2, None, list_recall=recall, right_videos=420)
    assert replace(evaluation, retrieval=lists, reading=None).lines()[1:] == [
        "  R@1 10.0 R@5 20.0 R@10 30.0 R@100 90.0  SumR 150.0  median rank 7.5",
        "  all right videos (2.1 per query): R@1 10.0 R@5 20.0 R@10 30.0 R@100 90.0  SumR 150.0",
    ]


def test_a_model_below_the_encoder_alone_is_called_so() -> None:
    frame, encoder, model = (Recall(4, {1: at, 5: at, 10: at, 100: at}, 4 * at) for at in (40.0, 50.0, 45.0))
    evaluation = Evaluation("val", "tvr", "dev", Retrieval(9, model, 2.0, 0, None), zero_shot={"best frame": frame})
    line = "  zero-shot SumR: best frame 160.0"
    assert evaluation.lines()[2:] == [line]
    below = replace(evaluation, zero_shot={"best frame": frame, "encoder": encoder})
    assert below.lines()[2:] == [
        f"{line}, encoder 200.0",
        "  warning: the model is below the encoder alone: SumR 180.0 against 200.0",
    ]
    by_frame = replace(evaluation, zero_shot={"best frame": encoder, "encoder": frame})
    assert by_frame.lines()[-1].endswith("SumR 180.0 against 200.0 (best frame)")


def test_an_evaluation_on_test_that_cannot_be_recorded_prints_a_warning_and_its_result(
    checkpoint: Storage, demo_shards: Path, tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    model = tmp_path / "model"
    assert checkpoint.directory is not None
    shutil.copytree(checkpoint.directory, model)
    (model / "test.json").unlink(missing_ok=True)
    (model / "test.json").mkdir()  # a directory cannot be replaced by a file
    done = call("evaluate", "--checkpoint", model, "--shards", demo_shards, "--split", "test", "--json")
    reason = f"{model}/test.json: cannot be written: Is a directory"
    warning = f"warning: this test evaluation could not be recorded: {reason}\n"
    assert (done.returncode, done.stderr) == (0, warning)
    assert json.loads(done.stdout.splitlines()[-1])["split"] == "test" and "SumR" in done.stdout.splitlines()[1]
    with pytest.raises(NotWritableError):  # a search must not lose the record
        evaluate_checkpoint(Storage.of(model), ShardSet.open(demo_shards), "test")


@pytest.fixture
def copied(checkpoint: Storage, tmp_path: Path) -> Storage:
    """A copy of the checkpoint without records of test."""
    assert checkpoint.directory is not None
    shutil.copytree(checkpoint.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("test*.json"))
    return Storage.of(tmp_path / "copy")


def test_a_kill_between_record_and_ranks_leaves_the_reading_on_record(
    copied: Storage, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, write = ShardSet.open(demo_shards), Storage.write_text

    def write_once(storage: Storage, name: str, text: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(name)
        write(storage, name, text)

    written: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Storage, "write_text", write_once)
        evaluate_checkpoint(copied, shards, "test")
    first = recorded_test(copied)
    assert first is not None and first.reading is not None and first.reading.number == 1
    assert not copied.exists("test_ranks.json")
    again = evaluate_test_once(copied, ShardSet.open(demo_shards))  # its ranks are needed: read again, but not silently
    assert again.reading is not None and again.reading.number == 2
    assert "evaluated on test 2 times" in "\n".join(again.lines())
    assert len(recorded_ranks(copied)) == again.retrieval.recall.queries
    assert evaluate_test_once(copied, ShardSet.open(demo_shards)) == first  # nothing is missing any more
    assert len(json.loads(copied.read_text("test.json"))["readings"]) == 2


def test_evaluations_at_once_are_all_recorded(copied: Storage, demo_shards: Path) -> None:
    shards, barrier = ShardSet.open(demo_shards), threading.Barrier(8)

    def evaluate(_: int) -> Evaluation:
        barrier.wait()
        return evaluate_checkpoint(copied, shards, "test")

    with ThreadPoolExecutor(8) as pool:
        evaluations = list(pool.map(evaluate, range(8)))
    records = json.loads(copied.read_text("test.json"))["readings"]
    assert [record["test_reads"] for record in records] == list(range(1, 9))
    assert records == [
        evaluation.to_dict()
        for evaluation in sorted(evaluations, key=lambda each: each.reading.number if each.reading else 0)
    ]
    assert copied.directory is not None and not list(copied.directory.glob(".*"))  # neither a lock nor a partial file


def test_a_record_waits_for_that_of_another_process(copied: Storage, demo_shards: Path) -> None:
    code = f"""
import time
from dreamprvr_ray.storage.location import Storage
with Storage.of({copied.location!r}).lock():
    print("locked", flush=True)
    time.sleep(1.5)
    Storage.of({copied.location!r}).write_text("test.json", '{{"readings": [{{"test_reads": 1}}]}}')
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        evaluation = evaluate_checkpoint(copied, ShardSet.open(demo_shards), "test")
    assert evaluation.reading is not None and evaluation.reading.number == 2
    assert [record["test_reads"] for record in json.loads(copied.read_text("test.json"))["readings"]] == [1, 2]


def test_a_reading_is_not_recorded_with_another_checkpoint(
    copied: Storage, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search may publish another model in the minutes that an evaluation takes."""
    score = test_record.rank_split

    def replaced_meanwhile(*arguments: Any, **options: Any) -> Any:
        copied.write_text("metrics.json", '{"epoch": 7}')
        return score(*arguments, **options)

    monkeypatch.setattr(test_record, "rank_split", replaced_meanwhile)
    with pytest.raises(UserError, match="holds another checkpoint since it was evaluated"):
        evaluate_checkpoint(copied, ShardSet.open(demo_shards), "test")
    assert not copied.exists("test.json")


def test_ranks_without_a_record_count_as_a_reading(copied: Storage, demo_shards: Path) -> None:
    """Earlier versions wrote the ranks first and could be killed before the record."""
    copied.write_text("test_ranks.json", "[1, 2]\n")
    for number in (2, 3):
        evaluation = evaluate_checkpoint(copied, ShardSet.open(demo_shards), "test")
        assert evaluation.reading is not None and evaluation.reading.number == number
    assert len(recorded_ranks(copied)) == evaluation.retrieval.recall.queries


def test_a_reading_that_cannot_be_recorded_leaves_no_ranks(
    copied: Storage, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(storage: Storage, name: str, text: str) -> None:
        if name == "test.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(storage, name, text)

    write = Storage.write_text
    monkeypatch.setattr(Storage, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate_checkpoint(copied, ShardSet.open(demo_shards), "test")
    assert not copied.exists("test_ranks.json")


@pytest.mark.parametrize("content", ["", "[]", '{"readings": 3}', '{"readings": [3]}', '{"reading": []}'])
def test_a_damaged_record_is_reported_before_test_is_read(
    content: str, copied: Storage, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.write_text("test.json", content)
    monkeypatch.setattr(test_record, "rank_split", lambda *_, **__: pytest.fail("test was read"))
    for read in (recorded_test, lambda storage: evaluate_checkpoint(storage, ShardSet.open(demo_shards), "test")):
        with pytest.raises(UserError) as error:
            read(copied)
        assert str(error.value).startswith(f"{copied}/test.json: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{}", '["1"]', "[1, null]", "[true]", "[0]", f"[1{'0' * 400}]"])
def test_damaged_ranks_are_reported(content: str, copied: Storage) -> None:
    copied.write_text("test_ranks.json", content)
    with pytest.raises(UserError, match=r"test_ranks\.json: damaged: "):
        recorded_ranks(copied)


def test_a_record_that_is_not_text_is_reported(copied: Storage) -> None:
    assert copied.directory is not None
    for name, read in (("test.json", recorded_test), ("test_ranks.json", recorded_ranks)):
        (copied.directory / name).write_bytes(b'{"readings": "\xff"}')
        with pytest.raises(UserError) as error:
            read(copied)
        assert str(error.value) == f"{copied}/{name}: damaged: not UTF-8 at byte 14"
    (copied.directory / "test_ranks.json").unlink()
    with pytest.raises(UserError, match=r"test_ranks\.json: no such file$"):
        recorded_ranks(copied)


def test_weights_that_give_no_finite_scores_are_not_evaluated(
    copied: Storage, demo_shards: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Finite weights of a checkpoint without checksums can be so large that every score is NaN."""
    assert copied.directory is not None
    path = copied.directory / "weights.safetensors"
    save_file({name: tensor * 1e30 for name, tensor in load_file(path).items()}, path)
    (copied.directory / "checksums.json").unlink()
    for split in ("val", "test"):
        done = call("evaluate", "--checkpoint", copied, "--shards", demo_shards, "--split", split)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            rf"error: {copied}: split {split}: (\d+) of \1 queries have scores that are not finite: its weights are"
            r" damaged, or its training diverged\n",
            done.stderr,
        )
    assert not copied.exists("test.json") and not copied.exists("test_ranks.json")


def test_overwritten_weights_are_not_evaluated(
    copied: Storage, demo_shards: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert copied.directory is not None
    path = copied.directory / "weights.safetensors"
    for has_checksums in (True, False):
        content = bytearray(path.read_bytes())
        content[-4096:] = b"\xff" * 4096
        path.write_bytes(content)
        if not has_checksums:  # as in checkpoints of earlier versions
            (copied.directory / "checksums.json").unlink()
        done = call("evaluate", "--checkpoint", copied, "--shards", demo_shards, "--split", "val")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"error: {path}: damaged: ")


def test_features_that_are_not_finite_are_not_evaluated(
    copied: Storage, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(demo_shards)
    val = shards.split("val")
    val._frames[0] = val._frames[0].clone()
    val._frames[0][-1, 0] = float("nan")
    monkeypatch.setattr(shards, "split", lambda _: val)
    with pytest.raises(UserError) as error:
        evaluate_checkpoint(copied, shards, "val")
    assert str(error.value) == (
        f"{demo_shards}: the features of video '{val.videos[-1]}' in split val are not finite; convert again"
    )


def test_the_result_of_each_query_is_written(
    copied: Storage, demo_shards: Path, tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "queries.jsonl"
    done = call(
        "evaluate", "--checkpoint", copied, "--shards", demo_shards, "--split", "test", "--queries", path, "--json"
    )
    assert done.returncode == 0, done.stderr
    split = ShardSet.open(demo_shards).split("test")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["query"] for row in rows] == split.queries and [row["sentence"] for row in rows] == split.captions
    assert [row["video"] for row in rows] == [split.videos[owner] for owner in split.owner]
    assert [row["rank"] for row in rows] == recorded_ranks(copied)
    assert json.loads(done.stdout.splitlines()[-1])["test_reads"] == 1  # it counts like any evaluation on test
    for row in rows:
        assert list(row) == ["query", "sentence", "video", "rank", "top"]
        top = [video["video"] for video in row["top"]]
        scores = [video["score"] for video in row["top"]]
        assert len(set(top)) == 5 and scores == sorted(scores, reverse=True)
        assert (row["video"] in top) == (row["rank"] <= 5)
        if row["rank"] <= 5:
            assert top[row["rank"] - 1] == row["video"]
    again = call("evaluate", "--checkpoint", copied, "--shards", demo_shards, "--split", "test", "--queries", path)
    assert (again.returncode, again.stderr) == (2, f"error: {path}: already exists; choose another --queries\n")
    missing = tmp_path / "none" / "queries.jsonl"
    refused = call("evaluate", "--checkpoint", copied, "--shards", demo_shards, "--split", "test", "--queries", missing)
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: {missing}: cannot be written: ")
    assert len(json.loads(copied.read_text("test.json"))["readings"]) == 1  # refused before test was read


def test_features_of_other_sizes_are_rejected(checkpoint: Storage) -> None:
    golden = Path(__file__).parents[1] / "golden" / "model" / "authors_format.ckpt"
    manifest = type("Manifest", (), {"video_size": 7, "text_size": 48})()
    shards = type("Shards", (), {"manifest": manifest, "directory": Path("other")})()
    for storage in (checkpoint, Storage.of(golden)):
        with pytest.raises(
            UserError, match=r"trained on features of sizes .* \(videos / queries\), but other has 7 / 48$"
        ):
            evaluate_checkpoint(storage, shards, "val")  # type: ignore[arg-type]


def test_shards_with_only_a_test_split_and_several_right_videos(
    checkpoint: Storage, demo_shards: Path, tmp_path: Path
) -> None:
    model = Storage.of(str(shutil.copytree(str(checkpoint), tmp_path / "model")))
    sizes, random = ShardSet.open(demo_shards).manifest, np.random.default_rng(0)
    videos = {f"v{number}": random.standard_normal((9, sizes.video_size)) for number in range(4)}
    tokens = random.standard_normal((4, 5, sizes.text_size))
    queries = [Query(f"{video}#0", video, "a", tokens[number]) for number, video in enumerate(videos)]
    every = [replace(query, also=list(videos)) for query in queries]
    recall = []
    for name, own in (("one", queries), ("all", every)):
        shards = write_shards(tmp_path / name, collection="c", splits={"test": FeatureSplit(videos, own)})
        recall.append(evaluate_checkpoint(model, shards, "test").retrieval.recall.at)
    assert recall[0][1] < recall[1][1] == 100
    with pytest.raises(UserError, match="no split 'val'; available: test"):
        evaluate_checkpoint(model, shards, "val")


def test_each_collection_has_its_own_readings_and_ranks(
    checkpoint: Storage, demo_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(str(checkpoint), tmp_path / "copied", ignore=shutil.ignore_patterns("test*"))
    checkpoint, both = Storage.of(copied), [ShardSet.open(shards) for shards in (other_shards, demo_shards)]
    before = evaluate_checkpoint(checkpoint, both[1], "test")
    first = evaluate_each(checkpoint, both, "test")
    again = evaluate_each(checkpoint, both[:1], "test")
    assert [each.reading.number for each in (before, *first) if each.reading] == [1, 1, 2]
    assert again[0].reading is not None and again[0].reading.number == 2
    assert recorded_test(checkpoint, "other") == first[0] and recorded_test(checkpoint, "third") is None
    assert evaluate_tests_once(checkpoint, Collections(both)) == (before, first[0])
    for evaluation in first:
        ranks = evaluation.retrieval.ranks
        assert ranks is not None and recorded_ranks(checkpoint, evaluation.collection) == ranks.tolist()
    assert is_checkpoint_file(further_ranks("other")) and further_ranks("a.b") != further_ranks("a_b")
    lines = table_lines(first)
    assert lines[1].startswith("test of other") and lines[2].startswith("test of demo") and lines[3].startswith("mean")
