"""Evaluation of pictures: feature networks, distances between sets, grids and curves to look at, tables, timing."""
