"""The keys of a search file, typed and validated: budget, resources, pruning, sampler and what follows the search.

The searched space itself is read by `dreamprvr_ray.search.space`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from dreamprvr_ray.config_sections import MAX_COUNT, Count, CountOrZero, NonNegative, Section
from dreamprvr_ray.data.locations import Locations, one_or_several
from dreamprvr_ray.runtime.gpu_shares import refuse_gpus
from dreamprvr_ray.yaml_files import describe

RESUME_MAY_CHANGE = ("out", "shards", "source", "trial", "trials", "trackers", "hours", "keep", "final", "ablations")
"""Keys that may differ when a search is resumed: they do not decide which trials run or how a trial trains."""


def _or_auto(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Report one mistake for a union with `auto`, where pydantic reports one per member of the union."""
    try:
        return check(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Input should be", "must be")
        raise ValueError(f"{value!r}: {reason}, or auto") from None


def _one_or_several(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Read one location, or a list of them: pydantic would report a mistake for each member of the union."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{describe(value)}: must be a location, or a list of the locations of several collections")
    return check(one_or_several(texts))


class TrialResources(Section):
    """Resources of one trial. One worker trains in the trial's own process; several are a nested Ray Train run."""

    workers: Annotated[Count | Literal["auto"], WrapValidator(_or_auto)] = Field(
        default=1,
        description="Data-parallel workers per trial: an integer of at least 1, or `auto`. With `auto`, at most four "
        "trials run at a time and the remaining GPUs become additional workers of each trial.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="CPUs per worker, above 0. By default the CPUs are divided evenly among the workers of all "
        "concurrent trials.",
    )
    gpus_per_worker: Annotated[NonNegative | Literal["auto"] | None, WrapValidator(_or_auto)] = Field(
        default=None,
        description="GPUs per worker: a number of at least 0, which may be a fraction, or `auto` for the fraction "
        "that a trial's estimated memory needs. By default 1 if there are enough GPUs, otherwise 0; with `workers: "
        "auto`, `auto`.",
    )
    at_a_time: Count | None = Field(
        default=None,
        description="Maximum number of concurrent trials, at least 1. By default as many as fit, at most four: a "
        "sampler that proposes more at a time knows too few results.",
    )

    @model_validator(mode="after")
    def _check_shared_gpus(self) -> TrialResources:
        gpus = self.gpus_per_worker
        if isinstance(gpus, float) and isinstance(self.workers, int) and (reason := refuse_gpus(self.workers, gpus)):
            raise ValueError(reason)
        return self


class Pruning(Section):
    """Successive halving on val SumR.

    Trials are compared after `grace_epochs`, `grace_epochs * reduction_factor`, ... epochs. At each of these only the
    best 1 / `reduction_factor` of the trials continue.
    """

    enabled: bool = Field(
        default=True, description="Whether trials are pruned. Ignored with two objectives: nothing is pruned then."
    )
    grace_epochs: Count = Field(
        default=2,
        description="Epochs before trials are first compared and the weak ones stopped. Choose it beyond "
        "`loss.hard_negative_start_epoch`.",
    )
    reduction_factor: Annotated[int, Field(ge=2, le=MAX_COUNT)] = Field(
        default=3, description="The best 1 / `reduction_factor` of the trials continue at each comparison; at least 2."
    )

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs at which trials of `epochs` epochs are compared."""
        rungs, rung = [], self.grace_epochs
        while self.enabled and rung < epochs:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs


class SamplerSettings(Section):
    """The sampling algorithm."""

    kind: Literal["tpe", "gp", "random"] = Field(
        default="tpe", description="Optuna's sampler: `tpe`, `gp` (a Gaussian process) or `random`."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0,
        description="Seed of the sampler, from 0 to 2147483647. With one trial at a time it determines all proposals.",
    )
    startup_trials: CountOrZero = Field(
        default=10,
        description="Random trials before the sampler starts to model the results, at least 0. The first trial, "
        "which uses the configuration's own values, is not one of them.",
    )


class FinalSettings(Section):
    """What follows a search: the settings to retrain with several seeds, each evaluated once on test."""

    top: Count = Field(
        default=1,
        description="Number of best trials to retrain in addition to the configuration's own settings, at least 1.",
    )
    seeds: Count = Field(
        default=3,
        description="Training seeds per retrained setting, at least 1. They are the smallest that no trial has, the "
        "same for all settings: with a trial's own seed, the luck for which it was selected would count as a result.",
    )
    ablate: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Searched keys to ablate. For each, the best trial is also retrained with the configuration's "
        "own value of that key, which isolates its effect.",
    )
    with_val: bool = Field(
        default=False,
        description="Whether to retrain on train and val together, for as many epochs as the trial's best one. "
        "Nothing is left to choose an epoch by then. The best epoch of a trial that was pruned or failed is not known: "
        "its settings are trained for the median of the finished trials' best epochs, or all epochs if none did.",
    )


class AblationSettings(Section):
    """A table of ablations in place of a search: settings to train with several seeds, each evaluated once on test."""

    seeds: Count = Field(
        default=3,
        description="Training seeds per row, at least 1: the configuration's own and those that follow it.",
    )
    rows: dict[str, dict[str, Any]] = Field(
        description="The rows of the table: for each name, the values that differ from the configuration's, by dotted "
        "key. The other rows are compared with the first."
    )


class SourceSettings(Section):
    """Where the dataset's distributed features are expected. Used to name the command that converts them to shards."""

    directory: str = Field(description="Directory of the distributed features: `--source` of `convert`.")
    collection: str = Field(description="Name of the dataset: `--collection` of `convert`.")
    features: str | None = Field(
        default=None,
        description="Name of the video features: `--features` of `convert`. By default the dataset's only ones.",
    )

    def convert_command(self, shards: str) -> str:
        """Return the command that converts these features to `shards`."""
        features = f" --features {self.features}" if self.features else ""
        return (
            f"python -m dreamprvr_ray.convert --source {self.directory} --collection {self.collection}{features}"
            f" --out {shards}"
        )


class SearchSettings(Section):
    """All keys of a search file."""

    config: str = Field(
        description="The configuration that trials start from: a preset (`tvr`, `activitynet`, `charades`, `demo`) "
        "or a YAML file. Its own values are the first trial."
    )
    shards: Annotated[Locations, WrapValidator(_one_or_several)] = Field(
        description="Shards written by `convert`: a directory or a URI, or a list of those of several collections of "
        "one encoder, to train on together: the mean of their val SumR is then the objective, and each is tested. "
        "`--shards` overrides it."
    )
    out: str = Field(
        description="The search's directory or URI. It must be new unless resumed. `--out` overrides it.",
    )
    trials: Count = Field(description="Number of trials, at least 1. `--trials` overrides it.")
    space: dict[str, Any] = Field(
        description="The search space by configuration key: `{int: [low, high]}`, `{float: [low, high]}` or "
        "`{choice: [...]}`, each optionally with `log: true`, `step` or `when: CONDITION`; or a fixed value."
    )
    constraints: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Conditions that every trial must satisfy. A proposal that violates one is rejected and drawn "
        "again.",
    )
    against: Literal["gflop_per_video", "encode_ms"] | None = Field(
        default=None,
        description="A second objective to minimize: `gflop_per_video`, the computed cost of training on a video in "
        "GFLOP, or `encode_ms`, the measured time to encode one in milliseconds. By default val SumR is the only "
        "objective. Nothing is pruned with two.",
    )
    store: str | None = Field(
        default=None,
        description="URL of a database for the Optuna study, which may hold those of other searches. By default a file "
        "in `out`.",
    )
    trial: TrialResources = Field(default=TrialResources(), description="Resources of one trial.")
    pruning: Pruning = Field(default=Pruning(), description="Early stopping of trials.")
    sampler: SamplerSettings = Field(default=SamplerSettings(), description="The sampling algorithm.")
    keep: Count = Field(default=3, description="Number of best trials whose best checkpoint is kept, at least 1.")
    final: FinalSettings | None = Field(
        default=None,
        description="Retraining after the search. By default nothing is retrained: the best trial's checkpoint is "
        "evaluated once on test.",
    )
    ablations: AblationSettings | None = Field(
        default=None,
        description="A table of ablations in place of a search. `space` may then fix values, but search none, and the "
        "keys that only a search needs must be left out.",
    )
    source: SourceSettings | None = Field(
        default=None, description="Where the dataset's distributed features are expected."
    )
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        default=(),
        strict=False,
        description="Experiment trackers to report to: `mlflow`, `wandb`. Each is an optional dependency; endpoints "
        "and credentials come from the tracker's environment variables.",
    )
    hours: NonNegative | None = Field(
        default=None,
        description="Hours of all sessions together after which no new trial starts. By default, and with 0, there is "
        "no limit.",
    )

    @field_validator("trackers")
    @classmethod
    def _check_installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            raise ValueError(f"not installed; run pip install 'dreamprvr_ray[{','.join(missing)}]'")
        return names


def search_keys() -> list[str]:
    """Return every dotted key of a search file that `--set` may change: not the space, its constraints and the rows."""
    keys = []
    for name, field in SearchSettings.model_fields.items():
        if name in ("space", "constraints"):
            continue
        section = _section(field.annotation)
        if section is None or section is FinalSettings:  # `final=null` turns the retraining off
            keys.append(name)
        if section is not None:
            keys += [f"{name}.{key}" for key in section.model_fields]
    return [key for key in keys if key != "ablations.rows"]


def _section(annotation: Any) -> type[Section] | None:
    """Return the section in an annotation `Section` or `Section | None`, None for any other annotation."""
    for member in (annotation, *get_args(annotation)):
        if isinstance(member, type) and issubclass(member, Section):
            return member
    return None
