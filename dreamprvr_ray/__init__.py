"""Train, tune and use models for partially relevant video retrieval: DreamPRVR on Ray.

The names in `__all__` are the public Python API; docs/api.md shows each in use. They are loaded on first use, so that
`import dreamprvr_ray` itself takes no time. Commands run as `python -m dreamprvr_ray.<command>`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers and editors, which cannot follow `__getattr__`
    from dreamprvr_ray.api import (
        build_index,
        convert_features,
        evaluate_model,
        export_model,
        load_model,
        model_cost,
        open_shards,
        result_table,
        run_search,
        run_training,
        score_queries,
        train_model,
        write_figures,
        write_search_report,
    )
    from dreamprvr_ray.checkpoints.checkpoint import TrainedModel
    from dreamprvr_ray.config import Experiment, load_experiment
    from dreamprvr_ray.data.in_memory import FeatureSplit, Moment, Query, write_shards
    from dreamprvr_ray.data.shards import ShardSet
    from dreamprvr_ray.errors import Failure, UserError
    from dreamprvr_ray.index.index import Index

# Where each public name is defined.
_DEFINED_IN = {
    "Experiment": "config",
    "Failure": "errors",
    "FeatureSplit": "data.in_memory",
    "Index": "index.index",
    "Moment": "data.in_memory",
    "Query": "data.in_memory",
    "ShardSet": "data.shards",
    "TrainedModel": "checkpoints.checkpoint",
    "UserError": "errors",
    "build_index": "api",
    "convert_features": "api",
    "evaluate_model": "api",
    "export_model": "api",
    "load_experiment": "config",
    "load_model": "api",
    "model_cost": "api",
    "open_shards": "api",
    "result_table": "api",
    "run_search": "api",
    "run_training": "api",
    "score_queries": "api",
    "train_model": "api",
    "write_figures": "api",
    "write_search_report": "api",
    "write_shards": "data.in_memory",
}

__all__ = [
    "Experiment",
    "Failure",
    "FeatureSplit",
    "Index",
    "Moment",
    "Query",
    "ShardSet",
    "TrainedModel",
    "UserError",
    "__version__",
    "build_index",
    "convert_features",
    "evaluate_model",
    "export_model",
    "load_experiment",
    "load_model",
    "model_cost",
    "open_shards",
    "result_table",
    "run_search",
    "run_training",
    "score_queries",
    "train_model",
    "write_figures",
    "write_search_report",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
