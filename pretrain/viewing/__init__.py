"""Looking at things: what a model sees, what a mask hides, and the statistics of both."""
