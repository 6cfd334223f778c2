"""Compatibility with the `retrieve.py` of models exported by earlier versions. Use `evaluation` instead."""

from dreamprvr_ray.evaluation.retrieval import score_split

__all__ = ["score_split"]
