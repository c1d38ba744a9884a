"""Verbs of the command line: each file here is one."""
