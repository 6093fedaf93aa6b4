"""The project's own research: studies, comparisons and their findings."""
