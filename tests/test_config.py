"""Presets, invalid configurations, and the documentation generated from the keys."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from configuration_page import PAGE, render
from pydantic import Field, ValidationError

from dreamprvr_ray.config import Experiment, build_experiment, known_keys, load_experiment, parse_overrides, presets
from dreamprvr_ray.config_reference import document_keys
from dreamprvr_ray.config_sections import Section
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.settings import SearchSettings

PRESETS = "activitynet, charades, demo, one_encoder, tvr, videos"
# docs/model.md, section 5, column by column.
TABLE: dict[str, tuple[Any, Any, Any]] = {
    # key                              TVR     ActivityNet  Charades
    "data.video_size":                 (3072,   1024,   1024),
    "data.text_size":                  (768,    1024,   1024),
    "model.registers":                 (8,      4,      6),
    "model.diffusion_steps":           (10,     10,     10),
    "loss.weights.clip_nce":           (0.05,   0.02,   0.02),
    "loss.weights.frame_nce":          (0.04,   0.04,   0.04),
    "loss.weights.diversity":          (8e-5,   0.003,  0.003),
    "loss.weights.similarity":         (0.01,   0.01,   0.002),
    "loss.weights.variational":        (1e-4,   1e-4,   1e-4),
    "loss.weights.denoising":          (1e-3,   1e-3,   1e-3),
    "loss.diversity_margin":           (0.15,   0.2,    0.2),
    "loss.diversity_scale":            (32.0,   32.0,   32.0),
    "loss.diversity_focus":            (1.0,    1.0,    1.0),
    "loss.similarity_temperature":     (0.09,   0.08,   0.01),
    "optimizer.learning_rate":         (3e-4,   2.5e-4, 2e-4),
    "loss.margin":                     (0.1,    0.2,    0.2),
    "model.dropout":                   (0.2,    0.31,   0.25),
    "model.input_dropout":             (0.2,    0.31,   0.25),
    "model.fusion_temperature":        (0.09,   0.6,    0.6),
    "model.initialization":            ("paper", "paper", "paper"),
    "model.register_source":           ("diffusion", "diffusion", "diffusion"),
    "model.diffusion_start":           ("variational", "variational", "variational"),
    "loss.textual_perturbation":       (True,   True,   True),
    "evaluation.clip_weight":          (0.5,    0.6,    0.6),
    "evaluation.encoder_weight":       (0.0,    0.0,    0.0),
    "training.epochs":                 (150,    100,    100),
    "training.patience":               (20,     10,     10),
    "training.batch_videos":           (128,    128,    128),
    "model.hidden_size":               (384,    384,    384),
    "model.heads":                     (4,      4,      4),
    "model.branches":                  (8,      8,      8),
    "loss.hard_negative_start_epoch":  (20,     20,     20),
    "loss.hard_negative_pool":         (20,     20,     20),
    "training.seed":                   (0,      0,      0),
    # From sections 2 and 4.
    "model.denoiser_layers":           (2,      2,      2),
    "optimizer.warmup_fraction":       (0.01,   0.01,   0.01),
    "optimizer.weight_decay":          (0.01,   0.01,   0.01),
    # Not in the paper.
    "data.trim_frames":                ("exact", "exact", "exact"),
    "training.precision":              ("auto", "auto", "auto"),
    "training.max_failures":           (3,      3,      3),
    "training.with_val":               (False,  False,  False),
    "training.choose_epoch":           ("best", "best", "best"),
}  # fmt: skip


@pytest.fixture
def mistakes(tmp_path: Path) -> Callable[..., list[str]]:
    """Load a file with the given text and return its mistakes, without the path that each must start with."""

    def load(text: str | bytes) -> list[str]:
        path = tmp_path / "custom.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError) as error:
            load_experiment(path)
        for line in error.value.mistakes:
            assert line.startswith(str(path)) and "\n" not in line
        return [line.removeprefix(str(path)).removeprefix(": ") for line in error.value.mistakes]

    return load


@pytest.mark.parametrize(("column", "name"), enumerate(["tvr", "activitynet", "charades"]))
def test_presets_are_the_papers_settings(column: int, name: str) -> None:
    assert load_experiment(name).flat() == {key: values[column] for key, values in TABLE.items()}


def test_every_preset_has_every_key() -> None:
    assert ", ".join(presets()) == PRESETS
    for name in presets():
        assert list(load_experiment(name).flat()) == known_keys()


def test_a_hidden_size_of_zero_is_that_of_the_video_features() -> None:
    experiment = load_experiment("one_encoder")
    assert experiment.model.hidden_size == 0
    assert experiment.with_feature_sizes(768, 768, "shards").model.hidden_size == 768
    assert load_experiment("tvr").with_feature_sizes(768, 768, "shards").model.hidden_size == 384
    with pytest.raises(UserError, match=r"shards: .*hidden_size 30 must be even and divisible by heads 4"):
        experiment.with_feature_sizes(30, 30, "shards")
    with pytest.raises(UserError, match=r"hidden_size 4 must be 0 .*, or 8 or more"):
        load_experiment("tvr", {"model.hidden_size": 4})


def test_keys_are_unchanged() -> None:
    # Changing a key breaks users' files, so it must be a decision.
    assert set(known_keys()) == set(TABLE)


def test_overrides_reach_every_key() -> None:
    base = load_experiment("charades")
    for key, value in load_experiment("tvr").flat().items():
        changed = base.with_values({key: value}).flat()
        assert changed == base.flat() | {key: value}


def test_file_can_start_from_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "custom.yaml"
    path.write_text("preset: tvr\nmodel:\n  registers: 6\nloss:\n  weights:\n    clip_nce: 2e-2\n")
    changed = {"model.registers": 6, "loss.weights.clip_nce": 0.02}
    assert load_experiment(path).flat() == load_experiment("tvr").flat() | changed
    assert load_experiment(path, {"training.seed": 5}).flat() == load_experiment("tvr").flat() | changed | {
        "training.seed": 5
    }


@pytest.mark.parametrize("name", ["tvr", "demo"])
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / "complete.yaml"
    experiment = load_experiment(name, {"optimizer.learning_rate": 1e-5, "loss.weights.diversity": 1 / 3})
    path.write_text(experiment.to_yaml())
    assert load_experiment(path) == experiment


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3E-4", 3e-4),
        ("3.0e-4", 3e-4),
        ("3.e-4", 3e-4),
        ("+3e-4", 3e-4),
        ("1e0", 1.0),
        ("1", 1),
        ("0.5", 0.5),
        (".5", 0.5),
    ],
)
def test_number_notations(text: str, value: float) -> None:
    overrides = parse_overrides([f"optimizer.learning_rate={text}"])
    assert overrides == {"optimizer.learning_rate": value}
    assert load_experiment("demo", overrides).optimizer.learning_rate == value


def test_yaml_anchors_and_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "custom.yaml"
    path.write_text(
        "preset: tvr\nmodel: &both {dropout: 0.3}\nloss: {margin: 0.3}\ntraining: {epochs: &n 7, patience: *n}\n"
    )
    assert load_experiment(path).training.patience == 7
    path.write_text("preset: tvr\ntraining: {<<: {seed: 3, epochs: 5}, epochs: 9}\n")
    assert (load_experiment(path).training.seed, load_experiment(path).training.epochs) == (3, 9)


def test_experiment_is_frozen() -> None:
    experiment = load_experiment("demo")
    with pytest.raises(ValidationError, match="frozen"):
        experiment.model.registers = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        experiment.model = load_experiment("tvr").model  # type: ignore[misc]
    before = experiment.flat()
    experiment.with_values({"loss.weights.clip_nce": 0.5})
    assert experiment.flat() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {registres: 6}", "unknown key 'model.registres'; did you mean 'model.registers'?"),
        ("registers: 6", "unknown key 'registers'; did you mean 'model.registers'?"),
        ("modle: {registers: 6}", "unknown key 'modle'; did you mean 'model'?"),
        ("weights: {clip_nce: 1}", "unknown key 'weights'; did you mean 'loss.weights'?"),
        ("zzz: 6", "unknown key 'zzz'"),
        ("8: 6", ", line 2: a key must be a string: write '8' in quotes"),
        ("model: {registers: six}", "model.registers = 'six': must be a valid integer"),
        ("model: {registers: '6'}", "model.registers = '6': must be a valid integer"),
        ("model: {registers: 6.0}", "model.registers = 6.0: must be a valid integer"),
        ("model: {registers: yes}", "model.registers = true: must be a valid integer"),
        ("model: {registers: }", "model.registers = null: must be a valid integer"),
        ("model: {registers: [6]}", "model.registers = a list: must be a valid integer"),
        ("model: {registers: {int: 6}}", "model.registers = a mapping: must be a valid integer"),
        ("model: {registers: 2026-01-01}", "model.registers = a date: must be a valid integer"),
        ("model: {registers: -1}", "model.registers = -1: must be greater than or equal to 0"),
        ("model: {registers: 65}", "model.registers = 65: must be less than or equal to 64"),
        ("model: {dropout: 1.0}", "model.dropout = 1.0: must be less than 1"),
        ("model: {dropout: low}", "model.dropout = 'low': must be a valid number"),
        ("model: {dropout: .nan}", "model.dropout = nan: must be less than 1"),
        ("optimizer: {learning_rate: 0}", "optimizer.learning_rate = 0: must be greater than 0"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate = inf: must be a finite number"),
        ("loss: {weights: {diversity: -1e-3}}", "loss.weights.diversity = -0.001: must be greater than or equal to 0"),
        ("training: {seed: 2147483648}", "training.seed = 2147483648: must be less than 2147483648"),
        ("training: {precision: fp16}", "training.precision = 'fp16': must be 'auto', 'fp32' or 'bf16'"),
        ("training: {precision: }", "training.precision = null: must be 'auto', 'fp32' or 'bf16'"),
        ("evaluation: {clip_weight: 1.5}", "evaluation.clip_weight = 1.5: must be less than or equal to 1"),
        (
            "evaluation: {encoder_weight: 1.5}",
            "evaluation.encoder_weight = 1.5: must be a number from 0 to 1, or auto",
        ),
        ("model: {hidden_size: 30}", "model: hidden_size 30 must be even and divisible by heads 4"),
        ("model: {hidden_size: 9, heads: 3}", "model: hidden_size 9 must be even and divisible by heads 3"),
        ("model:", "model = null: must be a mapping of keys to values"),
        ("loss: {weights: 3}", "loss.weights = 3: must be a mapping of keys to values"),
        ("training: {seed: 2026-13-01}", ", line 2: not valid YAML: '2026-13-01' is not a valid timestamp"),
    ],
)
def test_mistake_names_key_value_and_what_is_allowed(
    mistakes: Callable[..., list[str]], text: str, expected: str
) -> None:
    assert mistakes(f"preset: demo\n{text}\n") == [expected]


def test_all_mistakes_are_reported(mistakes: Callable[..., list[str]]) -> None:
    text = (
        "preset: tvr\nmodel: {registers: six, heads: 5, hidden: 8}\ntraining: {epochs: 0}\nzzz: 5\n"
        "loss: {weights: {clip_nce: -1}}\n"
    )
    assert sorted(mistakes(text)) == [
        "loss.weights.clip_nce = -1: must be greater than or equal to 0",
        "model.registers = 'six': must be a valid integer",
        "training.epochs = 0: must be greater than or equal to 1",
        "unknown key 'model.hidden'; did you mean 'model.hidden_size'?",
        "unknown key 'zzz'",
    ]


def test_missing_keys_are_reported_without_a_preset() -> None:
    values = load_experiment("demo").model_dump()
    del values["evaluation"], values["model"]["dropout"], values["loss"]["weights"]["diversity"]
    with pytest.raises(UserError) as error:
        build_experiment(values, "here")
    assert sorted(error.value.mistakes) == [
        "here: evaluation is missing",
        "here: loss.weights.diversity is missing",
        "here: model.dropout is missing",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "preset: tvrr\n",
            f"preset = 'tvrr': must be one of {PRESETS}; did you mean 'tvr'?",
        ),
        ("preset:\n", f"preset = null: must be one of {PRESETS}"),
        (
            "preset: [tvr]\n",
            f"preset = a list: must be one of {PRESETS}; did you mean 'tvr'?",
        ),
        ("", "must be a mapping of keys to values, not null"),
        ("- model\n", "must be a mapping of keys to values, not a list"),
        ("tvr\n", "must be a mapping of keys to values, not 'tvr'"),
        ("preset: tvr\nmodel:\n  heads: 4\n  heads: 8\n", ", line 4: duplicate key 'heads' (first given on line 3)"),
        ("preset: tvr\nmodel: [1\n", ", line 3: expected ',' or ']', but got '<stream end>'"),
        ("preset: tvr\n\tmodel: 1\n", ", line 2: found character '\\t' that cannot start any token"),
        (
            "preset: tvr\nmodel: !!python/object/apply:os.getcwd []\n",
            ", line 2: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
    ],
)
def test_invalid_file_is_rejected(mistakes: Callable[..., list[str]], text: str, expected: str) -> None:
    assert mistakes(text) == [expected]


def test_file_that_is_not_utf8_is_rejected(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(b"preset: \xff\xfe")
    assert line.startswith("cannot be read: ")


def load_mistakes(name: str | Path, overrides: Mapping[str, Any] | None = None) -> list[str]:
    with pytest.raises(UserError) as error:
        load_experiment(name, overrides)
    return list(error.value.mistakes)


def test_unknown_configuration_name(tmp_path: Path) -> None:
    assert load_mistakes("tvrr") == [f"--config tvrr: neither a file nor a preset ({PRESETS}); did you mean 'tvr'?"]
    assert load_mistakes(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: no such file"]
    (line,) = load_mistakes(tmp_path)
    assert line.startswith(f"{tmp_path}: cannot be read: ")


def test_mistakes_in_overrides_name_the_flag() -> None:
    assert load_mistakes("demo", {"model.registres": 6}) == [
        "--set: unknown key 'model.registres'; did you mean 'model.registers'?"
    ]
    assert load_mistakes("demo", {"registers": 6}) == [
        "--set: unknown key 'registers'; did you mean 'model.registers'?"
    ]
    assert load_mistakes("demo", {"model": 6}) == ["--set: model = 6: must be a mapping of keys to values"]
    assert load_mistakes("demo", {"model.registers": None, "training.epochs": 0, "x.y": 1}) == [
        "--set: model.registers = null: must be a valid integer",
        "--set: training.epochs = 0: must be greater than or equal to 1",
        "--set: unknown key 'x'",
    ]


def test_overrides_are_parsed_as_yaml() -> None:
    assert parse_overrides(["a.b=6", "c=x=y", "d=", "e=[1, 2.5]", "f=true"]) == {
        "a.b": 6,
        "c": "x=y",
        "d": None,
        "e": [1, 2.5],
        "f": True,
    }
    with pytest.raises(UserError) as error:
        parse_overrides(["model.registers", "=6", "model.heads=4"])
    assert error.value.mistakes == ("--set model.registers: must be KEY=VALUE", "--set =6: must be KEY=VALUE")
    with pytest.raises(UserError) as error:
        parse_overrides(["model.heads=[4"])
    assert error.value.mistakes[0].startswith("--set model.heads, line 1: expected ',' or ']'")


def test_numbers_must_be_finite() -> None:
    for key, value in load_experiment("demo").flat().items():
        if isinstance(value, float):
            for bad in (math.nan, math.inf, -math.inf):
                with pytest.raises(UserError, match=key):
                    load_experiment("demo", {key: bad})


def test_experiments_are_compared_by_value() -> None:
    assert (
        load_experiment("demo")
        == Experiment.model_validate(load_experiment("demo").model_dump())
        != load_experiment("demo", {"training.seed": 1})
    )


@pytest.mark.parametrize("section", [Experiment, SearchSettings])
def test_every_key_is_documented(section: type[Section]) -> None:
    for key in document_keys(section):
        assert key.description.endswith("."), key.name
        assert len(key.summary) <= 200, key.name


def test_a_key_without_a_description_is_an_error() -> None:
    class Undocumented(Section):
        documented: int = Field(description="Has a description.")
        undocumented: int = 3

    with pytest.raises(ValueError, match=r"Undocumented\.undocumented has no description"):
        list(document_keys(Undocumented))


def test_reference_describes_types_and_bounds() -> None:
    allowed = {
        key.name: (key.allowed, key.default) for key in [*document_keys(Experiment), *document_keys(SearchSettings)]
    }
    assert allowed["model.registers"] == ("integer, 0 to 64", None)
    assert allowed["model.dropout"] == ("number, at least 0, below 1", None)
    assert allowed["optimizer.weight_decay"] == ("number, at least 0", "0.01")
    assert allowed["training.precision"] == ("auto, fp32 or bf16", "auto")
    assert allowed["trial.workers"] == ("integer, 1 to 1000000 or auto", "1")
    assert allowed["final.ablate"] == ("list of strings", "[]")


@pytest.mark.parametrize("section", [Experiment, SearchSettings])
def test_every_integer_has_an_upper_bound(section: type[Section]) -> None:
    """A size without one hangs or exhausts the memory, as would `denoiser_layers: 1000000000`."""
    unbounded = [
        key.name
        for key in document_keys(section)
        if "integer" in key.allowed and not re.search(r" to |below", key.allowed)
    ]
    assert not unbounded


@pytest.mark.parametrize(
    ("key", "bound"),
    [
        ("model.denoiser_layers", 64),
        ("model.hidden_size", 2**22),
        ("model.branches", 16),
        ("model.diffusion_steps", 1000),
        ("data.video_size", 65536),
        ("training.epochs", 1000000),
        ("training.batch_videos", 1000000),
    ],
)
def test_a_size_beyond_its_bound_is_reported(key: str, bound: int) -> None:
    for size in (bound + 2, 10**9, 10**400):
        with pytest.raises(UserError) as error:
            load_experiment("tvr", {key: size})
        (line,) = error.value.mistakes
        value = size if size < 10**18 else "an integer of more than 18 digits"
        assert line == f"--set: {key} = {value}: must be less than or equal to {bound}"
    assert load_experiment("tvr", {key: bound}).flat()[key] == bound


@pytest.mark.parametrize(("command", "sections"), [("train", [Experiment]), ("tune", [SearchSettings, Experiment])])
def test_help_lists_every_key(
    call: Callable[..., subprocess.CompletedProcess[str]], command: str, sections: list[type[Section]]
) -> None:
    text = " ".join(call(command, "--help").stdout.split())
    for key in (key for section in sections for key in document_keys(section)):
        default = "required" if key.default is None else f"default {key.default}"
        assert f"{key.name} ({key.allowed}; {default}) {key.summary}" in text


def test_configuration_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "docs/configuration.md is stale; run `make docs`"
