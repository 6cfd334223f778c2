"""The DreamPRVR network, and `read_authors_checkpoint` for the weights that its authors released."""

from dreamprvr_ray.model.authors import AuthorsCheckpoint, read_authors_checkpoint
from dreamprvr_ray.model.dreamprvr import DreamPRVR, VideoEncoding

__all__ = ["AuthorsCheckpoint", "DreamPRVR", "VideoEncoding", "read_authors_checkpoint"]
