"""What is to be run: the manifest, orders, the cells of the table, and one order evaluated."""
