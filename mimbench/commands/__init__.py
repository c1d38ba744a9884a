"""The subcommands of `python -m mimbench`, one module each."""
