"""Pretrained models on disk: states, exports, the released layouts."""
