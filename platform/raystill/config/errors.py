"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input: the message says what was found, what was expected and what to type; shown without a traceback."""
