"""Distances between sets of pictures, and what a picture costs."""
