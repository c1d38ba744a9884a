"""What a run leaves: its result, where the number comes from, and results as older versions wrote them."""
