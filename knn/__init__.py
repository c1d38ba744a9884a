"""k-nearest-neighbour classification of frozen features."""
