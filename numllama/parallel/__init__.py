"""One step of training on many threads, processes or machines: the same shards, added in the same order."""
