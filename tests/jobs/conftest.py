"""Fixtures of whole jobs."""

from tests.workplace import few, workplace

__all__ = ["few", "workplace"]
