"""Features of frozen backbones: how they are extracted, cached and configured."""
