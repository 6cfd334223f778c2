"""The typed, frozen configuration of one experiment: load, override, validate.

A configuration is a preset (`tvr`, `activitynet`, `charades`: the paper's settings, `demo`), a YAML file, or a YAML file that
starts from a preset (`preset: tvr`) and names only what differs. `override` applies dotted keys (`model.registers=6`).

    experiment = load_experiment("tvr", overrides={"model.registers": 6})
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dreamprvr_ray.errors import UserError, did_you_mean

FRAMES = 128  # rows of a video's frame axis (model page, section 1)
CLIPS = 32  # rows of its clip axis
QUERY_TOKENS = 30  # a query is cut to so many tokens
CHANGEABLE = ("training.max_failures",)  # keys that do not decide what a training results in

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, of exact types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Initialization = Literal["paper", "aligned"]


class ModelConfig(Section):
    """The network (model page, section 2).

    `initialization` is `paper`, all linear weights N(0, 0.02); or `aligned`, for features of which one encoder (CLIP, a sentence encoder) made
    both the queries' and the videos': their input layers start from one orthogonal projection, and so compare queries and frames before
    the first step as that encoder does. What is computed is the same.
    """

    registers: Annotated[int, Field(ge=0, le=64)]
    diffusion_steps: Annotated[int, Field(ge=1, le=1000)]
    hidden_size: Annotated[int, Field(ge=8)] = 384
    heads: Count = 4
    branches: Annotated[int, Field(ge=1, le=16)] = 8
    denoiser_layers: Count = 2
    dropout: Fraction
    input_dropout: Fraction
    fusion_temperature: Positive
    initialization: Initialization = "paper"

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.hidden_size % self.heads or self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be even and divisible by heads {self.heads}")
        return self


S = TypeVar("S", bound=Section)


class LossWeights(Section):
    """Weights of the loss terms (model page, section 3); the two triplet terms have weight 1."""

    clip_nce: NonNegative
    frame_nce: NonNegative
    diversity: NonNegative
    similarity: NonNegative
    variational: NonNegative
    denoising: NonNegative


class LossConfig(Section):
    """Loss weights, margins and negatives (model page, section 3)."""

    weights: LossWeights
    margin: Positive
    diversity_margin: Annotated[float, Field(ge=-1, le=1)]
    diversity_scale: Positive
    diversity_focus: NonNegative
    similarity_temperature: Positive
    hard_negative_start_epoch: Annotated[int, Field(ge=0)] = 20
    hard_negative_pool: Count = 20


class OptimizerConfig(Section):
    """Adam with warm-up and linear decay (model page, section 4)."""

    learning_rate: Positive
    warmup_fraction: Fraction = 0.01
    weight_decay: NonNegative = 0.01


TrimFrames = Literal["exact", "batch"]


class DataConfig(Section):
    """What the shards hold, and how videos of fewer than 128 frames are padded.

    Training reads both sizes from the shards' manifest; a preset's serve `--dry-run` only. `trim_frames` is `exact`, the paper's: always 128
    rows, of which the padded ones take part in a video's mean and, as zero rows, in its best token; or `batch`: padding takes part in
    nothing, and a batch is as long as its longest video.
    """

    video_size: Count
    text_size: Count
    trim_frames: TrimFrames = "exact"


class TrainingConfig(Section):
    """Epochs, batch and seed."""

    epochs: Count
    patience: Annotated[int, Field(ge=0)]
    batch_videos: Count = 128
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    with_val: bool = False  # learn from val as well: the last epoch is then the best, for nothing is left to choose by
    max_failures: Annotated[int, Field(ge=0)] = 3  # lost workers or nodes after which a training goes on by itself


class EvaluationConfig(Section):
    """How scores are fused; the frame weight is 1 - `clip_weight`."""

    clip_weight: Annotated[float, Field(ge=0, le=1)]


class Experiment(Section):
    """Everything that decides what is trained, apart from the data and the machines."""

    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key."""
        return flatten(self.model_dump())

    def with_values(self, overrides: Mapping[str, Any], where: str = "--set") -> Experiment:
        """A copy with `{dotted key: value}` replaced. Raises `UserError` naming `where`, the key and what is allowed."""
        values = self.model_dump()
        for key, value in overrides.items():
            values = merge(values, nested(key, value))
        return build_experiment(values, where)

    def changes_from(self, before: Experiment) -> list[str]:
        """What decides the result of a training and is not as it was, a line each; how faults are met may change."""
        was, now = before.flat(), self.flat()
        return [
            f"{key} was {was[key]!r} and is {now[key]!r} now"
            for key in now
            if now[key] != was[key] and key not in CHANGEABLE
        ]

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_experiment` reads."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


@dataclass(frozen=True)
class WorkerCount:
    """So many workers, or with `at_least` as many as there is room for, up to `most`."""

    most: int
    at_least: int | None = None

    @classmethod
    def parse(cls, text: str) -> WorkerCount:
        """`4` is four workers, `2:8` from two to eight. Raises `UserError` on anything else."""
        match = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
        if match:
            most, at_least = int(match[2]), int(match[1]) if match[1] else None
            if most >= 1 and (at_least is None or 1 <= at_least <= most):
                return cls(most, at_least)
        raise UserError(
            f"--workers {text}: must be a number from 1 on, or the least and the most that there may be, as in 2:8"
        )


class _Loader(yaml.SafeLoader):
    """YAML that reads 3e-4 as a number (YAML 1.1 asks for a dot) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if (
                key_node.tag == "tag:yaml.org,2002:merge"
            ):  # `<<: *anchor` is no key, and may stand beside one of the same name
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            line = key_node.start_mark.line + 1
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' is given twice (line {seen[key]} too)", problem_mark=key_node.start_mark
                )
            if isinstance(key, str):
                seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises `UserError` naming `where` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: {getattr(error, 'problem', None) or 'not valid YAML'}") from None
    except ValueError as error:  # of a date that is none, as 2026-13-01
        raise UserError(f"{where}: not valid YAML: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` where it is missing, unreadable or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys and values, not {_described(values)}")
    return values


def presets() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("dreamprvr_ray") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_experiment(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a preset's name or a YAML file, with `overrides` by dotted key.

    Raises `UserError`: one line per mistake, naming the file, the key, the value and what is allowed.
    """
    where, values = _config_values(name)
    if not overrides:
        return build_experiment(values, where)
    return build_experiment(values, where).with_values(overrides)


def build_experiment(values: Mapping[str, Any], where: str) -> Experiment:
    """An `Experiment` from nested values. Raises `UserError` with every mistake in them, each naming `where`."""
    return validated(Experiment, values, where)


def validated(section: type[S], values: Mapping[str, Any], where: str) -> S:
    """A section from nested values. Raises `UserError` with every mistake in them, each naming `where`."""
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        known = [key for key, _ in _known(section, "")]
        raise UserError(*(f"{where}: {line}" for line in _mistakes(error, known))) from None


def known_keys() -> list[str]:
    """Every dotted key of `Experiment`."""
    return [key for key, _ in _known(Experiment, "")]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"registers": 8}}` as `{"model.registers": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(key: str, value: Any) -> dict[str, Any]:
    """`("model.registers", 8)` as `{"model": {"registers": 8}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `base` with the nested `changes` put in; neither is checked."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["model.registers=6"]` as `{"model.registers": 6}`; values are YAML. Raises `UserError` where one has no `=`."""
    mistakes = [
        f"--set {pair}: write it as key=value" for pair in pairs if not pair.partition("=")[0] or "=" not in pair
    ]
    if mistakes:
        raise UserError(*mistakes)
    return {key: parse_yaml(text, f"--set {key}") for key, _, text in (pair.partition("=") for pair in pairs)}


def _config_values(name: str | Path) -> tuple[str, dict[str, Any]]:
    """Where a configuration comes from, and its nested values."""
    path = Path(name)
    if str(name) in presets():
        text = (resources.files("dreamprvr_ray") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        return f"preset {name}", parse_yaml(text, f"preset {name}")
    if not path.suffix and not path.exists():
        raise UserError(
            f"--config {name}: neither a file nor a preset ({', '.join(presets())}){did_you_mean(str(name), presets())}"
        )
    values = read_yaml(path)
    if "preset" not in values:
        return str(path), values
    base = values.pop("preset")
    if base not in presets():
        raise UserError(
            f"{path}: preset = {_described(base)}: must be one of {', '.join(presets())}{did_you_mean(str(base), presets())}"
        )
    _, base_values = _config_values(base)
    return str(path), merge(base_values, values)


def _known(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _mistakes(error: ValidationError, known: list[str]) -> Iterator[str]:
    """One line for each mistake that pydantic found."""
    sections = {key.rsplit(".", 1)[0] for key in known}
    for mistake in error.errors():
        key = ".".join(str(part) for part in mistake["loc"])
        kind, value = mistake["type"], mistake["input"]
        if kind in ("extra_forbidden", "invalid_key"):  # an invalid key is no text, as in `8: 3`
            yield f"unknown key '{key}'{did_you_mean(key, set(known) | sections)}"
        elif kind == "missing":
            yield f"{key} is missing"
        elif kind == "value_error":
            yield f"{key}: {mistake['ctx']['error']}"
        elif kind == "model_type":
            yield f"{key} = {_described(value)}: must hold keys and values"
        else:
            yield f"{key} = {_described(value)}: {mistake['msg'].replace('Input should be', 'must be')}"


def _described(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return "nothing" if value is None else "a mapping"
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
