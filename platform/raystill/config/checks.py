"""Checks of single settings."""

from math import inf

from raystill.config.errors import UserError


def within(low: int | float, high: int | float, path: str, value: int | float, such_as: int | float) -> None:
    """Refuse, with UserError, a setting outside [low, high]; `such_as` is one that is right."""
    if not low <= value <= high:
        between = f"from {low:g} to {high:g}" if high < inf else f"of {low:g} or more"
        raise UserError(f"{path} is {value}; write a number {between}, such as --set {path}={such_as}")


def at_least(least: int, path: str, value: int) -> None:
    """Refuse, with UserError, a setting below `least`."""
    if value < least:
        raise UserError(f"{path} is {value}; write {least} or more, such as --set {path}={least}")
