"""Training targets that the frozen teacher computes for every sample."""
