"""What the frozen teacher computes for every sample."""
