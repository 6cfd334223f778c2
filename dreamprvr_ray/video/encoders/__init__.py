"""Encoders of frames and sentences: the protocols, a registry of names, and one small class for each library."""
