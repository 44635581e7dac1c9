"""Token ids in, token ids out: the sampler, the naive generate, one sequence with a cache, many at once in pages."""
