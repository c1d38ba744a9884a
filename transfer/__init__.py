"""Applications that train something on top of, or through, a backbone."""
