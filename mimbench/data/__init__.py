"""Images and labels: lists, sources, subsets, decoding and preprocessing."""
