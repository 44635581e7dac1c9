"""Fewer bits: rounding to groups of integers, and the choice of a format for each tensor."""
