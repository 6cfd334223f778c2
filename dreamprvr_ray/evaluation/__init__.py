"""Retrieval metrics of a checkpoint, and the record of every evaluation on test."""
