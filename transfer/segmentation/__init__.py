"""Semantic segmentation with mmsegmentation: UperNet fine-tuned, or a linear head on frozen features."""
