"""Functions that return complete settings."""
