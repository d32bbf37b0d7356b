"""`mdstore crash`: workloads, campaigns of exploration, kills, injected faults, and the canaries that must be found."""
