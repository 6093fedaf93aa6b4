"""Checks of single settings."""

from raystill.config.errors import UserError


def at_least(least: int, path: str, value: int) -> None:
    """Refuse, with UserError, a setting below `least`."""
    if value < least:
        raise UserError(f"{path} is {value}; write {least} or more, such as --set {path}={least}")
