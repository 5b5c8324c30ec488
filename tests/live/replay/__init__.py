"""A replay of scheduled forecasts: an archive comes in as a feed with faults, under a simulated clock."""
