"""Image-level transfer: linear probes, logistic regression, fine-tuning, few labels."""
