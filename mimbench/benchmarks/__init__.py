"""What is to be run: the manifest, the cells of the table, the configuration of a run, and one run evaluated."""
