"""Functions that return complete settings of studies and comparisons."""
