"""Kept for the `retrieve.py` of models exported by earlier versions, which imports from here; everything else uses `evaluation`."""

from dreamprvr_ray.evaluation.retrieval import score_split

__all__ = ["score_split"]
