"""Ranks and recall, and the record of every test evaluation."""
