"""A run of the suite: cells, their processes, their costs, the table at the end."""
