"""Learning: upcycling a dense model into a sparse one."""
