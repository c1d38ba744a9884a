"""Checks of the environment and of the data on disk; each fault comes with the command that fixes it.

Nothing outside the standard library is imported here: the doctor has to work where the
installation does not. Frameworks and images are tried in child processes.
"""
