"""A run of the suite: cells, their processes and costs, the table and the report at the end, bundles."""
