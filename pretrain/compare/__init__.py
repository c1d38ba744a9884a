"""Comparing strategies: an experiment that can decide, and the suite's benchmarks over tiny runs."""
