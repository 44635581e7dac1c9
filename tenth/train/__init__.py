"""Learning: recipes, the training loop, balance of experts, checkpoints; upcycling and carving of dense models."""
