"""From results to tables and comparisons."""
