"""The project's own research: studies and comparisons."""
