"""Data, from a benchmark's features to batches: source trees, pooling, Arrow shards, their cache, and the demo."""
