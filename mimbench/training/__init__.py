"""Training: one loop, what it is told, and all that lets a run be killed and go on exactly."""
