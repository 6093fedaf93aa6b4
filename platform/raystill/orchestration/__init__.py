"""Ray clusters, workers and the stages of a run."""
