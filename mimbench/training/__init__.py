"""Training: one loop, its configuration, and what lets a killed run continue exactly."""
