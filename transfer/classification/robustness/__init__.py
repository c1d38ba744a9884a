"""Robustness of an ImageNet classifier: nothing is trained, the head of a finished run is used."""
