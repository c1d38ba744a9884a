"""What a run takes of time, memory and disk: said before, measured after."""
