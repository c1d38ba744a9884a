"""Logistic regression over a grid of penalties, for features that several tasks have."""
