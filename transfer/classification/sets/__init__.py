"""Transfer to other data sets: fine-tuning and logistic regression, scored by each set's own rule."""
