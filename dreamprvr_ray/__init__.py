"""Training and tuning partially relevant video retrieval with DreamPRVR on Ray."""

__version__ = "0.1.0"
