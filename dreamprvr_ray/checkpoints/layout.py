"""The names in a run's directory, which `runtime` writes and `search` shares. Imports neither torch nor Ray."""

from __future__ import annotations

CHECKPOINTS = "checkpoints"  # a `CheckpointStore`: the best and the latest checkpoint
EXPERIMENT = "experiment.yaml"  # the configuration, also in each checkpoint
BEST = "best"  # a copy of the best checkpoint, written when training has ended or was interrupted
TENSORBOARD = "tensorboard"  # TensorBoard's event files
RAY = "ray"  # Ray Train's own records of the run

# In a checkpoint's directory, next to the checkpoint's own files:
TEST_RECORD = "test.json"  # a record of every evaluation on test
TEST_RANKS = "test_ranks.json"  # ranks of the queries' videos at the first one
