"""Training methods, one file each, all with the same interface."""
