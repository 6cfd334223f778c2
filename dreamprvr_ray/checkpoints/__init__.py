"""Checkpoint directories, and the store of one training's checkpoints."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # The `retrieve.py` of models that earlier versions exported imports `load_model` from here.
    if name == "load_model":
        from dreamprvr_ray.checkpoints.checkpoint import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
