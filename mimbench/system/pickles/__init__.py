"""Pickles read as data: an interpreter that makes plain values and calls nothing of Python's."""
