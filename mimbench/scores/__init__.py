"""Numbers from outcomes, and how sure they are."""
