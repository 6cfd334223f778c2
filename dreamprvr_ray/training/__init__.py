"""The training loop and everything it needs; imports torch, not Ray."""
