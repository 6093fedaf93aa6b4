"""The exception that reports a user's mistake."""


class UserError(Exception):
    """Bad input: the message says what was found, what was expected and what to type; shown without a traceback."""
