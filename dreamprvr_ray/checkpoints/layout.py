"""The names in a run's directory, which `runtime` writes and `search` shares. Imports neither torch nor Ray."""

from __future__ import annotations

import hashlib
import re

CHECKPOINTS = "checkpoints"  # a `CheckpointStore`: the best and the latest checkpoint
EXPERIMENT = "experiment.yaml"  # the configuration, also in each checkpoint
BEST = "best"  # a copy of the best checkpoint, written when training has ended or was interrupted
TENSORBOARD = "tensorboard"  # TensorBoard's event files
RAY = "ray"  # Ray Train's own records of the run

# In a checkpoint's directory:
WEIGHTS, STATE, METRICS, CHECKSUMS = "weights.safetensors", "state.pt", "metrics.json", "checksums.json"
MOMENTS = "moments.safetensors"  # the network that finds moments, if the training learned one
TEST_RECORD = "test.json"  # a record of every evaluation on test
TEST_RANKS = "test_ranks.json"  # ranks of the queries' videos at the first one; see `further_ranks`
VALUES = "values.json"  # the searched values, in the `best` of a search

_FILES = (WEIGHTS, MOMENTS, STATE, METRICS, CHECKSUMS, EXPERIMENT, TEST_RECORD, TEST_RANKS, VALUES)
_FURTHER_RANKS = re.compile(r"test_ranks-[A-Za-z0-9_-]+\.json")
_TEMPORARY = re.compile(r"\.(.+)\.partial-.+")


def is_checkpoint_file(name: str) -> bool:
    """Return whether a file of a checkpoint's directory is the program's own: only such files are ever deleted."""
    temporary = _TEMPORARY.fullmatch(name)
    own = temporary[1] if temporary else name
    return own in _FILES or _FURTHER_RANKS.fullmatch(own) is not None


def further_ranks(collection: str) -> str:
    """Return the name of the file with the ranks of a collection that was not the first to be tested."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", collection)
    if name != collection:  # two collections must not share a file
        name += f"-{hashlib.sha256(collection.encode()).hexdigest()[:8]}"
    return f"test_ranks-{name}.json"
