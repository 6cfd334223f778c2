"""The training loop and its parts. Imports torch, but not Ray."""
