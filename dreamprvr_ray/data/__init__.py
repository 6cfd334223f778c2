"""From the distributed features to training batches: source trees, pooling, Arrow shards, batches, and the demo's data."""
