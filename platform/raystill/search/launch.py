"""The job of a sweep, from its settings to its report."""

from raystill.search.settings import Search


def launch_search(search: Search) -> str:
    """Run a sweep, or what a stopped one has left of it; return its report, and where report and adapter are."""
    from raystill.search.sweep import sweep  # Ray reads once, when it is imported, which lines it shall not show

    return sweep(search)
