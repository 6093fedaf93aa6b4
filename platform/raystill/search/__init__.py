"""Sweeps of settings with Ray Tune."""
