"""The typed, frozen configuration of one experiment: load it, override keys, validate it.

A configuration is a preset (`tvr`, `activitynet` and `charades` hold the paper's settings; `demo` is small), a YAML
file, or a YAML file that starts from a preset (`preset: tvr`) and gives only the keys that differ. Overrides use dotted
keys (`model.registers=6`). Every key carries its documentation: `docs/configuration.md` and `--help` are generated from
it.

    experiment = load_experiment("tvr", overrides={"model.registers": 6})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dreamprvr_ray.config_sections import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    TrainingConfig,
)
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.yaml_files import describe, flatten, merge, nested, parse_yaml, read_yaml

# Environment variable: fp32 or bf16, which is then what `training.precision: auto` stands for.
AUTO_PRECISION = "DREAMPRVR_RAY_AUTO_PRECISION"
RESUME_MAY_CHANGE = ("training.max_failures",)  # they do not affect the result of a training
PAPERS_SETTINGS, OWN_SETTINGS = "the paper's settings", "the configuration's own settings"  # names of a configuration
PAPER_PRESETS = ("tvr", "activitynet", "charades")
# Keys that are no part of the paper's settings: they belong to the data, to the machine or to a single training.
NO_SETTINGS = ("data.video_size", "data.text_size", "training.seed", "training.precision", *RESUME_MAY_CHANGE)
WEIGHTS = "data.weights."  # prefix of a key that ends with the name of a collection
FULL_WEIGHT = 1.0  # of a collection for which `data.weights` has no value

S = TypeVar("S", bound=Section)


class Experiment(Section):
    """Everything that determines the training result, apart from the data and the machine."""

    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    @property
    def chooses_encoder_weight(self) -> bool:
        """Whether val chooses the encoder's weight in the score."""
        return self.evaluation.encoder_weight == "auto" and not self.training.with_val

    def flat(self) -> dict[str, Any]:
        """Return every value by its dotted key."""
        return flatten(self.model_dump())

    def with_values(self, overrides: Mapping[str, Any], source: str = "--set") -> Experiment:
        """Return a copy with `{dotted key: value}` replaced.

        Raises `UserError` naming `source`, the key and what is allowed.
        """
        values = self.model_dump()
        for key, value in overrides.items():
            values = merge(values, nested(key, value))
        return build_experiment(values, source)

    def with_feature_sizes(self, video_size: int, text_size: int, source: str) -> Experiment:
        """Return a copy for features of these sizes; a hidden size of 0 becomes that of the video features.

        Raises `UserError` naming `source` if the model cannot have that hidden size.
        """
        sizes = {"data.video_size": video_size, "data.text_size": text_size}
        if self.model.hidden_size == 0:
            sizes["model.hidden_size"] = video_size
        return self.with_values(sizes, source)

    def changes_from(self, before: Experiment) -> list[str]:
        """What decides the result of a training and is not as it was, a line each; how faults are met may change."""
        was, now = before.flat(), self.flat()
        # Only the keys of `data.weights` may be missing in one of them.
        values = {key: (was.get(key, FULL_WEIGHT), now.get(key, FULL_WEIGHT)) for key in now | was}
        return [
            f"{key} was {describe(old)} and is {describe(new)} now"
            for key, (old, new) in values.items()
            if old != new and key not in RESUME_MAY_CHANGE
        ]

    def to_yaml(self) -> str:
        """Return the whole configuration as YAML that `load_experiment` can read."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def presets() -> list[str]:
    """Return the names of the shipped presets."""
    folder = resources.files("dreamprvr_ray") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_experiment(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Load a preset by name or a YAML file, and apply `overrides` by dotted key.

    Raises `UserError`: one line per mistake, naming the file, the key, the value and what is allowed.
    """
    source, values = _load_values(name)
    if not overrides:
        return build_experiment(values, source)
    return build_experiment(values, source).with_values(overrides)


def has_papers_settings(experiment: Experiment) -> bool:
    """Return whether a configuration has the values of one of the presets that hold the paper's, whatever its name.

    Feature sizes, seed and precision may differ.
    """

    def settings(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in NO_SETTINGS}

    own = settings(experiment.flat())
    return any(own == settings(load_experiment(preset).flat()) for preset in PAPER_PRESETS)


def baseline_name(experiment: Experiment) -> str:
    """Return what to call a search's configuration, with which its trials are compared."""
    return PAPERS_SETTINGS if has_papers_settings(experiment) else OWN_SETTINGS


def build_experiment(values: Any, source: str) -> Experiment:
    """Validate nested values as an `Experiment`. Raises `UserError` listing every mistake, each naming `source`."""
    return validated(Experiment, values, source)


def validated(section: type[S], values: Any, source: str) -> S:
    """Validate nested values, as a file holds them, as a section.

    Raises `UserError` listing every mistake, each naming `source`.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: must be a mapping of keys to values, not {describe(values)}")
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(*(f"{source}: {line}" for line in _mistakes(error, list(_keys(section, ""))))) from None


def known_keys() -> list[str]:
    """Return every dotted key of `Experiment`, apart from `data.weights`, whose keys end with a collection's name."""
    return [key for key in _keys(Experiment, "") if f"{key}." != WEIGHTS]


def is_known_key(key: str) -> bool:
    """Return whether a configuration may have a value of this dotted key."""
    return key in known_keys() or (key.startswith(WEIGHTS) and key != WEIGHTS)


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Convert `["model.registers=6"]` to `{"model.registers": 6}`; values are parsed as YAML.

    Raises `UserError` for a pair without a key or a `=`.
    """
    mistakes = [f"--set {pair}: must be KEY=VALUE" for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if mistakes:
        raise UserError(*mistakes)
    return {key: parse_yaml(text, f"--set {key}") for key, _, text in (pair.partition("=") for pair in pairs)}


def _load_values(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Return a configuration's name for messages, and its nested values, not yet validated."""
    path = Path(name)
    if str(name) in presets():
        text = (resources.files("dreamprvr_ray") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        return f"preset {name}", parse_yaml(text, f"preset {name}")
    if not path.suffix and not path.exists():
        suggestion = did_you_mean(str(name), presets())
        raise UserError(f"--config {name}: neither a file nor a preset ({', '.join(presets())}){suggestion}")
    values = read_yaml(path)
    if "preset" not in values:
        return str(path), values
    preset = values.pop("preset")
    if preset not in presets():
        allowed = f"must be one of {', '.join(presets())}{did_you_mean(str(preset), presets())}"
        raise UserError(f"{path}: preset = {describe(preset)}: {allowed}")
    _, preset_values = _load_values(preset)
    return str(path), merge(preset_values, values)


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _mistakes(error: ValidationError, known: list[str]) -> Iterator[str]:
    """Yield one line for each mistake that pydantic found."""
    sections = {key.rsplit(".", 1)[0] for key in known}
    for mistake in error.errors():
        key = ".".join(str(part) for part in mistake["loc"])
        kind, value = mistake["type"], mistake["input"]
        if kind in ("extra_forbidden", "invalid_key"):  # an invalid key is not a string, as in `8: 3`
            yield f"unknown key '{key}'{did_you_mean(key, set(known) | sections)}"
        elif kind == "missing":
            yield f"{key} is missing"
        elif kind == "value_error":
            yield f"{key}: {mistake['ctx']['error']}"
        elif kind == "model_type":
            yield f"{key} = {describe(value)}: must be a mapping of keys to values"
        else:
            yield f"{key} = {describe(value)}: {mistake['msg'].replace('Input should be', 'must be')}"
