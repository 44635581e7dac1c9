"""Corpora: text to learn from and to measure on."""
