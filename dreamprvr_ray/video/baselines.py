"""What a search's setting reaches if its videos lack what makes moments: their parts, their order, or most frames.

    python -m dreamprvr_ray.video.baselines --search EXPERIMENT --shards SHARDS --out DIR

trains the selected setting of a finished search on three changed copies of its shards, with the seeds of its final
runs, evaluates each model once on test, and prints the results below the search's own. Train, val and test are changed
alike. A model that finds moments is better than all three; where it is not, a video's moments do not matter.

The same command resumes after an interruption. Several models are trained at a time, each on one core.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamprvr_ray import command_line
from dreamprvr_ray.cpus import allowed_cpus
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.search.layout import BEST, FINAL
from dreamprvr_ray.storage.files import read_json, write_json
from dreamprvr_ray.storage.location import local_folder

if TYPE_CHECKING:
    from dreamprvr_ray.data.in_memory import FeatureSplit
    from dreamprvr_ray.data.shards import Split
    from dreamprvr_ray.search.final_result import Candidate

# What each baseline has in place of a video, by its name.
CHANGES: Mapping[str, str] = {
    "mean frame": "the mean of the video's frames",
    "single frame": "the frame in the video's middle",
    "shuffled frames": "the video's frames in random order",
}
MODEL = "the search's model"
RECORD = "baselines.json"
DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Row:
    """The test results of one setting: a value for each seed, in percent."""

    name: str
    recall: Mapping[int, tuple[float, ...]]  # by depth
    sumr: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {"name": self.name, **{f"R@{k}": list(v) for k, v in self.recall.items()}, "SumR": list(self.sumr)}


@dataclass(frozen=True)
class _Task:
    """One training."""

    change: str
    seed: int
    experiment: Mapping[str, Any]  # dotted keys and values
    shards: str
    directory: str

    @property
    def key(self) -> str:
        return f"{self.change}, seed {self.seed}"


def change_frames(frames: np.ndarray, change: str, random: np.random.Generator) -> np.ndarray:
    """Return what a baseline has in place of a video's frames (n, Dv): (n, Dv), or (1, Dv)."""
    if change == "mean frame":
        mean: np.ndarray = frames.mean(axis=0, keepdims=True)
        return mean
    if change == "single frame":
        return frames[len(frames) // 2 :][:1]
    return frames[random.permutation(len(frames))]


def run_baselines(search: Path, shards: str, out: Path, log: Callable[[str], None]) -> list[Row]:
    """Train and test the baselines of a finished search, or those of them that `out` does not hold yet.

    Returns the search's own row first.

    Raises:
        UserError: The search has no final runs, the shards are not its own, or `out` holds something else.
        Failure: A training's process has died.
    """
    from dreamprvr_ray.api import load_model, open_shards

    candidate = _selected(search)
    experiment = load_model(search / BEST).experiment
    shard_set = open_shards(shards)
    seeds = [run.seed for run in candidate.runs if run.seed is not None]
    identity = {
        "fingerprint": shard_set.manifest.fingerprint,
        "experiment": {key: value for key, value in experiment.flat().items() if key != "training.seed"},
        "seeds": seeds,
    }
    done = _recorded(out, identity)
    tasks = []
    for change in CHANGES:
        place = out / change.replace(" ", "_")
        own = [
            _Task(change, seed, {**experiment.flat(), "training.seed": seed}, str(place / "shards"), str(place / name))
            for seed in seeds
            for name in [f"seed_{seed}"]
        ]
        missing = [task for task in own if task.key not in done]
        if missing:
            _write_changed(shard_set, change, place / "shards")
        tasks += missing
    for task, result in _train_all(tasks):
        done[task.key] = result
        write_json(out / RECORD, {"identity": identity, "results": done})
        log(f"{task.key}: test R@1 {result['R@1']:.1f}, SumR {result['SumR']:.1f}")
    rows = [_row_of(candidate)]
    for change in CHANGES:
        results = [done[f"{change}, seed {seed}"] for seed in seeds]
        recall = {depth: tuple(result[f"R@{depth}"] for result in results) for depth in DEPTHS}
        rows.append(Row(change, recall, tuple(result["SumR"] for result in results)))
    return rows


def _selected(search: Path) -> Candidate:
    """Return the candidate whose model a search has selected. Raises `UserError` if the search has not finished."""
    from dreamprvr_ray.search.final_result import FinalRecord

    if not (search / FINAL).is_file():
        raise UserError(f"{search}: has no {FINAL}: give the directory of a search that has finished")
    try:
        candidate = FinalRecord.from_dict(read_json(search / FINAL)).result.candidates[0]
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"{search / FINAL}: damaged") from None
    if any(run.seed is None for run in candidate.runs):
        raise UserError(f"{search / FINAL}: the model was not retrained, so that its seed is unknown")
    return candidate


def _row_of(candidate: Candidate) -> Row:
    recalls = [run.test.retrieval.recall for run in candidate.runs]
    at = {depth: tuple(recall.at[depth] for recall in recalls) for depth in DEPTHS}
    return Row(MODEL, at, tuple(recall.sumr for recall in recalls))


def _recorded(out: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the results in `out`. Raises `UserError` if they are those of another search."""
    path = out / RECORD
    if not out.exists() or not any(out.iterdir()):
        write_json(path, {"identity": identity, "results": {}})
        return {}
    record = read_json(path) if path.exists() else {}
    if record.get("identity") != identity:
        raise UserError(f"{out}: already exists and does not hold this search's baselines; choose another --out")
    results: dict[str, dict[str, float]] = record["results"]
    return results


def _write_changed(shard_set: Any, change: str, directory: Path) -> None:
    """Write shards with changed videos; those that are there stay as they are."""
    from dreamprvr_ray.data.in_memory import write_shards

    names = shard_set.manifest.splits
    splits = {name: _changed(shard_set.split(name), change, place) for place, name in enumerate(names)}
    write_shards(directory, collection=shard_set.manifest.collection, splits=splits, one_encoder=False)


def _changed(split: Split, change: str, seed: int) -> FeatureSplit:
    from dreamprvr_ray.data.captions import Query
    from dreamprvr_ray.data.in_memory import FeatureSplit

    random = np.random.default_rng(seed)
    videos = {
        video: change_frames(split.frames(number).float().numpy(), change, random)
        for number, video in enumerate(split.videos)
    }
    queries = [
        Query(query, split.videos[owner], sentence, split.tokens(number, number + 1)[0].float().numpy())
        for number, (query, owner, sentence) in enumerate(
            zip(split.queries, split.owner.tolist(), split.captions, strict=True)
        )
    ]
    return FeatureSplit(videos, queries)


def _train_all(tasks: Sequence[_Task]) -> Iterator[tuple[_Task, dict[str, float]]]:
    """Yield each task with its result as it finishes."""
    if not tasks:
        return
    pool = ProcessPoolExecutor(
        min(len(tasks), allowed_cpus()), multiprocessing.get_context("spawn"), initializer=_leave_interrupts
    )
    try:
        futures = {pool.submit(_train, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise Failure("a training's process was killed, perhaps for lack of memory; run again to resume") from None
    finally:
        for process in multiprocessing.active_children():  # those of the pool: what they had done, they resume
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Let the parent process, which gets the same Ctrl-C, stop this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _train(task: _Task) -> dict[str, float]:
    """Train and test one model, in a process with one thread."""
    import torch

    from dreamprvr_ray.api import evaluate_model, train_model
    from dreamprvr_ray.config import load_experiment

    torch.set_num_threads(1)
    experiment = load_experiment("demo", dict(task.experiment))
    train_model(experiment, task.shards, task.directory, resume=True, log=None)
    result = evaluate_model(Path(task.directory) / BEST, task.shards, "test")
    return {key: float(result[key]) for key in (*(f"R@{depth}" for depth in DEPTHS), "SumR")}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table, means over the seeds."""
    seeds = len(rows[0].sumr)
    lines = [f"{'test, mean of ' + str(seeds) + (' seeds' if seeds > 1 else ' seed'):<24}   R@1    R@5   R@10   SumR"]
    for row in rows:
        values = [*(np.mean(row.recall[depth]) for depth in DEPTHS), np.mean(row.sumr)]
        what = f"   {CHANGES[row.name]}" if row.name in CHANGES else ""
        lines.append(f"{row.name:<24}" + "".join(f" {value:6.1f}" for value in values) + what)
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Run the command."""
    parser = command_line.Parser(
        "video.baselines", "Train a search's setting on mean, single and shuffled frames, to see that moments matter."
    )
    parser.add_argument("--search", type=local_folder, required=True, metavar="EXPERIMENT", help="a finished search")
    parser.add_argument("--shards", type=local_folder, required=True, help="its shards")
    parser.add_argument("--out", type=local_folder, required=True, metavar="DIR", help="directory to write")
    options = parser.parse_args(arguments)
    rows = run_baselines(options.search, str(options.shards), options.out, command_line.print_progress)
    print(table(rows))
    if options.json:
        command_line.print_json({"rows": [row.to_dict() for row in rows]})


if __name__ == "__main__":
    command_line.run(main)
