"""A checkpoint file's way to canonical tensors: opened safely, recognised, renamed, doubted."""
