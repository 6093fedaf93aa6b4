"""Fixtures of whole jobs."""

from tests.workplace import few, typed, workplace

__all__ = ["few", "typed", "workplace"]
