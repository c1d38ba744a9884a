"""Checkpoint files: reading, the published formats, inspection and export."""
