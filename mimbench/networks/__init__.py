"""What a network is to a task: one contract for plain ViTs, networks with levels and users' modules."""
