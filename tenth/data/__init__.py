"""Corpora: readers, token files, mixing, packing, and the loader that training takes its rows from."""
