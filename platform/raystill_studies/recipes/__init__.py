"""Studies and comparisons, complete."""
