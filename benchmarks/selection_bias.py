"""python -m benchmarks.selection_bias --json: does the final stage favour the trial that a search selected?

All settings of a simulated search are equally good, so on test the selected one should differ from the configuration's
own by 0 on average, and val should prefer it in half of the searches. Nothing is trained: a training is a draw that
depends on its settings and its seed, so that the same settings and seed give the same model again. Which settings are
retrained, and with which seeds, is decided by the search's own code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.search.candidates import choose_candidates, run_values
from dreamprvr_ray.search.final_result import Candidate
from dreamprvr_ray.search.results import TrialRecord, rank_trials
from dreamprvr_ray.search.space import Search, load_search

TRIALS = (8, 24, 60)
QUALITY, VAL_NOISE, TEST_NOISE = 3.0, 3.0, 2.0  # standard deviations in SumR: of models, and of measuring them
RATE = "optimizer.learning_rate"


@dataclass(frozen=True)
class Bias:
    """What the final stages of many searches found, on average."""

    test: float  # test SumR of the selected setting minus that of the configuration's own
    error: float  # its standard error
    preferred: float  # share of searches in which val prefers the selected setting


def simulated_training(values: Mapping[str, Any], seed: int, search_number: int) -> tuple[float, float]:
    """Return (val, test) SumR of a model that is determined by its settings and its seed."""
    key = [search_number, seed, round(float(values[RATE]) * 1e12)]
    quality, val, test = np.random.default_rng(key).normal(0.0, (QUALITY, VAL_NOISE, TEST_NOISE))
    return 250.0 + quality + val, 240.0 + quality + test


def example_search(folder: Path, seeds: int = 3) -> Search:
    """Return a search of one parameter. Nothing is read but its file."""
    space = {RATE: {"float": [1e-4, 1e-2], "log": True}}
    values = {"config": "demo", "shards": "none", "out": "none", "trials": 1, "space": space, "final": {"seeds": seeds}}
    path = folder / "simulated.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_search(path)


def simulate(search: Search, trials: int, searches: int, seeds: Sequence[int] | None = None) -> Bias:
    """Run searches of `trials` trials. `seeds` replaces the seeds of the final stage."""
    differences, preferred = [], 0
    epochs = search.experiment.training.epochs
    for number in range(searches):
        random = np.random.default_rng([1, number])
        values = [search.paper_setting, *({RATE: rate} for rate in 10 ** random.uniform(-4, -2, trials - 1))]
        own_seed = search.experiment.training.seed
        records = [
            TrialRecord(place, "finished", simulated_training(each, own_seed, number)[0], epochs, epochs, each)
            for place, each in enumerate(values)
        ]
        selected, own = choose_candidates(search, rank_trials(records))
        results = [
            _mean_of_runs(search, candidate, number, search.final_seeds if seeds is None else seeds)
            for candidate in (selected, own)
        ]
        differences.append(results[0][1] - results[1][1])
        preferred += results[0][0] > results[1][0]
    error = float(np.std(differences, ddof=1)) / searches**0.5
    return Bias(float(np.mean(differences)), error, preferred / searches)


def _mean_of_runs(search: Search, candidate: Candidate, number: int, seeds: Sequence[int]) -> np.ndarray:
    """Return (val, test), means over the runs of a candidate."""
    trained = [run_values(search, candidate, seed) for seed in seeds]
    return np.mean([simulated_training(values, values["training.seed"], number) for values in trained], axis=0)


def main(arguments: list[str]) -> None:
    parser = Parser("selection_bias", "Does the final stage favour the trial that a search selected?", "benchmarks")
    parser.add_argument("--searches", type=int, default=2000)
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        search = example_search(Path(folder))
    for trials in TRIALS:
        # Version 0.1.0 counted seeds from 0, which is also the seed of the trials.
        for name, seeds in (("seeds 0 to 2", range(3)), ("the search's final seeds", search.final_seeds)):
            found = simulate(search, trials, options.searches, seeds)
            results.append({"trials": trials, "seeds": list(seeds), "test": found.test, "preferred": found.preferred})
            print(
                f"{trials} trials, {name}: {found.test:+.2f} test SumR (standard error {found.error:.2f}),"
                f" preferred by val in {found.preferred:.0%}",
                flush=True,
            )
    if options.json:
        print_json({"searches": options.searches, "results": results})


if __name__ == "__main__":
    run(main)
