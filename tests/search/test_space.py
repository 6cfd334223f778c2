from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import yaml

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.parameters import Parameter
from dreamprvr_ray.search.space import load_search

ROOT = Path(__file__).parents[2]
ABLATIONS = ROOT / "search_spaces" / "ablations.yaml"  # searches nothing
SHIPPED = sorted(path for path in (ROOT / "search_spaces").glob("*.yaml") if path != ABLATIONS)
DRAWN = next(path for path in SHIPPED if path.stem == "videos")
WEIGHTS = ("clip_nce", "frame_nce", "diversity", "similarity", "variational", "denoising")


def write(folder: Path, space: dict[str, object], **more: object) -> Path:
    path = folder / "space.yaml"
    path.write_text(
        yaml.safe_dump({"config": "demo", "shards": "shards", "out": "out", "trials": 4, "space": space} | more)
    )
    return path


def mistakes(path: Path, overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_search(path, overrides)
    return list(caught.value.mistakes)


def test_the_space_of_the_drawn_videos_is_around_its_preset() -> None:
    """It has few trials, so few keys, and its shards come from video files, not from a source tree of features."""
    search = load_search(DRAWN)
    assert search.settings.config == "videos" and "model.registers" in {each.key for each in search.parameters}
    assert all(parameter.contains(search.paper_setting[parameter.key]) for parameter in search.parameters)


@pytest.mark.parametrize("path", [path for path in SHIPPED if path != DRAWN], ids=lambda path: path.stem)
def test_every_shipped_space_searches_registers_steps_and_the_six_loss_weights_around_its_preset(path: Path) -> None:
    search = load_search(path)
    keys = {parameter.key for parameter in search.parameters}
    assert {"model.registers", "model.diffusion_steps", *(f"loss.weights.{weight}" for weight in WEIGHTS)} <= keys
    assert search.settings.config == path.stem
    assert all(parameter.contains(search.paper_setting[parameter.key]) for parameter in search.parameters)
    assert search.settings.source is not None and search.settings.source.convert_command(
        search.settings.shards
    ).endswith(f"--out {search.settings.shards}")


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "model.regsters": {"int": [1, 8]},
            "model.heads": {"int": [8, 1]},
            "model.dropout": {"float": [0.0, 1.5]},
            "loss.margin": {"float": [0.0, 0.3], "log": True},
            "loss.weights.denoising": {"floot": [0.1, 0.2]},
            "optimizer.learning_rate": {"float": [1e-5, 1e-4]},
            "model.diffusion_steps": {"int": [1, 2.5]},
            "data.video_size": {"int": [10, 20]},
            "training.epochs": "many",
            "model.branches": {"choice": []},
            "loss.weights.diversity": {"float": [1e-5, 1.0], "when": "model.registrs > 0"},
            "loss.weights.similarity": {"float": [1e-5, 1.0], "when": "model.registers >"},
        },
        trails=5,
        sampler={"kind": "tpee"},
    )
    found = mistakes(path)
    text = "\n".join(found)
    assert all(line.startswith(f"{path}: ") for line in found)
    for part in (
        "unknown key 'model.regsters'; did you mean 'model.registers'?",
        "model.heads: low 8 must be below high 1",
        "loss.margin: a log scale requires low above 0",
        "unknown word 'floot'",
        "two integers, not [1, 2.5]",
        "data.video_size can be fixed but not searched",
        "model.branches: choice takes a list of values",
        "unknown key 'model.registrs' in 'model.registrs > 0'; did you mean 'model.registers'?",
        "'model.registers >' is not a valid condition",
        "unknown key 'trails'; did you mean 'trials'?",
        "sampler.kind = 'tpee': must be 'tpe', 'gp' or 'random'",
    ):
        assert part in text
    assert len(found) == 11
    # Checks against the configuration are made only if the file itself is valid.
    checked = mistakes(
        write(
            tmp_path,
            {
                "model.dropout": {"float": [0.0, 1.5]},
                "optimizer.learning_rate": {"float": [1e-5, 1e-4]},
                "training.epochs": "many",
            },
        )
    )
    assert len(checked) == 3
    for part in ("model.dropout = 1.5", "must contain the configuration's own value 0.001", "training.epochs = "):
        assert part in "\n".join(checked)


def test_conditions_are_checked_and_ordered(tmp_path: Path) -> None:
    steps = {"int": [1, 8], "when": "model.registers > 0"}
    search = load_search(write(tmp_path, {"model.diffusion_steps": steps, "model.registers": {"int": [0, 8]}}))
    assert [parameter.key for parameter in search.parameters] == ["model.registers", "model.diffusion_steps"]
    assert str(search.parameters[1]) == "integers from 1 to 8, when model.registers > 0"
    assert (
        "model.diffusion_steps"
        not in load_search(
            write(tmp_path, {"model.diffusion_steps": steps, "model.registers": 0, "model.heads": {"choice": [2, 4]}})
        ).paper_setting
    )
    circle = {"model.registers": {"int": [0, 8], "when": "model.diffusion_steps > 1"}, "model.diffusion_steps": steps}
    assert (
        "the conditions of model.diffusion_steps and model.registers depend on each other"
        in mistakes(write(tmp_path, circle))[0]
    )
    space = {"model.registers": {"int": [0, 8]}}
    assert (
        "constraints: 'model.registers > 4' does not hold for the configuration's own values"
        in mistakes(write(tmp_path, space, constraints=["model.registers > 4"]))[0]
    )
    assert "cannot be evaluated" in mistakes(write(tmp_path, space, constraints=["training.precision > 4"]))[0]
    assert (
        "model.branches: choice takes a list of numbers, strings, true or false"
        in mistakes(write(tmp_path, {"model.branches": {"choice": [[1]]}}))[0]
    )


def test_an_unknown_search_key_or_an_invalid_value_is_reported(tmp_path: Path) -> None:
    space = {"model.registers": {"int": [0, 8]}}
    assert "unknown key 'trails'; did you mean 'trials'?" in mistakes(write(tmp_path, space, trails=3))[0]
    assert (
        "trial.workers: 0: must be greater than or equal to 1, or auto"
        in mistakes(write(tmp_path, space, trial={"workers": 0}))[0]
    )
    assert (
        "unknown key 'pruning.grace'; did you mean 'pruning.grace_epochs'?"
        in mistakes(write(tmp_path, space, pruning={"grace": 1}))[0]
    )
    assert "neither a file nor a preset" in mistakes(write(tmp_path, space, config="tvrr"))[0]
    assert (
        "final: ablate: 'model.regsters' is not a searched key; did you mean 'model.registers'?"
        in mistakes(write(tmp_path, space, final={"ablate": ["model.regsters"]}))[0]
    )
    assert "nothing to search" in mistakes(write(tmp_path, {"model.registers": 3}))[0]


def test_overrides_change_search_keys_or_fix_configuration_keys(tmp_path: Path) -> None:
    path = write(tmp_path, {"model.registers": {"int": [0, 8]}, "model.dropout": {"float": [0.0, 0.5]}})
    search = load_search(path, {"trials": 2, "trial.workers": 3, "model.dropout": 0.0, "training.epochs": 2})
    assert (search.settings.trials, search.settings.trial.workers) == (2, 3)
    assert search.experiment.model.dropout == 0.0 and search.experiment.training.epochs == 2
    assert [parameter.key for parameter in search.parameters] == ["model.registers"]
    assert mistakes(path, {"trial.wrokers": 3}) == ["--set: unknown key 'trial.wrokers'; did you mean 'trial.workers'?"]


def test_optuna_samples_within_the_parameters_bounds() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    parameters = [
        Parameter("whole", 1, 64, log=True),
        Parameter("even", 0, 8, step=2),
        Parameter("real", 1e-4, 1e-1, log=True),
        Parameter("one", choices=(4, 8)),
    ]
    for _ in range(50):
        trial = study.ask()
        whole, even, real, one = (parameter.suggest(trial) for parameter in parameters)
        assert isinstance(whole, int) and 1 <= whole <= 64
        assert even in (0, 2, 4, 6, 8) and 1e-4 <= real <= 1e-1 and one in (4, 8)
    assert [str(parameter) for parameter in parameters] == [
        "integers from 1 to 64, log scale",
        "integers from 0 to 8, step 2",
        "numbers from 0.0001 to 0.1, log scale",
        "4 | 8",
    ]


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({"float": [0.0, 0.5], "step": float("nan")}, "step must be a number above 0, not nan"),
        ({"float": [0.0, 0.5], "step": float("inf")}, "step must be a number above 0, not inf"),
        ({"float": [0.0, 0.5], "step": 1e-300}, "step 1e-300 is too small"),
        ({"float": [0.0, 0.5], "step": 2}, "step 2 must be at most the distance of the bounds, 0.5"),
        ({"float": [float("nan"), 0.5]}, "bounds from -1e+15 to 1e+15, not [nan, 0.5]"),
        ({"float": [0.0, float("inf")]}, "bounds from -1e+15 to 1e+15, not [0.0, inf]"),
        ({"float": [0.0, 1e300]}, "bounds from -1e+15 to 1e+15"),
        ({"int": [0, 10**17]}, "bounds from -1e+15 to 1e+15"),
        ({"int": [{}, []]}, "two integers, not [a mapping, a list]"),
        ({"int": "0, 1"}, "two integers, not '0, 1'"),
        ({"choice": [0.1, float("nan")]}, "choice takes finite numbers"),
        ({"choice": [0.1, 0.1]}, "choice takes each value once"),
        ({"choice": list(range(1001))}, "choice takes at most 1000 values, not 1001"),
        ({"float": [0.0, 0.5], "when": "'a' * 99999999999 == 'a'"}, "names no key"),
    ],
)
def test_ranges_that_cannot_be_searched_are_one_line(tmp_path: Path, description: object, reason: str) -> None:
    (line,) = mistakes(write(tmp_path, {"model.dropout": description}))
    assert reason in line and "\n" not in line and len(line) < 500


def test_a_condition_that_fails_for_some_values_is_found_when_the_file_is_loaded(tmp_path: Path) -> None:
    registers, dropout = {"int": [0, 8]}, {"float": [0.0, 0.5]}
    fails = "1 / model.registers < 5"
    (line,) = mistakes(write(tmp_path, {"model.registers": registers}, constraints=[fails]))
    assert line.endswith(f"'{fails}' cannot be evaluated: division by zero for model.registers = 0")
    (line,) = mistakes(
        write(
            tmp_path, {"model.registers": registers, "model.dropout": dropout | {"when": "1 % (model.registers - 3)"}}
        )
    )
    assert line.endswith("modulo by zero for model.registers = 3")
    for constraints in (["model.registers == 0 or 1 / model.registers < 5"], ["model.registers > 0", fails]):
        load_search(write(tmp_path, {"model.registers": registers}, constraints=constraints))


def test_a_proposal_whose_conditions_cannot_be_evaluated_is_rejected(tmp_path: Path) -> None:
    """Between the values that are checked when the file is loaded, a division by zero is still possible."""
    fails = "1 / (model.dropout - 0.3) < 99"
    space = {"model.dropout": {"float": [0.0, 0.5]}, "loss.margin": {"float": [0.1, 0.4], "when": fails}}
    search = load_search(write(tmp_path, space))
    trial = optuna.trial.FixedTrial({"model.dropout": 0.3, "loss.margin": 0.2})
    values = search.suggest(trial)
    assert values == {"model.dropout": 0.3}
    assert search.reason_to_reject(values) == f"'{fails}' cannot be evaluated: float division by zero"
    search = load_search(write(tmp_path, {"model.dropout": space["model.dropout"]}, constraints=[fails]))
    assert "cannot be evaluated" in str(search.reason_to_reject({"model.dropout": 0.3}))
    assert search.reason_to_reject({"model.dropout": 0.305}) == f"violates {fails}"
    assert search.reason_to_reject({"model.dropout": 0.1}) is None
