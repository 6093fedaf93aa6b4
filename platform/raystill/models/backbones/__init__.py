"""Families of text-to-image pipelines: a small file each, behind one protocol, listed in one table."""
