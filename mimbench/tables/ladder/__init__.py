"""The ladder: what an expensive number will be, from cheap dense ones, or that nobody can tell."""
