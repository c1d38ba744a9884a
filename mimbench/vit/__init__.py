"""Vision transformers: canonical weights, the networks built from them, and their features."""
