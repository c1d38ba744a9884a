"""Bundles: results that leave the machine, and what verifies them elsewhere."""
