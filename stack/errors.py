"""The one error of the stack: a sentence that says what failed and what to do about it."""


class StackError(Exception):
    """The stack can't go on; the message is shown to the user as it is, without a traceback."""
