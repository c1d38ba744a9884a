"""Video object segmentation with frozen features: the first frame's masks, carried along by similarity."""
