"""Segmentation without training: patches of a frozen backbone, labelled by their neighbours or a linear rule."""
