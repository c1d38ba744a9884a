"""Pretraining by masked image modelling: an objective, a masking strategy, perhaps a teacher."""
