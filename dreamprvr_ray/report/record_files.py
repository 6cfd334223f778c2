"""The types of what a search's files hold, checked before anything is computed with it.

A directory may have been edited or damaged, or written by something else. Keys that are not listed here are allowed:
later versions may write them. NaN and infinity are allowed where a training that diverged wrote them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.results import State
from dreamprvr_ray.user_files import MAX_JSON_BYTES, parse_user_json, read_user_text
from dreamprvr_ray.yaml_files import describe

LARGEST = 1e12  # of any number


def _check_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    if LARGEST < abs(value) < float("inf"):
        raise ValueError(f"must be at most {LARGEST:g}")
    return value


def _check_value(value: Any) -> Any:
    return value if isinstance(value, (bool, str)) else _check_number(value)


Number = Annotated[Any, AfterValidator(_check_number)]
Value = Annotated[Any, AfterValidator(_check_value)]  # of a configuration key
Count = Annotated[int, Field(ge=0, le=10**9)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TrialEntry(_Record):
    """An entry of `leaderboard.json`."""

    number: Count
    state: Literal[get_args(State)]  # type: ignore[valid-type]
    best_sumr: Number | None = None
    best_epoch: Count | None = None
    epochs: Count | None = None
    values: dict[str, Value] | None = None
    last_sumr: Number | None = None
    checkpoint: str | None = None
    error: str | None = None


class TrialAttributes(_Record):
    """What the study holds of a trial, apart from its state."""

    params: dict[str, Value]
    values: list[Number] | None
    intermediate_values: dict[Count, Number]
    epochs: Count | None = None
    best_epoch: Count | None = None
    best_SumR: Number | None = None
    seconds: Number | None = None
    reason: str | None = None
    infeasible: bool | None = None
    share: Count | None = None


class StudyAttributes(_Record):
    """What the study itself holds."""

    objectives: list[str] | tuple[str, ...] | None = None


class EpochLine(_Record):
    """A line of `epochs.jsonl`."""

    epoch: Count
    SumR: Number
    seconds: Number | None = None
    finished: bool | None = None


class _Recall(_Record):
    queries: Count = 0
    at_1: Number | None = Field(default=None, alias="R@1")
    at_5: Number | None = Field(default=None, alias="R@5")
    at_10: Number | None = Field(default=None, alias="R@10")
    at_100: Number | None = Field(default=None, alias="R@100")
    SumR: Number | None = None


class _Group(_Recall):
    queries: Count


class _Moments(_Record):
    queries: Count
    mean_IoU: Number
    found_0_3: Number = Field(alias="IoU>=0.3")
    found_0_5: Number = Field(alias="IoU>=0.5")
    found_0_7: Number = Field(alias="IoU>=0.7")
    first_0_3: Number = Field(alias="R@1, IoU>=0.3")
    first_0_5: Number = Field(alias="R@1, IoU>=0.5")
    first_0_7: Number = Field(alias="R@1, IoU>=0.7")


class TestResult(_Recall):
    """The result of an evaluation on test: a reading in `test.json`, or part of `final.json`."""

    split: str = ""
    collection: str = ""
    protocol: str = ""
    videos: Count = 0
    median_rank: Number | None = None
    mean_rank: Number | None = None
    right_videos: Count | None = None
    list_recall: _Recall | None = None
    ties: Count = 0
    by_moment: dict[str, _Group] | None = None
    moments: _Moments | None = None
    zero_shot_moments: _Moments | None = None
    at: str = ""
    shards: str = ""
    test_reads: Count = 0


class CheckpointMetrics(_Recall):
    """`metrics.json` of a checkpoint, as far as it is the result on val."""

    SumR: Number
    collection: str | None = None
    protocol: str | None = None


class TestFile(_Record):
    """`test.json`."""

    readings: list[TestResult] | None = None


class _Run(_Record):
    seed: Count | None = None
    val_SumR: Number | None = None
    best_epoch: Count | None = None
    checkpoint: str | None = None
    directory: str | None = None
    test: TestResult
    tests: list[TestResult] | None = None


class _Candidate(_Record):
    name: str
    trial: Count | None = None
    values: dict[str, Value] | None = None
    best_epoch: Count | None = None
    runs: list[_Run]
    ablated: str | None = None
    title: str | None = None


class _Comparison(_Record):
    better: str
    than: str
    difference: Number
    interval: list[Number] = Field(min_length=2, max_length=2)
    confidence: float = Field(ge=0, le=1)
    resamples: Count
    seeds: Count | None = None
    collection: str | None = None


class FinalFile(_Record):
    """`final.json`."""

    split: str
    collection: str
    protocol: str
    candidates: list[_Candidate]
    comparison: _Comparison | None = None
    ablations: list[_Comparison] | None = None
    shared_seeds: list[Count] | None = None
    by_collection: list[_Comparison] | None = None
    with_val: bool | None = None
    versions: dict[str, Any] | None = None
    commands: list[str] | None = None


class FinalPlanFile(_Record):
    """`final_runs.json`."""

    runs: list[Annotated[str, Field(pattern=r"^[\w.-]+$")]]


class _Final(_Record):
    with_val: bool | None = None


class _Settings(_Record):
    config: str | None = None
    shards: str | list[str] | None = None
    out: str | None = None
    trials: Count | None = None
    space: dict[str, Any] | None = None
    store: str | None = None
    final: _Final | None = None


class _Training(_Record):
    epochs: Count | None = None
    seed: Count | None = None


class _Loss(_Record):
    hard_negative_start_epoch: Count | None = None


class _Experiment(_Record):
    training: _Training = _Training()
    loss: _Loss = _Loss()


class _Ablations(_Record):
    seeds: Count
    rows: dict[str, dict[str, Value]]


class _AblationSettings(_Settings):
    ablations: _Ablations


class AblationFile(_Record):
    """`search.yaml` of an ablation table."""

    name: str | None = None
    search: _AblationSettings


class SearchFile(_Record):
    """`search.yaml`."""

    name: str | None = None
    experiment: _Experiment
    search: _Settings


Read = TypeVar("Read")


def check(kind: Any, values: Any, source: str, writer: str = "`tune`") -> None:
    """Raise `UserError`, naming `source` and the first key that is wrong, unless the values are of the kind."""
    try:
        TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(str(part) for part in mistake["loc"])
        at = f"{key} " if key else ""
        if mistake["type"] == "missing":
            reason = f"{at}is missing"
        else:
            said = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            reason = f"{at}= {describe(mistake['input'])}: {said}" if key else said
        raise UserError(f"{source}: was not written by {writer}: {reason}") from None


def read_json_record(path: Path, kind: Any) -> Any:
    """Return the checked content of a JSON file, or None if it does not exist. Raises `UserError` for anything else."""
    if not path.exists():
        return None
    values = parse_user_json(read_user_text(path, MAX_JSON_BYTES), str(path))
    check(kind, values, str(path))
    return values


def read_epoch_lines(path: Path) -> list[dict[str, Any]]:
    """Return the checked lines of `epochs.jsonl`, without a last line that a kill left incomplete.

    The file need not exist.
    """
    if not path.exists():
        return []
    lines = read_user_text(path, MAX_JSON_BYTES).split("\n")[:-1]
    epochs = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        epochs.append(parse_user_json(line, where))
        check(EpochLine, epochs[-1], where)
    return epochs
