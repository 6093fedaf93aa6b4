"""The whole job of a sweep."""

from raystill.search.settings import Search


def launch_search(search: Search) -> str:
    """Run a sweep, or what a stopped one has left of it; returns its report, and where it and the adapter are."""
    from raystill.search.sweep import sweep  # Ray reads once, when it is imported, which lines it shall not show

    return sweep(search)
