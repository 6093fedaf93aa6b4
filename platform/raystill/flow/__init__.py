"""The mathematics of paths, predictions, times and solvers; torch only."""
